"""Choices as a model reads them: what a pair is known by, and its embeddings."""

import hashlib
import json

import torch

from np_trl.data.preference_rows import EMBED_COLUMNS, ID_COLUMNS
from np_trl.models.pairs import SIDES, check_pairs, empty_context


def key_of(pair: dict) -> str:
    """What a choice is known by: a hash of its texts, or of its embeddings and the ids of its options."""
    names = SIDES if set(SIDES) <= pair.keys() else (*EMBED_COLUMNS, *(name for name in ID_COLUMNS if name in pair))
    parts = {name: pair.get(name) for name in ("prompt", *names)}
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
        `ValueError`: if a pair lacks a part, or an embedding is not of size E or not finite.
    """
    if not set(EMBED_COLUMNS) <= pairs[0].keys():
        arguments = [] if tokenizer is None else [tokenizer]
        batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
        return join_contexts([model.read_pairs(batch, *arguments) for batch in batches], model.device)
    check_pairs(pairs, EMBED_COLUMNS)
    embed_size, columns = model.config.context_config.embed_size, []
    for name in EMBED_COLUMNS:
        embeds = [torch.as_tensor(pair[name], dtype=torch.float32) for pair in pairs]
        for values in embeds:
            if values.shape != (embed_size,) or not values.isfinite().all():
                raise ValueError(
                    f"`{name}` has shape {tuple(values.shape)}, but this model takes ({embed_size},), and finite values. "
                    "Embed the option as in training."
                )
        columns.append(torch.stack(embeds))  # (C, E)
    context = {
        "context_embeds": torch.stack(columns, dim=1).unsqueeze(0),  # (1, C, 2, E)
        "context_mask": torch.ones(1, len(pairs), dtype=torch.bool),
    }
    if _numbers_options(model):
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
    if _numbers_options(model):
        mask = context["context_mask"]
        context["context_option_ids"] = torch.zeros(*mask.shape, len(SIDES), dtype=torch.long, device=mask.device)
    return context


def join_contexts(contexts: list[dict[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    """Join context sets of the same users, in order, along their pairs."""
    return {name: torch.cat([context[name].to(device) for context in contexts], dim=1) for name in contexts[0]}


def _numbers_options(model) -> bool:
    """Whether this is a reward model, which may know options by a number."""
    return hasattr(model.config, "option_ids")


def _to_list(value) -> list:
    return torch.as_tensor(value).tolist()
