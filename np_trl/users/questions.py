"""Questions that a user may be asked: pairs of options, and what users of given latents would answer."""

import torch
from torch import nn

from np_trl.models.texts import check_pair
from np_trl.users.choices import key_of, read_choices, reverse
from np_trl.users.fingerprint import is_same_model
from np_trl.users.reference import reference_policy


# of a policy at a time: the largest number of sequences, and of logits, which are half a GiB in float32
MAX_ROWS, MAX_LOGITS = 64, 2**27


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
            The tokenizer of a policy.

    Raises:
        `ValueError`: if there are no pairs, or training would refuse one ([`read_choices`]), or a policy gets no texts.
    """

    def __init__(self, pairs: list[dict], model, tokenizer=None):
        self.pairs, self.model = list(pairs), model
        if not self.pairs:
            raise ValueError("The pool is empty. Pass at least one pair.")
        self.context = read_choices(model, tokenizer, self.pairs)  # (1, P, 2, E)
        self._keys = [(key_of(pair), key_of(reverse(pair))) for pair in self.pairs]
        self._in_order = torch.tensor([chosen <= rejected for chosen, rejected in self._keys])  # (P,)
        self._is_policy = not hasattr(model, "choice_logits")
        if self._is_policy:
            for index, pair in enumerate(self.pairs):
                check_pair(pair, f"Pair {index}")
            if tokenizer is None:
                raise ValueError("A policy answers in tokens. Pass its `tokenizer`.")
            self._tokens = model.tokenize_pairs(self.pairs, tokenizer)
            self._reference = self._margins(torch.arange(len(self)), None, reference_policy(model))  # (P,)

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
        numbers = numbers.to(self.model.device)
        if self._is_policy:
            return self.model.config.dpo_beta * (self._margins(numbers, latents) - self._reference[numbers])
        context_index = torch.arange(len(numbers), device=self.model.device).repeat(2)
        return self._score(numbers, latents, context_index)

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
        numbers = numbers.to(self.model.device)
        if self._is_policy:
            rows = latents.repeat_interleave(len(numbers), dim=0)
            return self.logits(rows, numbers.repeat(len(latents))).view(len(latents), len(numbers))
        # one user a sample of latents: options are encoded once
        return self._score(numbers, latents.unsqueeze(1), numbers.new_zeros(2 * len(numbers)))

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
        context = {name: values[0, numbers].unsqueeze(1) for name, values in self.context.items()}
        for name in context.keys() - {"context_mask"}:
            values = context[name]  # (N, 1, 2, ...)
            keep = chosen.view(-1, *[1] * (values.dim() - 1))
            context[name] = torch.where(keep, values, values.flip(dims=[2]))
        return context

    def _score(
        self, numbers: torch.LongTensor, latents: torch.Tensor, context_index: torch.LongTensor
    ) -> torch.Tensor:
        """Log-odds of a reward model."""
        chosen, rejected = self.context["context_embeds"][0, numbers].unbind(dim=1)  # (P, E) each
        ids = self.context.get("context_option_ids")
        ids = None if ids is None else ids[0, numbers].T.flatten()  # (2P,)
        outputs = self.model(
            torch.cat([chosen, rejected]), latents=latents, context_index=context_index, option_ids=ids
        )
        return self.model.choice_logits(outputs)

    def _margins(
        self, numbers: torch.LongTensor, latents: torch.Tensor | None, model: nn.Module | None = None
    ) -> torch.Tensor:
        """Difference of the log-probabilities of the two completions `(N,)`, by another model where one is given."""
        rows = torch.stack([2 * numbers, 2 * numbers + 1], dim=1).flatten()  # (2N,)
        latents = None if latents is None else latents.repeat_interleave(2, dim=0)
        length, vocab_size = self._tokens["input_ids"].shape[1], self.model.config.vocab_size
        batch_size = min(MAX_ROWS, max(1, MAX_LOGITS // (length * vocab_size)))
        sums = []
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            sums.append(
                self._log_probs(
                    rows[part], None if latents is None else latents[part], self.model if model is None else model
                )
            )
        chosen, rejected = torch.cat(sums).view(-1, 2).unbind(dim=1)
        return chosen - rejected

    @torch.no_grad()
    def _log_probs(self, rows: torch.LongTensor, latents: torch.Tensor | None, model: nn.Module) -> torch.Tensor:
        """Log-probabilities of completions, summed over their tokens, `(B,)`."""
        tokens = {name: values[rows] for name, values in self._tokens.items()}
        mask = tokens.pop("completion_mask")[:, 1:]
        logits = model(**tokens, latents=latents, use_cache=False).logits[:, :-1].float()  # (B, T - 1, V)
        log_probs = -nn.functional.cross_entropy(logits.transpose(1, 2), tokens["input_ids"][:, 1:], reduction="none")
        return (log_probs * mask).sum(dim=1)


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
