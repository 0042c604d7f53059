"""
What policies write for users: how long, how repetitive, how far from the reference, and whether it is what the users want.

Answers are sampled to the prompts of the users' own target pairs, so neither the prompt's pair is among the choices that a
user is known by, nor, where prompts are kept apart, its prompt.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase, set_seed

from np_trl.data import PreferenceRows
from np_trl.data.ranges import check_at_least
from np_trl.evaluation.policy_evaluation import PolicyEvaluation
from np_trl.metrics import UserAccuracy
from np_trl.models.completion_log_probs import completion_log_probs
from np_trl.models.text_context import tokenize_prompt
from np_trl.models.texts import template_kwargs
from np_trl.populations.attributes import Attributes
from np_trl.populations.style import STYLE


# scores answers to prompts for users, who are given by their number: (prompts, texts, users) -> (answers,)
Judge = Callable[[list[str | list[dict]], list[str], np.ndarray], np.ndarray]
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.0}


def check_writer(path: str) -> None:
    """
    Check that a folder does not hold what plain transformers cannot write with.

    Raises:
        `ValueError`: if it holds an adapter or a reward model.
    """
    what = None
    if Path(path, "adapter_config.json").exists():
        what = "an adapter"
    elif Path(path, "config.json").exists() and AutoConfig.from_pretrained(path).model_type == "np_reward":
        what = "a reward model"
    if what is not None:
        raise ValueError(
            f"{path!r} is {what}, but a whole language model is needed. Name a base model or a merged policy."
        )


@torch.no_grad()
def write(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    latents: torch.Tensor | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 64,
) -> list[torch.Tensor]:
    """
    Sample an answer to the tokens of each prompt, for the user of the same row; for nobody without `latents`.

    Returns:
        `list[torch.Tensor]`: the tokens of each answer, up to its end-of-sequence token.
    """
    answers = []
    for start in range(0, len(prompt_ids), batch_size):
        batch = prompt_ids[start : start + batch_size]
        inputs = tokenizer.pad({"input_ids": batch}, padding_side="left", return_tensors="pt").to(model.device)
        users = {} if latents is None else {"latents": latents[start : start + batch_size].to(model.device)}
        outputs = model.generate(**inputs, **users, **SAMPLING, max_new_tokens=max_new_tokens)
        answers += [_cut(row, end_tokens(model)) for row in outputs[:, inputs["input_ids"].shape[1] :].cpu()]
    return answers


@torch.no_grad()
def infer_latents(model: nn.Module, rows: PreferenceRows, contexts: list[np.ndarray]) -> torch.Tensor:
    """Infer the latents `(U, Z)` of users by the rows of their choices, N_C of each."""
    num_context, embed_size = len(contexts[0]), model.config.context_config.embed_size
    embeds = [rows.embeds(context) if num_context else torch.zeros(1, 2, embed_size) for context in contexts]
    embeds = torch.stack(embeds).to(model.device)  # (U, C, 2, E)
    return model.infer_latents(embeds, torch.full(embeds.shape[:2], num_context > 0, device=model.device))


class Generations:
    """
    The users of an evaluation, and what policies write for them after N_C of their choices.

    Args:
        evaluation ([`PolicyEvaluation`]):
            The policy, its reference and the users.
        num_context (`int`):
            N_C.
        answers_per_user (`int`, *optional*, defaults to `2`), max_new_tokens (`int`, *optional*, defaults to `64`):
            How many answers are written for each user, and their largest length.
    """

    def __init__(
        self, evaluation: PolicyEvaluation, num_context: int, answers_per_user: int = 2, max_new_tokens: int = 64
    ):
        check_at_least(1, answers_per_user=answers_per_user, max_new_tokens=max_new_tokens)
        self.protocol, self.num_context, self.max_new_tokens = evaluation.protocol, num_context, max_new_tokens
        self.tokenizer, self.rows = evaluation.tokenizer, evaluation.rows
        self.model, self.reference = evaluation.model, evaluation.reference
        tasks = self.protocol.tasks(self.rows)
        first = {}  # draw of each user
        for task in map(tasks.__getitem__, range(len(tasks))):
            if task.num_context == num_context:
                first.setdefault(task.user, task)
        users, contexts, targets = [], [], []
        for user, task in first.items():
            context, target = task.draw()
            users += [user] * answers_per_user
            contexts += [context] * answers_per_user
            targets += [target[index % len(target)] for index in range(answers_per_user)]
        self.users, self.contexts, self.targets = np.array(users), contexts, targets  # of each answer
        pairs = self.rows.take(targets)
        self.prompts = [pair["prompt"] for pair in pairs]
        self.templates = [template_kwargs(pair) for pair in pairs]  # arguments of the chat template
        self.prompt_ids = self.tokenize(self.prompts)
        latents = infer_latents(self.model, self.rows, contexts[::answers_per_user])  # (users, Z)
        self.latents = latents.repeat_interleave(answers_per_user, dim=0)  # (answers, Z)

    def tokenize(self, prompts: list[str | list[dict]]) -> list[list[int]]:
        """Tokenise a prompt for each answer, in the place of its own, with the arguments of its chat template."""
        return [
            tokenize_prompt(prompt, self.tokenizer, **template)
            for prompt, template in zip(prompts, self.templates, strict=True)
        ]

    def evaluate(self, judge: Judge | None = None, opponent: nn.Module | None = None) -> dict[str, float]:
        """
        Describe the answers of the policy, of the base model and of an opponent, and judge them against the opponent's.

        Returns:
            `dict[str, float]`: `{policy, base, opponent}_tokens`, `_repetition`, `_distinct_2`, `_finished`, and
            `_perplexity` to the reference; `kl` to the reference, in nats a token; `win_rate` over the opponent, with its
            standard error over users, of all and of each group.
        """
        set_seed(self.protocol.seed)
        answers = self._write(self.model, self.latents)
        written = {"policy": answers, "base": self._write(self.reference)}
        if opponent is not None:
            written["opponent"] = self._write(opponent.eval())
        metrics = {"kl": self.kl(answers)}
        for name, texts in written.items():
            metrics |= {f"{name}_{key}": value for key, value in describe(texts, end_tokens(self.model)).items()}
            metrics[f"{name}_perplexity"] = self.perplexity(texts)
        self.texts = {
            name: self.tokenizer.batch_decode(answers, skip_special_tokens=True) for name, answers in written.items()
        }
        if judge is not None and opponent is not None:
            scores = [judge(self.prompts, self.texts[name], self.users) for name in ("policy", "opponent")]
            metrics |= self._win_rates(scores[0] - scores[1])
        return metrics

    def write(self, prompts: list[str | list[dict]], user: int) -> list[str]:
        """Write the policy's answers to other prompts, for one user."""
        latents = self.latents[self.users == user][:1].expand(len(prompts), -1)
        prompt_ids = [tokenize_prompt(prompt, self.tokenizer) for prompt in prompts]
        answers = write(self.model, self.tokenizer, prompt_ids, latents, self.max_new_tokens)
        return self.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _write(self, model: nn.Module, latents: torch.Tensor | None = None) -> list[torch.Tensor]:
        return write(model, self.tokenizer, self.prompt_ids, latents, self.max_new_tokens)

    def _win_rates(self, margins: np.ndarray) -> dict[str, float]:
        """How often a margin is positive, ties counting half: the mean over users, and that of each group."""
        named, groups = self.protocol.groups(self.rows), {"": np.ones(len(margins), dtype=bool)}
        if named is not None:
            names = np.array(named)[self.users]
            groups |= {f"{name}_": names == name for name in np.unique(names)}
        rates = {}
        for name, members in groups.items():
            rate = UserAccuracy().compute(margins=margins[members].tolist(), users=self.users[members].tolist())
            rates[f"{name}win_rate"] = rate["accuracy"]
            if np.isfinite(rate["accuracy_se"]):
                rates[f"{name}win_rate_se"] = rate["accuracy_se"]
        return rates

    @torch.no_grad()
    def kl(self, answers: list[torch.Tensor], batch_size: int = 8) -> float:
        """Mean over the tokens written of KL(policy || reference) given what is before them, in nats."""
        total, count = 0.0, 0
        for start in range(0, len(answers), batch_size):
            part = slice(start, start + batch_size)
            inputs, mask = self._join(self.prompt_ids[part], answers[part])
            written = mask[:, 1:]
            policy = (
                self.model(**inputs, latents=self.latents[part]).logits[:, :-1][written].float().log_softmax(dim=-1)
            )
            reference = self.reference(**inputs).logits[:, :-1][written].float().log_softmax(dim=-1)
            total += float((policy.exp() * (policy - reference)).sum())
            count += len(policy)
        return total / count

    def perplexity(self, answers: list[torch.Tensor]) -> float:
        """Perplexity of answers to the reference, without a user."""
        inputs, written = self._join(self.prompt_ids, answers)
        log_probs = completion_log_probs(self.reference, {**inputs, "completion_mask": written})
        return float((-log_probs.sum() / written.sum()).exp())

    def _join(
        self, prompt_ids: list[list[int]], answers: list[torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Join prompts and answers, padded on the right, and say which tokens are the answers': `(B, T)`."""
        rows = [torch.cat([torch.tensor(ids), answer]) for ids, answer in zip(prompt_ids, answers, strict=True)]
        lengths = torch.tensor([[len(ids), len(row)] for ids, row in zip(prompt_ids, rows, strict=True)])
        input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        positions = torch.arange(input_ids.shape[1])
        present = positions < lengths[:, 1:]
        inputs = {"input_ids": input_ids, "attention_mask": present.long()}
        inputs = {key: value.to(self.model.device) for key, value in inputs.items()}
        return inputs, (present & (positions >= lengths[:, :1])).to(self.model.device)


def end_tokens(model: nn.Module) -> list[int]:
    """The tokens with which a model ends an answer."""
    tokens = model.generation_config.eos_token_id
    return tokens if isinstance(tokens, list) else [tokens]


def describe(answers: list[torch.Tensor], ends: list[int]) -> dict[str, float]:
    """
    Mean number of tokens, share of trigrams that an answer has had before, share of bigrams that are distinct among those of
    all answers, and share of answers that ended.
    """
    repetitions, bigrams = [], []
    for answer in answers:
        trigrams = list(zip(*(answer[offset:].tolist() for offset in range(3)), strict=False))
        bigrams += zip(answer[:-1].tolist(), answer[1:].tolist(), strict=True)
        repetitions.append(1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0)
    return {
        "tokens": float(np.mean([len(answer) for answer in answers])),
        "repetition": float(np.mean(repetitions)),
        "distinct_2": len(set(bigrams)) / max(len(bigrams), 1),
        "finished": float(np.mean([answer[-1].item() in ends for answer in answers])),
    }


class StyleJudge:
    """
    Judges answers to the users of a simulated population: which of the attributes are as the user wants them, exactly.

    Args:
        rows ([`PreferenceRows`]):
            Pairs of the users, with the column `style`.
        attributes ([`Attributes`], *optional*):
            Those of the population; of the style population if not given.
    """

    def __init__(self, rows: PreferenceRows, attributes: Attributes = STYLE):
        if "style" not in rows.dataset.column_names:
            raise ValueError(
                "These users have no column `style`, so what they want of a text is unknown. Evaluate users of the population that "
                "the judge is for."
            )
        self.attributes = attributes
        self.styles = np.array([rows.dataset[int(rows.of_user(user)[0])]["style"] for user in range(len(rows))])

    def __call__(self, prompts: list, texts: list[str], users: np.ndarray) -> np.ndarray:
        return self.attributes.match(texts, self.styles[users]).mean(axis=1)

    def describe(self, texts: list[str], users: np.ndarray) -> dict[str, float]:
        """How often attributes are as wanted: in the mean, and where a user wants each of them, or its opposite."""
        styles = self.styles[users]  # (answers, A)
        matches, shares = self.attributes.match(texts, styles), {}
        for column, names in enumerate(zip(self.attributes.likes, self.attributes.opposites, strict=True)):
            for sign, name in zip((1, -1), names, strict=True):
                wanted = matches[styles[:, column] == sign, column]
                if len(wanted):
                    shares[f"steering_{name}"] = float(wanted.mean())
        return {"steering_accuracy": float(matches.mean()), **shares}


def reward_judge(models: dict[str, nn.Module], groups: list[str]) -> Judge:
    """
    Judge answers by dedicated reward models.

    Args:
        models (`dict[str, nn.Module]`):
            A reward model that scores texts ([`NPRewardModel.score`]) for each group.
        groups (`list[str]`):
            The group of every user.
    """
    missing = sorted(set(groups) - set(models))
    if missing:
        raise ValueError(f"The groups {missing} have no judge, only {sorted(models)}. Give each a reward model.")

    def judge(prompts: list[str], texts: list[str], users: np.ndarray) -> np.ndarray:
        options = [
            {
                "prompt": prompt,
                "completion": text if isinstance(prompt, str) else [{"role": "assistant", "content": text}],
            }
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        scores, of_users = np.empty(len(options)), np.array(groups)[users]
        for group in np.unique(of_users):
            members = np.flatnonzero(of_users == group)
            scores[members] = models[group].score([options[index] for index in members]).cpu().numpy()
        return scores

    return judge


def _cut(answer: torch.Tensor, ends: list[int]) -> torch.Tensor:
    """Cut an answer behind the token that ends it."""
    places = torch.isin(answer, torch.tensor(ends)).nonzero()
    return answer if len(places) == 0 else answer[: int(places[0]) + 1]
