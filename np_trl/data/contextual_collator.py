"""
The collator: users in, one padded batch out.

The batch contract, with U users, P pairs in all, C context pairs (at least 1, padded and masked), E embedding size:
what the target collator returns for the P target pairs (2P rows, chosen first, as in TRL); `context_embeds`
(U, C, 2, E), axis 2 = chosen, rejected; `context_mask` (U, C); `context_index` (2P,), row -> user. In evaluation also
`conditions` (U, 2): user and N_C, and of a stream (U, 3): the number of the task, too; `target_rows` (P,): the rows of the
pairs in their dataset; and `new_options` (P,): whether no context pair has an option of the target. Where options are
numbered also `option_ids` (2P,) and `context_option_ids` (U, C, 2).
"""

import hashlib
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch

from np_trl.data.embedding_columns import EMBED_COLUMNS, LARGEST_VALUE, describe_too_large
from np_trl.data.evaluation_tasks import EvaluationTask
from np_trl.data.preference_rows import ID_COLUMNS
from np_trl.data.tasks import Task


# tensors of a batch with a row for each user, not for each target pair
_USER_KEYS = (
    "context_embeds", "context_mask", "context_option_ids", "target_embeds", "target_mask", "target_option_ids",
    "latent_noise",
)  # fmt: skip


class TokenTargets:
    """
    Collate target pairs as tokens.

    Args:
        collator (`Callable`):
            TRL's [`~trl.trainer.dpo_trainer.DataCollatorForPreference`].
    """

    def __init__(self, collator: Callable):
        self.collator = collator

    def read(self, rows, indices) -> list[dict]:
        return rows.take(indices)

    def __call__(self, pairs: list[dict]) -> dict[str, torch.Tensor]:
        return self.collator(pairs)


class EmbeddingTargets:
    """Collate target pairs as embedded options: `option_embeds` (2P, E), and an `attention_mask` (2P, 1) of ones."""

    def read(self, rows, indices) -> torch.Tensor:
        return rows.embeds(indices)

    def __call__(self, pairs: torch.Tensor | list[dict]) -> dict[str, torch.Tensor]:
        embeds = pairs if isinstance(pairs, torch.Tensor) else stack_embeds(pairs)  # (P, 2, E)
        options = embeds.transpose(0, 1).flatten(0, 1)  # (2P, E)
        return {"option_embeds": options, "attention_mask": torch.ones(len(options), 1, dtype=torch.long)}


class ContextualCollator:
    """
    Draw a context set and a target set for each user, and pad them to a batch.

    Items are [`Task`]s, whose sets are drawn here; or rows of tasks that are drawn already, with `context` and `target`
    (lists of pairs), as an `IterableDataset` gives them; or plain pairs, which go to the target collator alone.

    Args:
        target_collator ([`TokenTargets`] or [`EmbeddingTargets`]):
            Collates the target pairs.
        option_ids (`list[str]`, *optional*):
            Options that the model numbers, from 1, by the columns `chosen_option_id` and `rejected_option_id`. All
            others get 0.
        embed_size (`int`, *optional*):
            Size E of an option's embedding. Needed for tasks that are drawn already: none of a batch may have a context.
    """

    def __init__(
        self,
        target_collator: TokenTargets | EmbeddingTargets,
        option_ids: list[str] | None = None,
        embed_size: int | None = None,
    ):
        self.target_collator, self.embed_size = target_collator, embed_size
        self._numbers = {key: number for number, key in enumerate(option_ids or [], start=1)}

    def __call__(self, items: list[Task] | list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if isinstance(items[0], Task):
            return self._collate_tasks(items)
        if all(_is_list_of_pairs(items[0].get(key)) for key in ("context", "target")):  # of a row, they may be texts
            return self._collate_drawn(items)
        return self.target_collator(items)

    def _collate_tasks(self, tasks: list[Task]) -> dict[str, torch.Tensor]:
        rows = tasks[0].rows
        contexts, targets = zip(*(task.draw() for task in tasks), strict=True)
        target_pairs = [index for target in targets for index in target]
        # one row even where no user has a context, for its size
        context_pairs = [index for context in contexts for index in context] or target_pairs[:1]
        batch = self.target_collator(self.target_collator.read(rows, target_pairs))
        context = {"context_embeds": rows.embeds(context_pairs)}
        if self._numbers:
            batch["option_ids"] = self._number(rows.option_ids(target_pairs)).T.flatten()  # (2P,)
            context["context_option_ids"] = self._number(rows.option_ids(context_pairs))
        batch |= _group(context, [len(context) for context in contexts], [len(target) for target in targets])
        if isinstance(tasks[0], EvaluationTask):
            batch["conditions"] = torch.tensor([(task.user, task.num_context) for task in tasks])
            batch["target_rows"] = torch.tensor(target_pairs)
            batch["new_options"] = torch.from_numpy(np.concatenate([task.has_new_options() for task in tasks]))
        return batch

    def _collate_drawn(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pairs = [pair for item in items for pair in item["target"]]
        context_pairs = [pair for item in items for pair in item["context"]]
        if isinstance(self.target_collator, EmbeddingTargets):
            batch = self.target_collator(stack_embeds(pairs, pair_places(items, "target"), self.embed_size))
        else:
            batch = self.target_collator(pairs)
        context_embeds = stack_embeds(context_pairs, pair_places(items, "context"), self.embed_size)
        context = {"context_embeds": context_embeds}
        if self._numbers:
            ids, context_ids = ([[pair.get(key) for key in ID_COLUMNS] for pair in p] for p in (pairs, context_pairs))
            batch["option_ids"] = self._number(ids).T.flatten()
            context["context_option_ids"] = self._number(context_ids)
        counts = [len(item["context"]) for item in items]
        batch |= _group(context, counts, [len(item["target"]) for item in items])
        users = [_user_number(item["user_id"]) for item in items]
        numbers = [[item["task_number"]] if "task_number" in item else [] for item in items]
        conditions = zip(users, counts, numbers, strict=True)
        batch["conditions"] = torch.tensor([(user, count, *number) for user, count, number in conditions])
        batch["new_options"] = torch.ones(len(pairs), dtype=torch.bool)
        return batch

    def _number(self, option_ids: list[list[str | None]]) -> torch.LongTensor:
        """Number the options of pairs: `(P, 2)`."""
        return torch.tensor([[self._numbers.get(key, 0) for key in pair] for pair in option_ids]).view(-1, 2)


def _group(
    context: dict[str, torch.Tensor], num_contexts: list[int], num_targets: list[int]
) -> dict[str, torch.Tensor]:
    """Pad what there is of all context pairs to one row a user, and say which rows of the targets are whose."""
    counts = torch.tensor(num_contexts)  # (U,)
    mask = torch.arange(max(1, *num_contexts)) < counts.unsqueeze(1)  # (U, C)
    batch = {"context_mask": mask}
    for key, values in context.items():
        batch[key] = values.new_zeros(*mask.shape, *values.shape[1:])  # (U, C, 2, ...)
        batch[key][mask] = values[: counts.sum()]
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(num_targets))  # (P,)
    return {**batch, "context_index": index.repeat(2)}


def _is_list_of_pairs(value) -> bool:
    return isinstance(value, list) and all(isinstance(pair, dict) for pair in value)


def _user_number(user_id) -> int:
    """A number of 63 bits for a streamed user, whom no other is likely to share it with, among billions. 7 is not "7"."""
    key = f"{'text' if isinstance(user_id, str) else 'number'} {user_id}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1


def pair_places(items: list[dict[str, Any]], part: str) -> list[str]:
    """Where the pairs of a batch of tasks are, for errors."""
    return list(
        chain.from_iterable(
            (f"pair {index} in the {part} of user {item['user_id']!r}" for index in range(len(item[part])))
            for item in items
        )
    )


def pad_pairs(batch: dict[str, torch.Tensor], num_pairs: int) -> dict[str, torch.Tensor]:
    """
    Repeat the last target pair of a batch, until there are as many as in the batches of other processes.

    Args:
        batch (`dict[str, torch.Tensor]`):
            A batch of P target pairs.
        num_pairs (`int`):
            Number of pairs wanted, at least P.

    Returns:
        `dict[str, torch.Tensor]`: the batch with `num_pairs` pairs. Contexts are as they were.
    """
    size = len(batch["context_index"]) // 2  # P
    index = torch.arange(num_pairs, device=batch["context_index"].device).clamp(max=size - 1)
    rows = torch.cat([index, index + size])  # chosen first
    padded = {}
    for key, values in batch.items():
        if key in _USER_KEYS:
            padded[key] = values
        else:  # (2P, ...), or (P,) for reference log-probs
            padded[key] = values[rows] if len(values) == 2 * size else values[index]
    return padded


def stack_embeds(pairs: list[dict], places: list[str] | None = None, embed_size: int | None = None) -> torch.Tensor:
    """
    Stack the embeddings of pairs given as dicts.

    Args:
        pairs (`list[dict]`):
            Pairs with `chosen_embeds` and `rejected_embeds`.
        places (`list[str]`, *optional*):
            What to call each pair in an error.
        embed_size (`int`, *optional*):
            Size E that an embedding must have.

    Returns:
        `torch.Tensor` of shape `(len(pairs), 2, E)`.

    Raises:
        `ValueError`: if an embedding is absent, no list of finite numbers or of another size, or if the two of a pair are the
        same.
    """
    if not pairs:
        return torch.zeros(0, 2, embed_size or 0)
    places = [f"pair {index}" for index in range(len(pairs))] if places is None else places
    read = [
        [_read_embedding(pair, column, place) for column in EMBED_COLUMNS]
        for pair, place in zip(pairs, places, strict=True)
    ]
    size = embed_size or len(read[0][0])
    for (chosen, rejected), place in zip(read, places, strict=True):
        if {len(chosen), len(rejected)} != {size}:
            raise ValueError(
                f"The embeddings of {place} are of sizes {len(chosen)} and {len(rejected)}, but must be of size {size}. Embed "
                "all options with the embedder of the model."
            )
        if np.array_equal(chosen, rejected):
            raise ValueError(
                f"`chosen_embeds` and `rejected_embeds` of {place} are the same. A tie says nothing about the user: leave the "
                "pair out."
            )
    return torch.from_numpy(np.array(read, dtype=np.float32))


def _read_embedding(pair: dict, column: str, place: str) -> np.ndarray:
    values = pair.get(column)
    if values is None:
        raise ValueError(
            f"{place} has no `{column}`, only {list(pair)}. Embed both options of each pair, with the same embedder."
        )
    try:
        embedding = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        embedding = np.empty(())
    if embedding.ndim != 1 or embedding.size == 0:
        raise ValueError(
            f"`{column}` of {place} is {str(values)[:60]!r}, but must be a list of numbers, such as [0.1, 0.2]."
        )
    if not (np.abs(embedding) <= np.finfo(np.float32).max).all():
        raise ValueError(
            f"`{column}` of {place} holds NaN or infinite values. Drop the pair from the stream or embed it again (a float16 "
            "embedder may overflow)."
        )
    if np.abs(embedding).max() > LARGEST_VALUE:
        raise ValueError(describe_too_large(f"`{column}` of {place}", np.abs(embedding).max()))
    return embedding
