"""
The collator: users in, one padded batch out.

The batch contract, with U users, P pairs in all, C context pairs (at least 1, padded and masked), E embedding size:
what the target collator returns for the P target pairs (2P rows, chosen first, as in TRL); `context_embeds`
(U, C, 2, E), axis 2 = chosen, rejected; `context_mask` (U, C); `context_index` (2P,), row -> user. In evaluation also
`conditions` (U, 2): user and N_C.
"""

import zlib
from collections.abc import Callable
from typing import Any

import torch

from np_trl.data.preference_rows import EMBED_COLUMNS
from np_trl.data.tasks import EvaluationTask, Task, TaskSampling


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
        sampling ([`TaskSampling`]):
            How training tasks are drawn.
    """

    def __init__(self, target_collator: TokenTargets | EmbeddingTargets, sampling: TaskSampling):
        self.target_collator, self.sampling = target_collator, sampling

    def __call__(self, items: list[Task] | list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if isinstance(items[0], Task):
            return self._collate_tasks(items)
        if "context" in items[0]:
            return self._collate_drawn(items)
        return self.target_collator(items)

    def _collate_tasks(self, tasks: list[Task]) -> dict[str, torch.Tensor]:
        rows = tasks[0].rows
        contexts, targets = zip(*(task.draw(self.sampling) for task in tasks), strict=True)
        pairs = self.target_collator.read(rows, [index for target in targets for index in target])
        context_pairs = [index for context in contexts for index in context]
        # one row even where no user has a context, for its size
        context_embeds = rows.embeds(context_pairs or targets[0][:1])
        batch = self._pad(pairs, [len(target) for target in targets], context_embeds, [len(c) for c in contexts])
        if isinstance(tasks[0], EvaluationTask):
            batch["conditions"] = torch.tensor([(task.user, task.num_context) for task in tasks])
        return batch

    def _collate_drawn(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pairs = [pair for item in items for pair in item["target"]]
        context_embeds = stack_embeds([pair for item in items for pair in item["context"]] or pairs[:1])
        counts = [len(item["context"]) for item in items]
        batch = self._pad(pairs, [len(item["target"]) for item in items], context_embeds, counts)
        users = [zlib.crc32(str(item["user_id"]).encode()) for item in items]
        batch["conditions"] = torch.tensor(list(zip(users, counts, strict=True)))
        return batch

    def _pad(
        self, pairs: Any, num_targets: list[int], context_embeds: torch.Tensor, num_contexts: list[int]
    ) -> dict[str, torch.Tensor]:
        batch = self.target_collator(pairs)
        counts = torch.tensor(num_contexts)  # (U,)
        mask = torch.arange(max(1, *num_contexts)) < counts.unsqueeze(1)  # (U, C)
        padded = context_embeds.new_zeros(*mask.shape, *context_embeds.shape[1:])  # (U, C, 2, E)
        padded[mask] = context_embeds[: counts.sum()]
        index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(num_targets))  # (P,)
        return {**batch, "context_embeds": padded, "context_mask": mask, "context_index": index.repeat(2)}


def stack_embeds(pairs: list[dict]) -> torch.Tensor:
    """Stack the embeddings of pairs given as dicts: `(len(pairs), 2, E)`."""
    return torch.tensor([[pair[column] for column in EMBED_COLUMNS] for pair in pairs], dtype=torch.float32)
