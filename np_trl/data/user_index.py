"""The rows of a dataset by user, found once and kept beside the dataset."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from np_trl.files import whole_folder, write_whole


logger = logging.getLogger(__name__)

_FILES = ("users.arrow", "order.npy", "offsets.npy")
# the digests of the others, written last
_SEAL = "seal.json"


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
        Index a dataset with a column `user_id`, or read the index of the same users that stands beside its file since an
        earlier time. It is mapped into memory, so that processes share it. A dataset in memory is indexed again.
        """
        column = dataset.select_columns("user_id")
        if not column.cache_files:
            return cls.build(column)
        folder = Path(column.cache_files[0]["filename"]).parent / f"user-index-{_digest_users(column)}"
        if cls.is_whole(folder):
            return cls.load(folder)
        index = cls.build(column)
        try:
            cls.remove(folder)
            index.save(folder)
            return cls.load(folder)
        except OSError:  # nobody may write there, or another process was faster
            return cls.load(folder) if cls.is_whole(folder) else index

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
        with whole_folder(folder) as part:
            np.save(part / "order.npy", self.order)
            np.save(part / "offsets.npy", self.offsets)
            with pa.OSFile(str(part / "users.arrow"), "wb") as file:
                table = pa.table({"user_id": self.users})
                with pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table)
            write_whole(part / _SEAL, json.dumps({name: _digest_file(part / name) for name in _FILES}))

    @staticmethod
    def is_whole(folder: Path) -> bool:
        """Whether there is an index in a folder whose files are as they were written."""
        try:
            seal = json.loads((folder / _SEAL).read_text())
            return seal == {name: _digest_file(folder / name) for name in _FILES}
        except (OSError, ValueError):
            return False

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove the files of a damaged index, and nothing else."""
        if folder.exists():
            logger.warning("The index of users %s is damaged and made again.", folder)
            for name in (*_FILES, _SEAL):
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()

    @classmethod
    def load(cls, folder: Path) -> "UserIndex":
        """Map an index from its folder."""
        with pa.memory_map(str(folder / "users.arrow")) as file:
            users = pa.ipc.open_file(file).read_all().column("user_id").combine_chunks()
        # as plain arrays, whose slices cost less than those of a memmap
        order, offsets = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("order", "offsets"))
        return cls(users, order, offsets)


class _Digest:
    """A file that keeps nothing but the digest of what is written to it."""

    closed = False

    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=16)

    def write(self, data) -> int:
        self._hash.update(data)
        return len(data)

    def __str__(self) -> str:
        return self._hash.hexdigest()


def _digest_users(column: Dataset) -> str:
    digest = _Digest()
    table = column.with_format("arrow")[:]
    with pa.ipc.new_stream(pa.PythonFile(digest, mode="w"), table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None))
    return str(digest)


def _digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
