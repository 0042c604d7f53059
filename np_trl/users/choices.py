"""Choices as a model reads them: the key of a pair, and its embeddings."""

import hashlib
import hmac
import json
from dataclasses import dataclass
from functools import cached_property

import torch

from np_trl.data.embedding_columns import LARGEST_VALUE, describe_too_large
from np_trl.data.preference_rows import EMBED_COLUMNS, ID_COLUMNS
from np_trl.models.pairs import empty_context
from np_trl.models.texts import SIDES, canonical, check_pair, describe_tie


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
        """Read a pair: [`read_choices`]."""
        choice = cls("", read_choices(model, tokenizer, [pair]))
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


@torch.no_grad()
def read_choices(model, tokenizer, pairs: list[dict], batch_size: int = 32) -> dict[str, torch.Tensor]:
    """
    Read choices as a model sees them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy or a reward model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`] or `None`):
            The tokenizer of a policy that embeds options with its trunk.
        pairs (`list[dict]`):
            C preference pairs: texts, as the model's `infer_user` takes them, or `chosen_embeds` and `rejected_embeds` of
            size E. All of one kind.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of pairs that are embedded at once.

    Returns:
        `dict[str, torch.Tensor]`: one context set, the arguments of the model's `infer_latents`.

    Raises:
        `ValueError`: if training would refuse a pair ([`check_pair`]), or an embedding is not of size E or not finite, or those
        of a pair are the same.
    """
    for index, pair in enumerate(pairs):
        _check_kind(pair, index, embedded=_is_embedded(pairs[0]))
    if not _is_embedded(pairs[0]):
        arguments = [] if tokenizer is None else [tokenizer]
        batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
        return join_contexts([model.read_pairs(batch, *arguments) for batch in batches], model.device)
    embed_size = model.config.context_config.embed_size
    embeds = torch.stack([_read_embeds(pair, index, embed_size) for index, pair in enumerate(pairs)])  # (C, 2, E)
    context = {"context_embeds": embeds.unsqueeze(0), "context_mask": torch.ones(1, len(pairs), dtype=torch.bool)}
    if numbers_options(model):
        options = [
            {"option_id": pair.get(f"{side}_option_id"), "completion": pair.get(side, "")}
            for pair in pairs
            for side in SIDES
        ]
        context["context_option_ids"] = model.number_options(options).view(1, len(pairs), len(SIDES))
    return {name: values.to(model.device) for name, values in context.items()}


def no_choices(model) -> dict[str, torch.Tensor]:
    """The context set of a user without choices: the arguments of the model's `infer_latents`."""
    context = empty_context(model.config.context_config.embed_size, model.device)
    if numbers_options(model):
        mask = context["context_mask"]
        context["context_option_ids"] = torch.zeros(*mask.shape, len(SIDES), dtype=torch.long, device=mask.device)
    return context


def join_contexts(contexts: list[dict[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    """Join context sets of the same users, in order, along their pairs."""
    return {name: torch.cat([context[name].to(device) for context in contexts], dim=1) for name in contexts[0]}


def numbers_options(model) -> bool:
    """Whether this is a reward model, which may know options by a number."""
    return hasattr(model.config, "option_ids")


def _is_embedded(pair) -> bool:
    return isinstance(pair, dict) and set(EMBED_COLUMNS) <= pair.keys()


def _check_kind(pair, index: int, embedded: bool) -> None:
    """Check that a pair is of the kind of the first one: texts, or embeddings."""
    if not isinstance(pair, dict) or not embedded and not _is_embedded(pair):
        check_pair(pair, f"Pair {index}", SIDES)
    elif not embedded:
        raise ValueError(
            f"Pair {index} is given by embeddings, but the first pair by texts. Give all pairs of a user in the same way."
        )
    elif missing := [name for name in EMBED_COLUMNS if name not in pair]:
        raise ValueError(
            f"Pair {index} has no {missing}. Each pair needs {list(EMBED_COLUMNS)}, as the first one has."
        )


def _read_embeds(pair: dict, index: int, embed_size: int) -> torch.Tensor:
    """Read the embeddings of a pair `(2, E)`."""
    columns = []
    for name in EMBED_COLUMNS:
        try:
            values = torch.as_tensor(pair[name], dtype=torch.float32)
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
        columns.append(values)
    ids = [pair.get(name) for name in ID_COLUMNS]  # options that are told apart by a number are no tie
    if torch.equal(*columns) and ids[0] == ids[1]:
        raise ValueError(describe_tie(f"pair {index}", "embedded alike", columns[0].tolist()))
    return torch.stack(columns)


def _to_list(value) -> list:
    return torch.as_tensor(value).tolist()
