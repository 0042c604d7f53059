"""Columns of embeddings, read as matrices, and what must hold of them."""

import logging
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from np_trl.models.texts import EMBED_COLUMNS, LARGEST_VALUE, describe_too_large


logger = logging.getLogger(__name__)

# by how much two embeddings of one text may differ, as a share of their length: float16 and other batches differ by less
_TOLERANCE = 0.02
_NUM_DIRECTIONS = 8


def to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Turn a column of lists of one length into a matrix, without a copy where there is one chunk."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1)


def read_matrix(column: pa.ChunkedArray, name: str, where: str, start: int = 0) -> np.ndarray:
    """
    Read embeddings that are not known to be well.

    Args:
        column (`pa.ChunkedArray`):
            The rows, or a part of them.
        name (`str`), where (`str`):
            What to call the column and what it is in, such as `"chosen_embeds"` and `"the train dataset"`, in an error.
        start (`int`, *optional*, defaults to 0):
            The number of its first row.

    Returns:
        `np.ndarray` of shape `(rows, E)`.

    Raises:
        `ValueError`: if a row is no list of numbers, is of another size than the others, or holds a value that is not finite
        or too large for float32.
    """
    values = column.combine_chunks()
    _check_type(values.type, name, where)
    if values.null_count:
        raise ValueError(
            f"`{name}` of row {start + _first(values.is_null())} of {where} is null. Drop the row or embed it again."
        )
    sizes = np.unique(pc.list_value_length(values).to_numpy(zero_copy_only=False))
    if len(sizes) > 1:
        raise ValueError(
            f"{where[0].upper()}{where[1:]} holds embeddings of sizes {sizes.tolist()} (`{name}`, rows {start} to "
            f"{start + len(values) - 1}), but all must have one size. Embed all options with the same embedder."
        )
    if sizes.tolist() == [0]:
        raise ValueError(f"`{name}` of {where} holds embeddings of size 0. Embed the options again.")
    flat = values.flatten()
    if flat.null_count:
        row = start + _first(flat.is_null()) // int(sizes[0])
        raise ValueError(f"`{name}` of row {row} of {where} holds None in a list. Drop the row or embed it again.")
    matrix = flat.to_numpy(zero_copy_only=False).reshape(len(values), -1)
    _check_values(matrix, name, where, start)
    return matrix


def check_one_embedding_each(dataset: Dataset, codes: np.ndarray, name: str, refuse: bool) -> None:
    """
    Find options whose embeddings differ: they are of two embedders, or of rows that were mixed up.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with checked embedding columns.
        codes (`np.ndarray` of shape `(rows, 2)`):
            A number for each distinct option, chosen and rejected.
        name (`str`):
            What to call the dataset in an error.
        refuse (`bool`):
            Whether to raise, or to warn: the prompts that were embedded too may not be there.

    Raises:
        `ValueError`: if there is such an option and `refuse` is true.
    """
    recurs = np.bincount(codes.ravel())[codes] > 1
    rows = np.flatnonzero(recurs.any(axis=1))
    if len(rows) == 0:
        return
    codes, sketches = codes[rows], sketch_embeddings(dataset.select(rows))
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    first = first[group.reshape(codes.shape)]  # (rows, 2): where the option occurs first
    flat = sketches.reshape(-1, sketches.shape[-1])
    distances = np.sqrt(np.square(sketches - flat[first]).mean(axis=-1))
    lengths = np.sqrt(np.square(flat).mean(axis=-1))
    differs = distances > _TOLERANCE * np.maximum(lengths.reshape(codes.shape), lengths[first])
    if differs.any():
        row, side = np.argwhere(differs)[0]
        message = (
            f"{differs.sum()} options of the {name} dataset have another embedding than the same text has elsewhere, such as the "
            f"{('chosen', 'rejected')[side]} one of row {rows[row]}, which row {rows[first[row, side] // 2]} has too. Embed each "
            "text once, with one embedder."
        )
        if refuse:
            raise ValueError(message)
        logger.warning(message)


def sketch_embeddings(dataset: Dataset) -> np.ndarray:
    """
    Project embeddings on a few random directions: distances, but for a factor, in little memory.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with the embedding columns.

    Returns:
        `np.ndarray` of shape `(rows, 2, directions)`, in double precision.

    Raises:
        `ValueError`: as [`read_matrix`].
    """
    sketches, start = [], 0
    for batch in dataset.select_columns(list(EMBED_COLUMNS)).with_format("arrow").iter(batch_size=4096):
        sides = [read_matrix(batch.column(column), column, "the dataset", start) for column in EMBED_COLUMNS]
        sketches.append(np.stack([side.astype(np.float64) @ _directions(side.shape[1]) for side in sides], axis=1))
        start += len(batch)
    return np.concatenate(sketches)


@cache
def _directions(size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, _NUM_DIRECTIONS))


def _check_type(kind: pa.DataType, name: str, where: str) -> None:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    numbers = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    if not is_list or not any(is_kind(kind.value_type) for is_kind in numbers):
        raise ValueError(
            f"`{name}` of {where} is of the type {kind}, but each row must be one list of numbers, such as [0.1, 0.2]. Give "
            "the embeddings as such; CSV files cannot hold lists, so save them as parquet or JSON lines."
        )


def _check_values(matrix: np.ndarray, name: str, where: str, start: int) -> None:
    # of all at once first, which is much faster than row by row; NaN is in no range
    if matrix.dtype.kind != "f" or -LARGEST_VALUE <= float(matrix.min()) <= float(matrix.max()) <= LARGEST_VALUE:
        return
    largest = np.abs(matrix).max(axis=1).astype(np.float64)  # NaN where there is one
    finite = largest <= np.finfo(np.float32).max
    if not finite.all():
        raise ValueError(
            f"`{name}` of row {start + int(np.argmin(finite))} of {where} holds NaN or infinite values. Drop the row or embed "
            "it again (a float16 embedder may overflow)."
        )
    row = int(np.argmax(largest))
    raise ValueError(describe_too_large(f"`{name}` of row {start + row} of {where}", largest[row]))


def _first(mask: pa.Array) -> int:
    return int(np.argmax(mask.to_numpy(zero_copy_only=False)))
