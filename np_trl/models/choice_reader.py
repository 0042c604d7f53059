"""
The contract of a model that reads a user's choices. Policies and reward models keep it alike, so that nobody who uses them
needs to know which of the two a model is.

| method | returns |
|---|---|
| `read_pairs` | a user's choices as a context set, the arguments of `infer_latents` |
| `no_choices` | the context set of a user without choices: that of no pairs |
| `read_questions` | pairs as a context set, with what else their answers are predicted from |
| `answer_logits` | the log-odds that users choose the first option of pairs |
| `inferring_modules`, `inference_settings` | what latents depend on, for the fingerprint of the model |

A context set is a `dict` of tensors that begin with the axes users U = 1 and pairs C: `context_embeds` `(1, C, 2, E)`, where
axis 2 is chosen and rejected, `context_mask` `(1, C)`, and of a reward model `context_option_ids` `(1, C, 2)`. A user's
context sets are joined along the pairs.
"""

from collections.abc import Iterator

import torch
from torch import nn

from .texts import EMBED_COLUMNS, ID_COLUMNS, LARGEST_VALUE, SIDES, check_pair, describe_tie, describe_too_large


class ChoiceReaderMixin:
    """
    Mix into a model that has `infer_latents`. The class adds `embed_pairs`, which embeds pairs of texts, and
    [`~ChoiceReaderMixin.answer_logits`].
    """

    def embed_pairs(self, pairs: list[dict], tokenizer=None) -> torch.Tensor:
        """Embed pairs of texts `(1, C, 2, E)`, for [`ChoiceReaderMixin.read_pairs`]."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it embeds texts.")

    def answer_logits(
        self, latents: torch.Tensor, questions: dict[str, torch.Tensor], numbers: torch.LongTensor | None = None
    ) -> torch.Tensor:
        """
        Predict the answers of users to questions.

        Args:
            latents (`torch.Tensor` of shape `(P, Z)` or `(S, 1, Z)`):
                The latent of one user for each question; or those of S users, each of whom is asked all questions.
            questions (`dict[str, torch.Tensor]`):
                What [`ChoiceReaderMixin.read_questions`] returned.
            numbers (`torch.LongTensor` of shape `(P,)`, *optional*):
                Numbers of the questions that are asked. All of them, in order, if not given.

        Returns:
            `torch.Tensor` of shape `(P,)` or `(S, P)`: log-odds that the option called `chosen` is preferred. A question
            whose options change places changes the sign.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what users answer.")

    def inferring_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules that infer latents, with their names: by them, models that infer alike are recognised."""
        raise NotImplementedError(f"{type(self).__name__} does not say what infers its latents.")

    def inference_settings(self) -> dict:
        """Return the settings that decide how latents are inferred, beside those of the context encoder."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it infers latents.")

    def no_choices(self) -> dict[str, torch.Tensor]:
        """
        Make the context set of a user without choices.

        Returns:
            `dict[str, torch.Tensor]`: a context set of one pair (C = 1) that the mask leaves out.

        Raises:
            `ValueError`: if the model knows no users.
        """
        embeds = torch.zeros(1, 1, len(SIDES), self.config.context_config.embed_size, device=self.device)
        return {"context_embeds": embeds, "context_mask": torch.zeros(1, 1, dtype=torch.bool, device=self.device)}

    @torch.no_grad()
    def read_pairs(self, pairs: list[dict], tokenizer=None) -> dict[str, torch.Tensor]:
        """
        Read a user's choices.

        Args:
            pairs (`list[dict]`):
                C preference pairs, all of one kind: texts as in `embed_pairs`, or `chosen_embeds` and `rejected_embeds` of
                size E. None for a user without choices. A reward model knows options that recur by `chosen_option_id` and
                `rejected_option_id`, or by their texts.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Another tokenizer than that which a policy carries, for texts.

        Returns:
            `dict[str, torch.Tensor]`: the user's context set, the arguments of `infer_latents`.

        Raises:
            `ValueError`: if training would refuse a pair of texts ([`check_pair`]), or an embedding is not of size E or not
            finite, or those of a pair are the same; or if the model knows no users.
        """
        if not pairs:
            return self.no_choices()
        embedded = _is_embedded(pairs[0])
        _check_kinds(pairs, embedded)
        if embedded:
            embed_size = self.config.context_config.embed_size
            read = [_read_embeds(pair, index, embed_size) for index, pair in enumerate(pairs)]
            embeds = torch.stack(read).unsqueeze(0).to(self.device)  # (1, C, 2, E)
        else:
            embeds = self.embed_pairs(pairs, tokenizer)
        mask = torch.ones(1, len(pairs), dtype=torch.bool, device=self.device)  # (1, C)
        return {"context_embeds": embeds, "context_mask": mask}

    def read_questions(self, pairs: list[dict], tokenizer=None, reference=None) -> dict[str, torch.Tensor]:
        """
        Read pairs that users may be asked, once for many calls of [`ChoiceReaderMixin.answer_logits`].

        Args:
            pairs (`list[dict]`), tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                P pairs as in [`ChoiceReaderMixin.read_pairs`]. A policy needs texts.
            reference ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`], *optional*):
                The reference policy of a policy, run without users. The policy itself if not given.

        Returns:
            `dict[str, torch.Tensor]`: the context set of [`ChoiceReaderMixin.read_pairs`], and what else answers take.

        Raises:
            `ValueError`: as [`ChoiceReaderMixin.read_pairs`], or if a policy gets no texts.
        """
        return self.read_pairs(pairs, tokenizer)

    @torch.no_grad()
    def infer_user(self, pairs: list[dict], tokenizer=None) -> torch.Tensor:
        """
        Infer the latent of a user.

        Args:
            pairs (`list[dict]`), tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Those of [`ChoiceReaderMixin.read_pairs`].

        Returns:
            `torch.Tensor` of shape `(1, Z)`, for `latents` of the model's methods: for B rows `latents.expand(B, -1)`.

        Raises:
            `ValueError`: as [`ChoiceReaderMixin.read_pairs`].
        """
        return self.infer_latents(**self.read_pairs(pairs, tokenizer))


def _is_embedded(pair) -> bool:
    return isinstance(pair, dict) and set(EMBED_COLUMNS) <= pair.keys()


def _check_kinds(pairs: list[dict], embedded: bool) -> None:
    """Check that all pairs are of the kind of the first one: embeddings, or texts, which are checked where they are read."""
    for index, pair in enumerate(pairs):
        if not isinstance(pair, dict):
            check_pair(pair, f"Pair {index}", SIDES)
        elif not embedded and _is_embedded(pair):
            raise ValueError(
                f"Pair {index} is given by embeddings, but the first pair by texts. Give all pairs of a user in the same way."
            )
        elif embedded and (missing := [name for name in EMBED_COLUMNS if name not in pair]):
            raise ValueError(
                f"Pair {index} has no {missing}. Each pair needs {list(EMBED_COLUMNS)}, as the first one has."
            )


def _read_embeds(pair: dict, index: int, embed_size: int) -> torch.Tensor:
    """Read the embeddings of a pair `(2, E)`."""
    chosen, rejected = (_read_column(pair, name, index, embed_size) for name in EMBED_COLUMNS)
    ids = [pair.get(name) for name in ID_COLUMNS]  # options with different numbers are no tie
    if torch.equal(chosen, rejected) and ids[0] == ids[1]:
        raise ValueError(describe_tie(f"pair {index}", "embedded alike", chosen.tolist()))
    return torch.stack([chosen, rejected])


def _read_column(pair: dict, name: str, index: int, embed_size: int) -> torch.Tensor:
    try:
        values = torch.as_tensor(pair[name], dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`{name}` of pair {index} holds no numbers ({error}). Give a list of {embed_size} of them."
        ) from error
    if values.shape != (embed_size,) or not values.isfinite().all():
        raise ValueError(
            f"`{name}` has shape {tuple(values.shape)}, but this model takes ({embed_size},), and finite values. "
            f"Embed the option of pair {index} as in training."
        )
    if values.abs().max() > LARGEST_VALUE:
        raise ValueError(describe_too_large(f"`{name}` of pair {index}", float(values.abs().max())))
    return values
