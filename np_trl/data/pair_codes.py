"""
Which preference pairs are the same: those of which the model sees the same.

A pair is its two options, whichever was chosen, after its prompt. It is known by its texts, or by its tokens where a trainer
has made them, and by the embeddings of its options: two rows that agree in either are one pair. Embeddings agree where they
differ by rounding alone, as they do when one text is embedded in two batches.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from np_trl.data.embedding_columns import EMBED_COLUMNS, sketch_embeddings
from np_trl.models.texts import SIDES, canonical


TEXT_COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs")
TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
# by how much the embeddings of one pair may differ, as a share of the distance of its options
_ROUNDING = 1e-3
# one of them suffices but where another pair of the user lies between
_NUM_ORDERS = 3


def pair_codes(dataset: Dataset, max_length: int | None = None, truncation: str = "keep_start") -> np.ndarray:
    """
    Number the distinct pairs of a dataset.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs as texts or tokens, as embeddings, or both.
        max_length (`int`, *optional*), truncation (`str`, *optional*, defaults to `"keep_start"`):
            Of tokens, how many the model sees, and which: the first (`"keep_start"`) or the last (`"keep_end"`).

    Returns:
        `np.ndarray` of shape `(rows,)`: the same number for rows of the same pair, in either order.
    """
    columns, codes = set(dataset.column_names), []
    if set(TOKEN_COLUMNS) <= columns:
        codes.append(_number(*_unordered(*option_token_codes(dataset, max_length, truncation).T)))
    elif set(SIDES) <= columns:
        codes.append(_number(*_unordered(*option_text_codes(dataset).T)))
    if set(EMBED_COLUMNS) <= columns:
        codes += [_number(*_unordered(*column_codes(dataset, EMBED_COLUMNS).T)), *_rounded_codes(dataset)]
    return _join(codes) if codes else np.arange(len(dataset))


def is_same_pair(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """
    Number pairs such that two have the same number if they are the same to a model, whichever option was chosen.

    Args:
        one (`np.ndarray` of shape `(..., 2, E)`), other (`np.ndarray` of a shape that broadcasts with it):
            Embeddings of the options of pairs, or projections of these.

    Returns:
        `np.ndarray` of shape `(...)`: whether the embeddings are the same, but for rounding.
    """
    (first, second), (others, differences) = _sum_and_difference(one), _sum_and_difference(other)
    distance = np.linalg.norm(first - others, axis=-1) + np.minimum(
        np.linalg.norm(second - differences, axis=-1), np.linalg.norm(second + differences, axis=-1)
    )
    return distance <= _ROUNDING * np.linalg.norm(second, axis=-1)


def _sum_and_difference(embeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.moveaxis(embeds, -2, 0)
    return first + second, first - second


def _rounded_codes(dataset: Dataset) -> list[np.ndarray]:
    """Number the pairs of each user by their embeddings but for rounding: neighbours in one of several orders."""
    sketches = sketch_embeddings(dataset)  # (rows, 2, directions)
    users = column_codes(dataset, ["user_id"])[:, 0] if "user_id" in dataset.column_names else np.zeros(len(dataset))
    codes = []
    for direction in range(_NUM_ORDERS):
        order = np.lexsort((sketches[:, :, direction].sum(axis=1), users))
        is_same = is_same_pair(sketches[order[1:]], sketches[order[:-1]]) & (users[order[1:]] == users[order[:-1]])
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[order] = np.concatenate([[0], np.cumsum(~is_same)])
        codes.append(numbers)
    return codes


def option_token_codes(dataset: Dataset, max_length: int | None = None, truncation: str = "keep_start") -> np.ndarray:
    """
    Number the distinct options of a dataset by the tokens that are kept.

    Args:
        dataset ([`~datasets.Dataset`]):
            Tokenised preference pairs.
        max_length (`int`, *optional*), truncation (`str`, *optional*, defaults to `"keep_start"`):
            As in [`pair_codes`].

    Returns:
        `np.ndarray` of shape `(rows, 2)`, chosen and rejected.
    """
    digests = ([], [])
    for batch in dataset.select_columns(list(TOKEN_COLUMNS)).with_format("arrow").iter(batch_size=4096):
        prompts, *sides = (list(_rows_of_numbers(batch.column(name).combine_chunks())) for name in TOKEN_COLUMNS)
        for found, completions in zip(digests, sides, strict=True):
            for prompt, completion in zip(prompts, completions, strict=True):
                tokens = np.concatenate([prompt, completion])
                cut = 0 if max_length is None else max(0, len(tokens) - max_length)
                start, kept = (len(prompt) - cut, tokens[cut:]) if truncation == "keep_end" else (len(prompt), tokens)
                found.append(_digest(b"%d " % max(0, start) + kept[:max_length].tobytes()))
    return pa.array(digests[0] + digests[1], pa.binary(16)).dictionary_encode().indices.to_numpy().reshape(2, -1).T


def option_text_codes(dataset: Dataset) -> np.ndarray:
    """
    Number the distinct options of a dataset: a completion after its prompt, tools and template variables.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs of texts.

    Returns:
        `np.ndarray` of shape `(rows, 2)`, chosen and rejected.
    """
    completions = column_codes(dataset, SIDES)  # (rows, 2)
    before = [name for name in TEXT_COLUMNS if name not in SIDES and name in dataset.column_names]
    for codes in (column_codes(dataset, [name]) for name in before):
        completions = _number(completions.T.ravel(), np.tile(codes[:, 0], 2)).reshape(2, -1).T
    return completions


def column_codes(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """
    Number the distinct values of some columns of one type together.

    Args:
        dataset ([`~datasets.Dataset`]):
            Any rows.
        columns (`Sequence[str]`):
            Columns of strings, of lists of numbers, or of whatever JSON can say.

    Returns:
        `np.ndarray` of shape `(rows, columns)`; -1 where there is nothing, or an empty string.
    """
    values = [[] for _ in columns]
    for batch in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=4096):
        for column, found in zip(columns, values, strict=True):
            found.append(_hashable(batch.column(column)))
    encoded = pa.chunked_array([chunk for found in values for chunk in found]).combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_large_string(encoded.dictionary.type):
        codes[codes == encoded.dictionary.index("").as_py()] = -1
    return codes.reshape(len(columns), -1).T


def _hashable(column: pa.ChunkedArray) -> pa.Array:
    """Values that Arrow can compare, in the place of those that it cannot."""
    kind = column.type
    if pa.types.is_string(kind):
        return column.cast(pa.large_string()).combine_chunks()  # of which there may be more than 2 GiB
    is_json = isinstance(kind, pa.BaseExtensionType)
    if not pa.types.is_nested(kind) and not is_json:
        return column.combine_chunks()
    if (
        not is_json
        and not pa.types.is_struct(kind)
        and pa.types.is_primitive(kind.value_type)
        and not column.null_count
    ):
        rows = _rows_of_numbers(column.combine_chunks())
        return pa.array((_digest(row.tobytes()) for row in rows), pa.binary(16))
    texts = (json.dumps(canonical(value), default=str) for value in column.to_pylist())
    return pa.array([_digest(text.encode()) for text in texts], pa.binary(16))


def _rows_of_numbers(values: pa.Array) -> Iterator[np.ndarray]:
    ends = np.cumsum(pc.list_value_length(values).to_numpy(zero_copy_only=False))
    flat = values.flatten().to_numpy(zero_copy_only=False)
    flat = flat + flat.dtype.type(0)  # -0.0 is 0.0
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield flat[start:end]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _unordered(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.minimum(first, second), np.maximum(first, second)


def _number(codes: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Number the distinct tuples of codes, which are -1 or more."""
    for other in others:
        _, codes = np.unique((codes + 1) * (other.max() + 2) + other + 1, return_inverse=True)
    return codes


def _join(codes: list[np.ndarray]) -> np.ndarray:
    """Number the groups of rows that agree in one of several codes, or with a row that does."""
    joined = codes[0]
    while len(codes) > 1:
        before = joined
        for code in codes:
            smallest = np.full(code.max() + 1, joined.max() + 1)
            np.minimum.at(smallest, code, joined)
            joined = smallest[code]
        if (joined == before).all():
            break
    return joined
