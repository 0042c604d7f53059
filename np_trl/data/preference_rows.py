"""
Preference pairs of many users, read from Arrow when they are needed.

One row is one pair: TRL's preference type plus `user_id`, with `chosen_embeds` and `rejected_embeds` where a context is
inferred. Rows keep their order; users are an index over them.
"""

import json
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from np_trl.data.user_index import UserIndex


EMBED_COLUMNS = ("chosen_embeds", "rejected_embeds")
ID_COLUMNS = ("chosen_option_id", "rejected_option_id")


class PreferenceRows:
    """
    A dataset of preference pairs, grouped by user.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with a `user_id`.

    Attributes:
        is_context (`np.ndarray` of shape `(rows,)`, *optional*):
            Where there is a column `role`, whether it says `"context"`: in an evaluation these rows are contexts only, and
            those with `"target"` are targets only. Otherwise every row may be either.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        index = UserIndex.of(dataset)
        self._users, self._order, self._offsets = index.users, index.order, index.offsets
        embed_columns = [name for name in EMBED_COLUMNS if name in dataset.column_names]
        self._embeds = dataset.select_columns(embed_columns).with_format("arrow")
        self._ids = dataset.select_columns(list(ID_COLUMNS)) if set(ID_COLUMNS) <= set(dataset.column_names) else None
        self._others = dataset.remove_columns(embed_columns)
        self.is_context = self._read_roles() if "role" in dataset.column_names else None

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
    def max_contexts(self) -> np.ndarray:
        """Largest N_C of an evaluation that leaves each user a target, `(users,)`; -1 where there is none."""
        if self.is_context is None:
            return self.counts - 1
        contexts = np.add.reduceat(self.is_context[self._order], self._offsets[:-1], dtype=int)
        return np.where(contexts < self.counts, contexts, -1)

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
        values = self.dataset.select_columns(column)[self._order[self._offsets[:-1]]][column]
        return [str(value) for value in values]

    def prompt_codes(self) -> np.ndarray:
        """A number for each distinct prompt, `(rows,)`."""
        if "prompt" not in self.dataset.column_names:
            raise ValueError(
                f"The dataset has no `prompt` column, only {self.dataset.column_names}, so prompts cannot be told apart. "
                "Evaluate without `eval_disjoint_prompts`."
            )
        return self._codes(["prompt"])[:, 0]

    def option_codes(self) -> np.ndarray | None:
        """
        A number for each distinct option, by its id or else its text: `(rows, 2)`, chosen and rejected. `None` for rows
        with neither, or with conversations.
        """
        for columns in (ID_COLUMNS, ("chosen", "rejected")):
            if all(
                getattr(self.dataset.features.get(name), "dtype", None) in ("string", "large_string")
                for name in columns
            ):
                return self._codes(list(columns))
        return None

    def _codes(self, columns: list[str]) -> np.ndarray:
        """Number the distinct values of some columns together: `(rows, columns)`."""
        table = self.dataset.select_columns(columns).with_format("arrow")[:]
        values = pa.chunked_array([chunk for name in columns for chunk in table.column(name).chunks])
        values = values.combine_chunks()
        if pa.types.is_nested(values.type):  # conversations
            values = pa.array(map(json.dumps, values.to_pylist()), pa.string())
        codes = values.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        return codes.reshape(len(columns), -1).T

    def _read_roles(self) -> np.ndarray:
        roles = np.asarray(self.dataset.select_columns("role")[:]["role"])
        unknown = set(roles) - {"context", "target"}
        if unknown:
            raise ValueError(
                f"The column `role` holds {sorted(map(str, unknown))}. It may hold 'context' and 'target' only."
            )
        return roles == "context"

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
        return torch.from_numpy(np.stack([_to_matrix(table.column(name)) for name in EMBED_COLUMNS], axis=1))


def option_ids(dataset: Dataset) -> list[str]:
    """Return the ids of all options of a dataset, in order."""
    return sorted({key for name in ID_COLUMNS for key in dataset.unique(name) if key is not None})


def _to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Turn a column of lists of one length into a matrix, without a copy where there is one chunk."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)
