"""
Preference pairs of many users, read from Arrow when they are needed.

One row is one pair: TRL's preference type plus `user_id`, with `chosen_embeds` and `rejected_embeds` where a context is
inferred. Rows keep their order; users are an index over them.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from datasets import Dataset

from np_trl.data.embedding_columns import EMBED_COLUMNS, to_matrix
from np_trl.data.pair_codes import column_codes, pair_codes
from np_trl.data.user_index import UserIndex
from np_trl.models.texts import ID_COLUMNS


class PreferenceRows:
    """
    A dataset of preference pairs, grouped by user.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with a `user_id`.
        max_length (`int`, *optional*), truncation (`str`, *optional*, defaults to `"keep_start"`):
            How the model's tokens of an option are cut: pairs that are the same then count once in an evaluation.
    """

    def __init__(self, dataset: Dataset, max_length: int | None = None, truncation: str = "keep_start"):
        self.dataset, self._cut = dataset, (max_length, truncation)
        index = UserIndex.of(dataset)
        self._users, self._order, self._offsets = index.users, index.order, index.offsets
        embed_columns = [name for name in EMBED_COLUMNS if name in dataset.column_names]
        self._embeds = dataset.select_columns(embed_columns).with_format("arrow")
        plain = dataset.with_format(None)
        self._ids = plain.select_columns(list(ID_COLUMNS)) if set(ID_COLUMNS) <= set(dataset.column_names) else None
        self._others = plain.remove_columns(embed_columns)

    def __len__(self) -> int:
        """Number of users."""
        return len(self._users)

    @cached_property
    def user_ids(self) -> list:
        """The users' ids, in the order of their first row."""
        return self._users.to_pylist()

    @property
    def counts(self) -> np.ndarray:
        """Number of pairs of each user, `(users,)`."""
        return np.diff(self._offsets)

    @property
    def is_context(self) -> np.ndarray:
        """Whether a column `role` says `"context"`, `(rows,)`: in an evaluation these rows are contexts only."""
        return self._roles[0]

    @property
    def is_target(self) -> np.ndarray:
        """Whether a column `role` says `"target"`, `(rows,)`. Rows without a role, and all without a column, may be either."""
        return self._roles[1]

    @cached_property
    def _roles(self) -> tuple[np.ndarray, np.ndarray]:
        if "role" not in self.dataset.column_names:
            return np.zeros(len(self.dataset), dtype=bool), np.zeros(len(self.dataset), dtype=bool)
        roles = self._others.select_columns("role")[:]["role"]
        unknown = sorted({repr(role) for role in roles if role not in ("context", "target", "", None)})
        is_context, is_target = (np.array([role == name for role in roles]) for name in ("context", "target"))
        if unknown or not (is_context | is_target).any():
            raise ValueError(
                f"The column `role` holds [{', '.join(unknown) or 'nothing'}]. It may hold 'context' and 'target' only, and be "
                "empty in rows that may be either. Leave it out where all rows may."
            )
        return is_context, is_target

    @property
    def max_contexts(self) -> np.ndarray:
        """Largest N_C of an evaluation that leaves each user a target, `(users,)`; -1 where there is none."""
        user = np.repeat(np.arange(len(self)), self.counts)
        return most_contexts(self._count_roles(user, ~self.is_target[self._order], ~self.is_context[self._order]))

    @cached_property
    def pair_codes(self) -> np.ndarray:
        """A number for each distinct pair, whichever of its options was chosen, `(rows,)`: [`pair_codes`]."""
        return pair_codes(self.dataset, *self._cut)

    @cached_property
    def pair_counts(self) -> np.ndarray:
        """Number of distinct pairs of each user that may be contexts only, either, and targets only: `(users, 3)`."""
        user = np.repeat(np.arange(len(self)), self.counts)
        codes = self.pair_codes[self._order]
        _, first, pairs = np.unique(user * (codes.max(initial=0) + 1) + codes, return_index=True, return_inverse=True)
        may_be_context, may_be_target = (
            np.bincount(pairs, ~banned[self._order]) > 0 for banned in (self.is_target, self.is_context)
        )
        return self._count_roles(user[first], may_be_context, may_be_target)

    def _count_roles(self, user: np.ndarray, may_be_context: np.ndarray, may_be_target: np.ndarray) -> np.ndarray:
        kinds = (may_be_context & ~may_be_target, may_be_context & may_be_target, ~may_be_context & may_be_target)
        return np.stack([np.bincount(user[kind], minlength=len(self)) for kind in kinds], axis=1)

    def of_user(self, user: int) -> np.ndarray:
        """Row numbers of a user's pairs, in the order of the dataset."""
        return self._order[self._offsets[user] : self._offsets[user + 1]]

    def groups(self, column: str) -> list[str]:
        """
        Read which group each user is in: what `column` says in the user's first row.

        Raises:
            `ValueError`: if there is no such column.
        """
        if column not in self.dataset.column_names:
            raise ValueError(
                f"`eval_group_column={column!r}` is no column of the dataset, which has {self.dataset.column_names}."
            )
        values = self._others.select_columns(column)[self._order[self._offsets[:-1]]][column]
        return [str(value) for value in values]

    def prompt_codes(self) -> np.ndarray:
        """A number for each distinct prompt, `(rows,)`."""
        if "prompt" not in self.dataset.column_names:
            raise ValueError(
                f"The dataset has no `prompt` column, only {self.dataset.column_names}, so prompts cannot be compared. "
                "Evaluate without `eval_disjoint_prompts`."
            )
        return column_codes(self.dataset, ["prompt"])[:, 0]

    def option_codes(self) -> np.ndarray | None:
        """
        A number for each distinct option, by its id or else its text: `(rows, 2)`, chosen and rejected; -1 for an option
        without. `None` for rows with neither, or with conversations.
        """
        for columns in (ID_COLUMNS, ("chosen", "rejected")):
            if all(
                getattr(self.dataset.features.get(name), "dtype", None) in ("string", "large_string")
                for name in columns
            ):
                return column_codes(self.dataset, columns)
        return None

    def take(self, indices: np.ndarray) -> list[dict]:
        """Read rows without their embeddings, as TRL's collator takes them."""
        columns = self._others[indices]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def option_ids(self, indices: np.ndarray) -> list[tuple[str | None, str | None]]:
        """Read the options' ids of rows, chosen and rejected; `None` where the dataset has none."""
        if self._ids is None:
            return [(None, None)] * len(indices)
        columns = self._ids[indices]
        return list(zip(*(columns[name] for name in ID_COLUMNS), strict=True))

    def embeds(self, indices: np.ndarray) -> torch.Tensor:
        """Read the embeddings of rows: `(len(indices), 2, E)`, axis 2 = chosen, rejected."""
        table = self._embeds[indices]
        return torch.from_numpy(np.stack([to_matrix(table.column(name)) for name in EMBED_COLUMNS], axis=1))

    def sample_embeds(self, max_rows: int = 50_000) -> Iterator[torch.Tensor]:
        """Read the embeddings of rows spread over all, at most `max_rows`: `(N, E)` at a time."""
        indices = range(0, len(self.dataset), -(-len(self.dataset) // max_rows))
        for start in range(0, len(indices), 1024):
            yield self.embeds(indices[start : start + 1024]).flatten(0, 1)


def most_contexts(counts: np.ndarray) -> np.ndarray:
    """
    Find the largest N_C that leaves a target.

    Args:
        counts (`np.ndarray` of shape `(users, 3)`):
            Number of pairs of each user that may be contexts only, either, and targets only. Contexts are taken from the first
            ones first.

    Returns:
        `np.ndarray` of shape `(users,)`; -1 where there is no target.
    """
    contexts, either, targets = counts.T
    return np.where(either + targets > 0, contexts + either - (targets == 0), -1)


def option_ids(dataset: Dataset) -> list[str]:
    """Return the ids of all options of a dataset, in order."""
    return sorted({key for name in ID_COLUMNS for key in dataset.unique(name) if key})
