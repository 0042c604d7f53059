"""
Embedding columns from a table that holds the embedding of every text once.

The table has the columns `text_id` (the first 16 hexadecimal digits of the text's SHA-256), `embedding`, and `kind` where
it holds several: `"response"`, the completion alone, or `"prompt_response"`, the prompt, a line break and the completion.
The text of a conversation is the contents of its messages, line breaks between them.
"""

from collections.abc import Iterator

import numpy as np
from datasets import Dataset, Features, List, Value

from np_trl.data.embedding_columns import EMBED_COLUMNS, read_matrix
from np_trl.data.pair_codes import column_codes
from np_trl.data.preference_rows import ID_COLUMNS
from np_trl.models.texts import KINDS, SIDES, check_text, option_text, plain_text, text_id


__all__ = [
    "EMBEDDING_KINDS",
    "add_option_ids",
    "join_embeddings",
    "option_text",
    "options_of",
    "plain_text",
    "text_id",
]

EMBEDDING_KINDS = tuple(KINDS)
# by how much float16 may round an embedding, as a share of how far the embeddings spread in that dimension
_FLOAT16_ROUNDING = 0.01
# by how much two embeddings of one text may differ, as a share of their length
_TOLERANCE = 0.01


def options_of(dataset: Dataset, kind: str) -> Iterator[dict]:
    """
    Walk through the options of a dataset: of each pair the chosen one and the rejected one.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs.
        kind (`str`):
            What is embedded: `"response"` or `"prompt_response"`.

    Yields:
        `dict`: `completion`, and `prompt` for the kind `"prompt_response"`.

    Raises:
        `ValueError`: if the kind is unknown, a column is absent or a text is empty.
    """
    columns = _check_columns(dataset, kind)
    for index, row in enumerate(dataset.with_format(None).select_columns(columns)):
        for side in SIDES:
            yield _option(row, side, index)


def add_option_ids(dataset: Dataset) -> Dataset:
    """
    Add the columns `chosen_option_id` and `rejected_option_id` where they are absent: the [`text_id`] of each option.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs with `chosen` and `rejected`.

    Returns:
        [`~datasets.Dataset`]
    """
    if set(ID_COLUMNS) <= set(dataset.column_names):
        return dataset

    _check_columns(dataset, "response")

    def identify(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        texts = _option_texts(batch, indices, "response")
        return {column: list(map(text_id, texts[side])) for side, column in zip(SIDES, ID_COLUMNS, strict=True)}

    return dataset.map(identify, batched=True, with_indices=True, desc="Identifying options")


def join_embeddings(dataset: Dataset, table: Dataset, kind: str = "response") -> Dataset:
    """
    Add the columns `chosen_embeds` and `rejected_embeds`.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs with `chosen` and `rejected`, and `prompt` for the kind `"prompt_response"`: strings or
            conversations.
        table ([`~datasets.Dataset`]):
            Embeddings by `text_id`.
        kind (`str`, *optional*, defaults to `"response"`):
            Which text was embedded.

    Returns:
        [`~datasets.Dataset`], memory-mapped where `dataset` is.

    Raises:
        `ValueError`: if the kind is unknown, a column is absent, the table lacks a text, holds one with two embeddings, or holds
        embeddings that are not well.
    """
    _check_columns(dataset, kind)
    dataset = dataset.with_format(None)
    position, embeddings = _read_table(table, kind)

    def embed(batch: dict[str, list], indices: list[int]) -> dict[str, np.ndarray]:
        texts = _option_texts(batch, indices, kind)
        return {
            column: embeddings[[_find(position, text, kind) for text in texts[side]]]
            for side, column in zip(SIDES, EMBED_COLUMNS, strict=True)
        }

    sizes = {column: List(Value(str(embeddings.dtype)), length=embeddings.shape[1]) for column in EMBED_COLUMNS}
    features = Features({**dataset.features, **sizes})
    return dataset.map(embed, batched=True, with_indices=True, features=features, desc="Joining embeddings")


def _read_table(table: Dataset, kind: str) -> tuple[dict[str, int], np.ndarray]:
    """Where the embedding of each text of a kind is, by `text_id`, and the embeddings `(texts, E)`."""
    missing = [column for column in ("text_id", "embedding") if column not in table.column_names]
    if missing:
        raise ValueError(f"The table of embeddings has no {missing} column, only {table.column_names}.")
    if "kind" in table.column_names:
        table = table.select(np.flatnonzero(np.array(table.with_format(None)["kind"][:]) == kind))
    if len(table) == 0:
        raise ValueError(f"The table of embeddings has no row of the kind {kind!r}. Embed the texts with this `kind`.")
    column = table.select_columns("embedding").with_format("arrow")[:].column("embedding")
    embeddings = read_matrix(column, "embedding", "the table of embeddings")
    keys = table.select_columns("text_id").with_format(None)[:]["text_id"]
    _check_one_embedding_each(column_codes(table, ["text_id"])[:, 0], embeddings, keys)
    return {key: index for index, key in enumerate(keys)}, _compress(embeddings)


def _compress(embeddings: np.ndarray) -> np.ndarray:
    """The embeddings in half of the memory, unless rounding would make different ones equal."""
    if not np.abs(embeddings).max() <= np.finfo(np.float16).max:
        return embeddings.astype(np.float32)
    half, spread = embeddings.astype(np.float16), embeddings.std(axis=0, dtype=np.float64)
    parts = range(0, len(half), 4096)
    rounding = np.max(
        [np.abs(embeddings[i : i + 4096] - half[i : i + 4096].astype(float)).max(axis=0) for i in parts], axis=0
    )
    return half if (rounding <= _FLOAT16_ROUNDING * spread).all() else embeddings.astype(np.float32)


def _check_one_embedding_each(codes: np.ndarray, embeddings: np.ndarray, keys: list[str]) -> None:
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[group] != np.arange(len(codes)))
    for index in again:
        one, other = embeddings[first[group[index]]].astype(float), embeddings[index].astype(float)
        if np.linalg.norm(one - other) > _TOLERANCE * max(np.linalg.norm(one), np.linalg.norm(other)):
            raise ValueError(
                f"The table of embeddings holds two for the text with `text_id` {keys[index]!r}, in rows {first[group[index]]} "
                f"and {index}. Embed each text once, with one embedder; where there are several kinds, name them in a column "
                "`kind`."
            )


def _option_texts(batch: dict[str, list], indices: list[int], kind: str) -> dict[str, list[str]]:
    """What is embedded of the options of some rows, by their side."""
    columns = _columns(kind)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*(batch[name] for name in columns), strict=True)]
    return {
        side: [option_text(_option(row, side, index), kind) for row, index in zip(rows, indices, strict=True)]
        for side in SIDES
    }


def _option(row: dict, side: str, index: int) -> dict:
    """An option of a row: its completion, and its prompt where there is one."""
    names = {"completion": side} | ({"prompt": "prompt"} if "prompt" in row else {})
    for column in names.values():
        check_text(row[column], column, f"row {index} of the dataset")
    return {name: row[column] for name, column in names.items()}


def _columns(kind: str) -> list[str]:
    """The columns with the texts that are embedded."""
    return [*SIDES] + (["prompt"] if "prompt" in KINDS[kind] else [])


def _check_columns(dataset: Dataset, kind: str) -> list[str]:
    """Return the columns with the texts that are embedded."""
    if kind not in EMBEDDING_KINDS:
        raise ValueError(f"`kind={kind!r}` is unknown. Choose one of {list(EMBEDDING_KINDS)}.")
    columns = _columns(kind)
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The dataset has no {missing} column, only {dataset.column_names}. `kind={kind!r}` embeds {columns}."
        )
    return columns


def _find(position: dict[str, int], text: str, kind: str) -> int:
    key = text_id(text)
    if key not in position:
        raise ValueError(
            f"The table of embeddings has no {kind} with `text_id` {key!r} ({text[:60]!r}). Embed all texts of the "
            "dataset with the same embedder."
        )
    return position[key]
