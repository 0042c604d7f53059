"""Rewards of texts: a reward model of embedded options with its embedder."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property

import torch
from torch import nn

from .choice_reader import ChoiceReaderMixin
from .pairs import check_latents, stack_latents
from .text_embedder import TextEmbedder
from .texts import ID_COLUMNS, KINDS, SIDES, check_pair, describe_tie, plain_text, text_id


class TextScoringMixin(ChoiceReaderMixin):
    """
    Mix into a reward model whose config has `embedder`, `option_ids` and `embed_size`.

    The embedder is no part of the model: it is loaded when the first text comes, and never saved with the weights.
    """

    @cached_property
    def text_embedder(self) -> TextEmbedder:
        """The embedder that `config.embedder` names. Assign a [`TextEmbedder`] to use another, as from a folder."""
        if self.config.embedder is None:
            raise ValueError(
                "This model has `embedder=None`, so it takes embeddings, not texts. Set `model.config.embedder` to the "
                'embedder of its training set: `{"name_or_path": ..., "pooling": ..., "kind": ...}`.'
            )
        return TextEmbedder.from_settings(self.config.embedder)

    def embed_pairs(self, pairs: list[dict], tokenizer=None) -> torch.Tensor:
        """
        Embed a user's choices, given as text.

        Args:
            pairs (`list[dict]`):
                C preference pairs with `chosen` and `rejected`, and `prompt` where it is embedded too.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Not needed: the embedder has its own.

        Returns:
            `torch.Tensor` of shape `(1, C, 2, E)`: the user's context set, for `infer_latents`. Without the learned
            vectors of options that recur: `infer_user` adds them.

        Raises:
            `ValueError`: if there are no pairs, or a pair lacks a text or is a tie, also to the embedder, or the model has no
            embedder.
        """
        options = self._options_of(pairs)
        embeds = self._embed(options).view(1, len(pairs), 2, -1)  # (1, C, 2, E)
        numbers = self._number_pairs(pairs)  # (1, C, 2)
        chosen, rejected = embeds.unbind(dim=2)  # (1, C, E) each
        # by rounding in other batches at most
        is_same = (chosen - rejected).norm(dim=-1) <= 1e-5 * chosen.norm(dim=-1)  # (1, C)
        ties = is_same & (numbers[..., 0] == numbers[..., 1])  # (1, C)
        for index in ties[0].nonzero().flatten().tolist():
            raise ValueError(describe_tie(f"Pair {index}", "the same to the embedder", pairs[index]["chosen"]))
        return embeds

    def inferring_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the context encoder and, where options recur, their vectors."""
        yield "context_encoder", self.context_encoder
        if self.config.option_ids:
            yield "option_vectors", self.option_vectors

    def inference_settings(self) -> dict:
        """Return the options that recur, and the settings of the embedder: the one that was assigned, or the config's."""
        assigned = vars(self).get("text_embedder")
        embedder = self.config.embedder if assigned is None else asdict(assigned)
        return {"option_ids": self.config.option_ids, "embedder": embedder}

    # Override: options that recur are known by a number too.
    def no_choices(self) -> dict[str, torch.Tensor]:
        """
        Make the context set of a user without choices: [`ChoiceReaderMixin.no_choices`].

        Raises:
            `ValueError`: if the model knows no users.
        """
        self._check_conditional()
        numbers = torch.zeros(1, 1, len(SIDES), dtype=torch.long, device=self.device)
        return {**super().no_choices(), "context_option_ids": numbers}

    def read_pairs(self, pairs: list[dict], tokenizer=None) -> dict[str, torch.Tensor]:
        """
        Read a user's choices: [`ChoiceReaderMixin.read_pairs`]. An option is known to `config.option_ids` by its text, or by
        `chosen_option_id` and `rejected_option_id`. No tokenizer is needed: the embedder has its own.

        Raises:
            `ValueError`: as [`ChoiceReaderMixin.read_pairs`], and if the model knows no users, or texts and no embedder.
        """
        self._check_conditional()
        context = super().read_pairs(pairs)
        if pairs:
            context["context_option_ids"] = self._number_pairs(pairs)
        return context

    def answer_logits(
        self, latents: torch.Tensor, questions: dict[str, torch.Tensor], numbers: torch.LongTensor | None = None
    ) -> torch.Tensor:
        """
        Predict the answers of users to questions: [`ChoiceReaderMixin.answer_logits`]. The log-odds are those of
        `choice_logits`: differences of rewards (eq. 7). Options are encoded once for all users.
        """
        embeds, ids = questions["context_embeds"][0], questions["context_option_ids"][0]  # (P, 2, E), (P, 2)
        if numbers is not None:
            embeds, ids = embeds[numbers.to(embeds.device)], ids[numbers.to(ids.device)]
        # one user a question, or one for all
        index = torch.arange(len(embeds), device=embeds.device) % latents.shape[-2]  # (P,)
        options, option_ids = torch.cat(embeds.unbind(dim=1)), ids.T.flatten()  # (2P, E), (2P,)
        return self.choice_logits(self(options, latents, context_index=index.repeat(2), option_ids=option_ids))

    @torch.no_grad()
    def score(
        self,
        options: list[dict],
        latents: torch.Tensor | None = None,
        context_index: torch.LongTensor | None = None,
        users: list | None = None,
    ) -> torch.Tensor:
        """
        Score options given as text.

        Args:
            options (`list[dict]`):
                N options with `completion`, and `prompt` where it is embedded too. An option is known to
                `config.option_ids` by its text, or by `option_id`.
            latents (`torch.Tensor` of shape `(U, Z)`, *optional*):
                Latents of the users. One serves all options. A user without choices if not given.
            context_index (`torch.LongTensor` of shape `(N,)`, *optional*):
                The user of each option. Not needed for one user, or one user an option, in order.
            users (`list`, *optional*):
                The users instead of `latents`: U latents of shape `(1, Z)`, or objects that have such `latents`.

        Returns:
            `torch.Tensor` of shape `(N,)`: rewards. Only their differences mean anything.

        Raises:
            `ValueError`: if an option lacks a text, or the model an embedder.

        Example:
        ```python
        >>> latents = model.infer_user([{"chosen": "take it slow", "rejected": "ask a buddy"}])  # (1, Z)
        >>> model.score([{"completion": "go slowly"}, {"completion": "call a friend"}], latents)  # (2,)
        ```
        """
        if users is not None:
            latents = stack_latents(users, self)
        elif latents is not None:
            check_latents(latents, self.config.context_config.latent_size)
        if latents is None and self.config.conditional:
            latents = self.infer_user([])
        embeds, numbers = self._embed(options), self.number_options(options)  # (N, E), (N,)
        outputs = self(embeds, latents=latents, context_index=context_index, option_ids=numbers)
        return outputs.logits.squeeze(-1)

    def _embed(self, options: list[dict]) -> torch.Tensor:
        """Embed options `(N, E)`."""
        embeds = self.text_embedder.embed_options(options, self.device)
        if embeds.shape[1] != self.config.embed_size:
            raise ValueError(
                f"The embedder {self.text_embedder.name_or_path!r} gives embeddings of size {embeds.shape[1]}, but this "
                f"model has `embed_size={self.config.embed_size}`. Name the embedder of its training set."
            )
        return embeds

    def number_options(self, options: list[dict]) -> torch.LongTensor:
        """
        Number options by their ids in `config.option_ids`, from 1; 0 for an option that is not there.

        Args:
            options (`list[dict]`):
                N options with `option_id`, or with `completion`, by whose text they are known.

        Returns:
            `torch.LongTensor` of shape `(N,)`.
        """
        numbers = {key: number for number, key in enumerate(self.config.option_ids or [], start=1)}
        ids = [option.get("option_id") or text_id(plain_text(option["completion"])) for option in options]
        return torch.tensor([numbers.get(str(key), 0) for key in ids], device=self.device)

    def _options_of(self, pairs: list[dict]) -> list[dict]:
        """The 2C options of pairs of texts: chosen and rejected of the first, then of the second, ..."""
        prompt = [part for part in KINDS[self.text_embedder.kind] if part == "prompt"]
        for index, pair in enumerate(pairs):
            check_pair(pair, f"Pair {index}", (*prompt, *SIDES))
        return [{**pair, "completion": pair[side]} for pair in pairs for side in SIDES]

    def _number_pairs(self, pairs: list[dict]) -> torch.LongTensor:
        """Number the options of pairs `(1, C, 2)`, which may be given by embeddings alone."""
        options = [
            {"option_id": pair.get(key), "completion": pair.get(side, "")}
            for pair in pairs
            for side, key in zip(SIDES, ID_COLUMNS, strict=True)
        ]
        return self.number_options(options).view(1, len(pairs), len(SIDES))

    def _check_conditional(self) -> None:
        if not self.config.conditional:
            raise ValueError("This model has `conditional=False`: it knows no users. Call `score` without `latents`.")
