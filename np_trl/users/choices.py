"""Choices as a model has read them: the key of a pair, and its context set."""

import hashlib
import hmac
import json
from dataclasses import dataclass
from functools import cached_property

import torch

from np_trl.models.texts import EMBED_COLUMNS, ID_COLUMNS, SIDES, canonical


@dataclass(frozen=True)
class Choice:
    """
    A choice that a model has read. Its text is not kept.

    Args:
        key (`str`):
            [`Choice.key_for`] of the pair; of a profile that np_trl 0.1.0 saved, [`key_of`] it.
        context (`dict[str, torch.Tensor]`):
            The choice as a context set, with `context_embeds` of shape `(1, 1, 2, E)`.
    """

    key: str
    context: dict[str, torch.Tensor]

    @classmethod
    def read(cls, model, tokenizer, pair: dict) -> "Choice":
        """Read a pair, as the model does: [`ChoiceReaderMixin.read_pairs`]."""
        choice = cls("", model.read_pairs([pair], tokenizer))
        return cls(choice.key_for(key_of(pair)), choice.context)

    @cached_property
    def _secret(self) -> bytes:
        return self.context["context_embeds"].cpu().numpy().tobytes()

    def key_for(self, pair_key: str) -> str:
        """
        The key under which this choice would be a given pair. It is keyed with the embeddings, so that it tells nothing to
        who does not have them: neither a list of questions nor another profile gives a pair away by its key.

        Args:
            pair_key (`str`):
                [`key_of`] the pair.
        """
        return hmac.new(self._secret, pair_key.encode(), hashlib.sha256).hexdigest()[:16]

    def is_of(self, pair_key: str) -> bool:
        """Whether this is the choice of a pair, given by [`key_of`]."""
        return self.key in (pair_key, self.key_for(pair_key))

    def is_same(self, other: "Choice") -> bool:
        """Whether another choice is the same to the model: whether the embeddings agree."""
        ours, theirs = (choice.context["context_embeds"] for choice in (self, other))
        return bool((ours - theirs.to(ours)).norm() <= 1e-3 * ours.norm())


def key_of(pair: dict) -> str:
    """The key of a pair: a hash of its texts and what the chat template takes, or of its embeddings and option ids."""
    names = SIDES if set(SIDES) <= pair.keys() else (*EMBED_COLUMNS, *(name for name in ID_COLUMNS if name in pair))
    parts = {name: canonical(pair.get(name)) for name in ("prompt", *names)}
    parts |= {name: canonical(pair[name]) for name in ("tools", "chat_template_kwargs") if pair.get(name)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_to_list).encode()).hexdigest()[:16]


def reverse(pair: dict) -> dict:
    """The opposite choice: chosen and rejected change places, and the columns whose names begin with either."""
    names = {"chosen": "rejected", "rejected": "chosen"}
    swapped = {}
    for name, value in pair.items():
        side, *rest = name.split("_", maxsplit=1)
        swapped["_".join([names.get(side, side), *rest])] = value
    return swapped


def join_contexts(contexts: list[dict[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    """Join context sets of the same users, in order, along their pairs."""
    return {name: torch.cat([context[name].to(device) for context in contexts], dim=1) for name in contexts[0]}


def _to_list(value) -> list:
    return torch.as_tensor(value).tolist()
