"""Which rows are whose: the rows of a dataset by user, found once and kept beside the dataset."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
from datasets import Dataset


@dataclass(frozen=True)
class UserIndex:
    """
    The users of a dataset and their rows.

    Args:
        users (`pa.Array`):
            The users' ids, in the order of their first row.
        order (`np.ndarray` of shape `(rows,)`):
            Row numbers, those of the first user first, each user's in the order of the dataset.
        offsets (`np.ndarray` of shape `(users + 1,)`):
            Where each user's rows start in `order`.
    """

    users: pa.Array
    order: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset) -> "UserIndex":
        """
        Index a dataset with a column `user_id`, or read the index that stands beside its file since an earlier time. It is
        mapped into memory, so that processes share it. A dataset in memory is indexed anew.
        """
        column = dataset.select_columns("user_id")
        if not column.cache_files:
            return cls.build(column)
        folder = Path(column.cache_files[0]["filename"]).parent / f"user-index-{column._fingerprint}"
        if not folder.exists():
            index = cls.build(column)
            try:
                index.save(folder)
            except OSError:  # nobody may write there
                return index
        return cls.load(folder)

    @classmethod
    def build(cls, dataset: Dataset) -> "UserIndex":
        """Index the column `user_id` of a dataset."""
        encoded = dataset.with_format("arrow")[:].column("user_id").combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        order = order.astype(np.int32) if len(order) < 2**31 else order
        counts = np.bincount(codes, minlength=len(encoded.dictionary))
        return cls(encoded.dictionary, order, np.concatenate([[0], np.cumsum(counts)]))

    def save(self, folder: Path) -> None:
        """Write the index to a folder, which appears when it is complete."""
        part = Path(f"{folder}.{uuid4().hex}")
        try:
            part.mkdir()
            np.save(part / "order.npy", self.order)
            np.save(part / "offsets.npy", self.offsets)
            with pa.OSFile(str(part / "users.arrow"), "wb") as file:
                table = pa.table({"user_id": self.users})
                with pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table)
            os.rename(part, folder)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            if not folder.exists():  # else another process was faster
                raise

    @classmethod
    def load(cls, folder: Path) -> "UserIndex":
        """Map an index from its folder."""
        with pa.memory_map(str(folder / "users.arrow")) as file:
            users = pa.ipc.open_file(file).read_all().column("user_id").combine_chunks()
        # as plain arrays, whose slices cost less than those of a memmap
        order, offsets = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("order", "offsets"))
        return cls(users, order, offsets)
