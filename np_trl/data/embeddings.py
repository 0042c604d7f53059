"""
Embedding columns from a table that holds the embedding of every text once.

The table has the columns `text_id` (the first 16 hexadecimal digits of the text's SHA-256), `embedding`, and `kind` where
it holds several: `"response"`, the completion alone, or `"prompt_response"`, the prompt, a line break and the completion.
The text of a conversation is the contents of its messages, line breaks between them.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from datasets import Dataset, Features, List, Value

from np_trl.data.preference_rows import EMBED_COLUMNS, ID_COLUMNS


EMBEDDING_KINDS = ("response", "prompt_response")


def text_id(text: str) -> str:
    """Return the key of a text in a table of embeddings."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain_text(value: str | list[dict]) -> str:
    """Return a string as it is, and of a conversation the contents of its messages, line breaks between them."""
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)


def option_text(option: dict, kind: str) -> str:
    """
    Return the text that an embedding of an option is filed under.

    Args:
        option (`dict`):
            `completion`, and `prompt` for the kind `"prompt_response"`: strings or conversations.
        kind (`str`):
            What is embedded: `"response"` or `"prompt_response"`.
    """
    completion = plain_text(option["completion"])
    return completion if kind == "response" else f"{plain_text(option['prompt'])}\n{completion}"


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
        `ValueError`: if the kind is unknown or a column is absent.
    """
    columns = _check_columns(dataset, kind)
    for row in dataset.select_columns(columns):
        for side in ("chosen", "rejected"):
            yield {"completion": row[side]} | ({"prompt": row["prompt"]} if kind == "prompt_response" else {})


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

    def identify(batch: dict[str, list]) -> dict[str, list]:
        return {
            column: [text_id(plain_text(value)) for value in batch[side]]
            for side, column in zip(("chosen", "rejected"), ID_COLUMNS, strict=True)
        }

    return dataset.map(identify, batched=True, desc="Identifying options")


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
        `ValueError`: if the kind is unknown, a column is absent, or the table lacks a text.
    """
    _check_columns(dataset, kind)
    missing = [column for column in ("text_id", "embedding") if column not in table.column_names]
    if missing:
        raise ValueError(f"The table of embeddings has no {missing} column, only {table.column_names}.")
    table = table.with_format("numpy")
    rows = np.arange(len(table))
    if "kind" in table.column_names:
        rows = np.flatnonzero(table["kind"][:] == kind)
    position = {key: index for index, key in zip(rows, np.asarray(table["text_id"][:])[rows], strict=True)}
    embeddings = np.asarray(table["embedding"][:], dtype=np.float16)  # (texts, E)

    def embed(batch: dict[str, list]) -> dict[str, np.ndarray]:
        prompts = batch["prompt"] if kind == "prompt_response" else [None] * len(batch["chosen"])
        columns = {}
        for side, column in zip(("chosen", "rejected"), EMBED_COLUMNS, strict=True):
            pairs = zip(prompts, batch[side], strict=True)
            texts = [option_text({"prompt": prompt, "completion": completion}, kind) for prompt, completion in pairs]
            columns[column] = embeddings[[_find(position, text, kind) for text in texts]]
        return columns

    sizes = {column: List(Value("float16"), length=embeddings.shape[1]) for column in EMBED_COLUMNS}
    features = Features({**dataset.features, **sizes})
    return dataset.map(embed, batched=True, features=features, desc="Joining embeddings")


def _check_columns(dataset: Dataset, kind: str) -> list[str]:
    """Return the columns with the texts that are embedded."""
    if kind not in EMBEDDING_KINDS:
        raise ValueError(f"`kind={kind!r}` is unknown. Choose one of {list(EMBEDDING_KINDS)}.")
    columns = ["chosen", "rejected"] + (["prompt"] if kind == "prompt_response" else [])
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
