"""What a visitor is asked, shown and written: the page of `app.py` without its layout."""

import unicodedata
import zlib
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import torch
from population import Population

from np_trl.data.embeddings import plain_text
from np_trl.data.ranges import check_at_least
from np_trl.evaluation.generations import SAMPLING
from np_trl.users import UserProfile, sample_latents, select_pairs
from np_trl.users.choices import reverse


NO_QUESTION = "There is no open question. Forget a choice or start over."


class Refusal(Exception):
    """What a visitor cannot have, in words for the visitor."""


@dataclass
class InterviewArguments:
    """Arguments of an interview."""

    num_questions: int = field(default=10, metadata={"help": "Choices that a visitor is asked for."})
    num_samples: int = field(
        default=16, metadata={"help": "Draws of a latent that tell how uncertain it is, and what to ask."}
    )
    max_prompt_length: int = field(default=1000, metadata={"help": "Largest number of characters of a typed prompt."})
    max_new_tokens: int = field(default=64, metadata={"help": "Largest number of tokens of an answer."})
    seed: int = field(
        default=0, metadata={"help": "Seed of the pool of questions, of their selection and of sampling."}
    )

    def __post_init__(self):
        check_at_least(0, seed=self.seed)
        check_at_least(2, num_samples=self.num_samples)
        check_at_least(
            1,
            num_questions=self.num_questions,
            max_prompt_length=self.max_prompt_length,
            max_new_tokens=self.max_new_tokens,
        )


class Visit(NamedTuple):
    """
    What is known of one visitor. Everything on the page follows from it.

    Attributes:
        choices (`tuple[tuple[int, bool], ...]`):
            Numbers of the questions answered, and whether the first of the two answers was preferred.
        skipped (`tuple[int, ...]`):
            Numbers of the questions that the visitor would not answer.
        question (`int`, *optional*):
            The number of the open question.
    """

    choices: tuple[tuple[int, bool], ...] = ()
    skipped: tuple[int, ...] = ()
    question: int | None = None


class Standing(NamedTuple):
    """
    Where a visitor stands.

    Attributes:
        image (`str`):
            A map, as a data URL.
        description (`str`):
            The map in words, for who does not see it.
        summary (`str`):
            What follows from it.
    """

    image: str
    description: str
    summary: str


class Interview:
    """
    What the page asks, shows and writes. Visitors share policies, which serve one of them at a time.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]), tokenizer
            ([`~transformers.PreTrainedTokenizerBase`]):
            A policy.
        population ([`Population`]):
            The people to stand among, and the questions.
        args ([`InterviewArguments`]):
            Arguments.

    Raises:
        `ValueError`: if there are not more questions than are to be asked.
    """

    lock = Lock()  # of all interviews: they may share a policy, and share torch's random numbers

    def __init__(self, policy, tokenizer, population: Population, args: InterviewArguments):
        if args.num_questions >= len(population.pool):
            raise ValueError(
                f"`num_questions={args.num_questions}` must be less than the {len(population.pool)} pairs of the pool, so that "
                "there is something to select from."
            )
        self.policy, self.tokenizer, self.population, self.args = policy, tokenizer, population, args
        with self.lock:
            self.nobody = UserProfile(policy, tokenizer)
            self._open_at_first = self._spread(self._sample(self.nobody))

    def ask(self, visit: Visit) -> Visit:
        """Open the most telling question that was neither answered nor skipped, while there are any to be asked."""
        pool = self.population.pool
        if len(visit.choices) == self.args.num_questions:
            return visit._replace(question=None)
        with self.lock:
            user = UserProfile(self.policy, self.tokenizer, self.pairs(visit))
            unanswered = pool.unanswered(user)  # without pairs that the policy reads as one that was answered
            skipped = set(visit.skipped).intersection(unanswered)
            if len(skipped) == len(unanswered):
                return visit._replace(question=None)
            questions = select_pairs(pool, user, 1 + len(skipped), self.args.num_samples, seed=self.args.seed)
        return visit._replace(question=next(q.number for q in questions if q.number not in skipped))

    def choose(self, visit: Visit, first: bool) -> Visit:
        """Answer the open question."""
        if visit.question is None:
            raise Refusal(NO_QUESTION)
        return self.ask(visit._replace(choices=(*visit.choices, (visit.question, first))))

    def skip(self, visit: Visit) -> Visit:
        """Leave the open question and ask another."""
        if visit.question is None:
            raise Refusal(NO_QUESTION)
        return self.ask(visit._replace(skipped=(*visit.skipped, visit.question)))

    def forget(self, visit: Visit) -> Visit:
        """Forget the last choice, as if it had never been made."""
        if not visit.choices:
            raise Refusal("There is no choice to forget.")
        return self.ask(visit._replace(choices=visit.choices[:-1]))

    def pairs(self, visit: Visit) -> list[dict]:
        """The visitor's choices as preference pairs."""
        questions = self.population.pool.pairs
        return [questions[number] if first else reverse(questions[number]) for number, first in visit.choices]

    def readers(self, visit: Visit) -> list[UserProfile]:
        """The visitor; the opposite user, who made each of these choices the other way round; and nobody."""
        pairs = self.pairs(visit)
        opposite = [reverse(pair) for pair in pairs]
        return [*(UserProfile(self.policy, self.tokenizer, choices) for choices in (pairs, opposite)), self.nobody]

    def stand(self, visit: Visit) -> Standing:
        """Find where the visitor stands among the population."""
        population, pairs = self.population, self.pairs(visit)
        with self.lock:
            you, opposite, _ = self.readers(visit)
            samples, opposite = self._sample(you), opposite.latents
            # from nobody on, after each choice
            steps = [UserProfile(self.policy, self.tokenizer, pairs[:number]) for number in range(len(pairs) + 1)]
            trail = torch.cat([user.latents for user in steps])  # (choices + 1, Z)
            image = population.draw(trail, samples, opposite)
        places = population.project(torch.cat([trail[-1:], opposite, trail[:1]]))
        you, opposite, nobody = (f"({x:.1f}, {y:.1f})" for x, y in places)
        share = self._spread(samples) / self._open_at_first
        description = (
            f"A map of {len(population)} people by what they like. You are at {you}, your opposite at {opposite}, nobody at "
            f"{nobody}. The shaded area is what your choices leave open."
        )
        if not pairs:
            summary = (
                f"Each dot is one of {len(population)} people. Before your first choice you stand where nobody does."
            )
            return Standing(image, description, summary)
        summary = f"Your choices leave {share:.0%} of the uncertainty that there was before them."
        group = population.nearest_group(trail[-1:])
        if group is not None:
            summary += f" The nearest of {len(population)} people: {group.replace('_', ', ')}."
        return Standing(image, description, summary)

    def write(self, visit: Visit, prompt: str) -> list[str]:
        """Answer a prompt for each reader."""
        prompt = self._check(prompt)
        with self.lock:
            inputs = self._read(prompt)  # (1, T)
            users = self.readers(visit)
            inputs = {name: values.expand(len(users), -1).to(self.policy.device) for name, values in inputs.items()}
            # the same choices and prompt, the same answers; another prompt, other draws
            torch.manual_seed(self.args.seed + zlib.crc32(prompt.encode()))
            outputs = self.policy.generate(**inputs, users=users, **SAMPLING, max_new_tokens=self.args.max_new_tokens)
            written = outputs[:, inputs["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def prompts(self, number: int = 4) -> list[str]:
        """A few prompts to start with: the shortest of the questions'."""
        prompts = {plain_text(pair["prompt"]) for pair in self.population.pool.pairs}
        return sorted(prompts, key=lambda prompt: (len(prompt), prompt))[:number]

    def _check(self, prompt: str | None) -> str:
        """Return what was typed, without the blanks around it, if it can be answered."""
        prompt, limit = (prompt or "").strip(), self.args.max_prompt_length
        if not prompt:
            raise Refusal("Type a prompt first.")
        if len(prompt) > limit:
            raise Refusal(f"This prompt has {len(prompt):,} characters. Shorten it to {limit:,}.")
        if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t" for char in prompt):
            raise Refusal("This prompt has characters that cannot be printed. Type it again.")
        return prompt

    def _read(self, prompt: str) -> dict[str, torch.Tensor]:
        """Tokenize a prompt `(1, T)`: a text, or a message where the questions are conversations."""
        if isinstance(self.population.pool.pairs[0]["prompt"], str):
            inputs = self.tokenizer(prompt, return_tensors="pt")
        else:
            conversation = [{"role": "user", "content": prompt}]
            inputs = self.tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        length, limit = inputs["input_ids"].shape[1], self.policy.config.max_position_embeddings
        if length >= limit:
            raise Refusal(f"This prompt has {length:,} tokens, and an answer needs room. Shorten it to {limit - 1:,}.")
        return inputs

    def _sample(self, user: UserProfile) -> torch.Tensor:
        """Draw latents `(S, Z)` that the user's choices leave open."""
        return sample_latents(user, self.args.num_samples, self.population.pool, seed=self.args.seed)

    def _spread(self, samples: torch.Tensor) -> float:
        return float(samples.std(dim=0).norm())
