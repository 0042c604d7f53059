"""Questions that a user may be asked: pairs of options, and what users of given latents would answer."""

import torch

from np_trl.users.choices import key_of, reverse
from np_trl.users.fingerprint import is_same_model
from np_trl.users.reference import reference_policy


class QuestionPool:
    """
    Pairs of options, read once by a model, of which a user may be asked one after another.

    What a user of latent z would answer is what the model says of it. To a reward model the log-odds of the first option
    are the difference of rewards (eq. 7). To a policy they are those of its implicit reward (eq. 8): `dpo_beta` times how
    much more than the reference it favours the option: [`reference_policy`].

    Args:
        pairs (`list[dict]`):
            Pairs as [`UserProfile.add`] takes them. Which option is called `chosen` does not matter. A policy needs texts.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy or a reward model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Another tokenizer than that which a policy carries.

    Raises:
        `ValueError`: if there are no pairs, or as [`ChoiceReaderMixin.read_questions`].
    """

    def __init__(self, pairs: list[dict], model, tokenizer=None):
        self.pairs, self.model = list(pairs), model
        if not self.pairs:
            raise ValueError("The pool is empty. Pass at least one pair.")
        self._questions = model.read_questions(self.pairs, tokenizer, reference_policy(model))
        self._keys = [(key_of(pair), key_of(reverse(pair))) for pair in self.pairs]
        self._in_order = torch.tensor([chosen <= rejected for chosen, rejected in self._keys])  # (P,)

    def __len__(self) -> int:
        """Number of pairs P."""
        return len(self.pairs)

    def __getitem__(self, number: int) -> dict:
        """The pair of a number."""
        return self.pairs[number]

    def unanswered(self, user) -> list[int]:
        """Return the numbers of the pairs that a user ([`UserProfile`]) has not been asked, either way round."""
        return [number for number, keys in enumerate(self._keys) if not any(map(user.has, keys))]

    @torch.no_grad()
    def logits(self, latents: torch.Tensor, numbers: torch.LongTensor) -> torch.Tensor:
        """
        Predict the answers of users to one question each.

        Args:
            latents (`torch.Tensor` of shape `(N, Z)`):
                Their latents.
            numbers (`torch.LongTensor` of shape `(N,)`):
                The number of the pair that each is asked.

        Returns:
            `torch.Tensor` of shape `(N,)`: log-odds that the option called `chosen` is preferred.
        """
        return self.model.answer_logits(latents, self._questions, numbers)

    @torch.no_grad()
    def cross_logits(self, latents: torch.Tensor, numbers: torch.LongTensor) -> torch.Tensor:
        """
        Predict the answers of users to the same questions.

        Args:
            latents (`torch.Tensor` of shape `(N, Z)`):
                Their latents.
            numbers (`torch.LongTensor` of shape `(P,)`):
                The numbers of the pairs that all are asked.

        Returns:
            `torch.Tensor` of shape `(N, P)`: log-odds that the option called `chosen` is preferred.
        """
        return self.model.answer_logits(latents.unsqueeze(1), self._questions, numbers)

    def draw_answers(
        self, latents: torch.Tensor, numbers: torch.LongTensor, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Draw what users may answer to one question each.

        Args:
            latents (`torch.Tensor` of shape `(N, Z)`), numbers (`torch.LongTensor` of shape `(N,)`):
                Those of [`~QuestionPool.logits`].
            generator (`torch.Generator`, *optional*):
                Draws. The option that a draw prefers is the same, whichever is called `chosen`.

        Returns:
            `dict[str, torch.Tensor]`: those of [`~QuestionPool.answers`].
        """
        draws = torch.rand(len(numbers), generator=generator)
        draws = torch.where(self._in_order[numbers], draws, 1 - draws)
        return self.answers(numbers, draws < self.logits(latents, numbers).sigmoid().cpu())

    def answers(self, numbers: torch.LongTensor, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Imagine answers.

        Args:
            numbers (`torch.LongTensor` of shape `(N,)`):
                The number of the pair that each of N users is asked.
            chosen (`torch.Tensor` of shape `(N,)`):
                `True` where the option called `chosen` is preferred, `False` where the other one is.

        Returns:
            `dict[str, torch.Tensor]`: N context sets of one pair, the arguments of the model's `infer_latents`.
        """
        numbers, chosen = numbers.to(self.model.device), chosen.to(self.model.device)
        context = {name: self._questions[name][0, numbers].unsqueeze(1) for name in self.model.no_choices()}
        for name in context.keys() - {"context_mask"}:
            values = context[name]  # (N, 1, 2, ...)
            keep = chosen.view(-1, *[1] * (values.dim() - 1))
            context[name] = torch.where(keep, values, values.flip(dims=[2]))
        return context


def as_pool(pool, user) -> QuestionPool:
    """Return a pool of questions, given as one or as pairs, for the model of a user ([`UserProfile`])."""
    if not isinstance(pool, QuestionPool):
        return QuestionPool(pool, user.model, user.tokenizer)
    if not is_same_model(pool.model, user.model):
        names = pool.model.config.name_or_path, user.model.config.name_or_path
        raise ValueError(
            f"The pool was read by another model ({names[0]!r}) than the user's ({names[1]!r}). Make it with `user.model`."
        )
    return pool
