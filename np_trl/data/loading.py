"""Preference pairs from files or from the Hub, and their splits."""

import json
import logging
from pathlib import Path

import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Value,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.packaged_modules.csv.csv import Csv

from np_trl.data.conversations import to_conversations
from np_trl.data.embeddings import join_embeddings
from np_trl.data.pair_codes import pair_codes
from np_trl.data.preference_rows import ID_COLUMNS
from np_trl.data.validation import check_user_ids
from np_trl.files import whole_file
from np_trl.models.texts import plain_text, text_id


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_BUILDERS = {
    ".parquet": ("parquet", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip")
# columns whose values are names or texts, whatever they look like
_NAMES = ("user_id", *ID_COLUMNS, "text_id", "kind", "role")
_TEXTS = ("prompt", "chosen", "rejected")


def load_preferences(
    name: str,
    split: str = "train",
    where: list[str] | None = None,
    embeddings: str | None = None,
    embedding_kind: str = "response",
    config: str | None = None,
    conversational: bool = False,
) -> Dataset:
    """
    Load preference pairs.

    Texts and names of users stay what they are in the file, however much they look like numbers, dates or nothing: all columns
    of a CSV file are text.

    Args:
        name (`str`):
            A file (parquet, JSON, JSON lines, CSV or TSV; compressed or not), a directory written by `save_to_disk`, or the
            name of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset that has several.
        where (`list[str]`, *optional*):
            Conditions `column=value` on the rows, all of which must hold. Where there is no value, none holds.
        embeddings (`str`, *optional*):
            A file or dataset with the embeddings of the texts, for [`join_embeddings`].
        embedding_kind (`str`, *optional*, defaults to `"response"`):
            Which text was embedded.
        config (`str`, *optional*):
            Configuration of a dataset on the Hub that has several.
        conversational (`bool`, *optional*, defaults to `False`):
            Whether strings become conversations: [`to_conversations`].

    Returns:
        [`~datasets.Dataset`]

    Raises:
        `ValueError`: if there is no such split, a condition names no column, or no row meets them all.
    """
    dataset = _select(_load(name, split, config), where or [], name)
    if embeddings is not None:
        dataset = join_embeddings(dataset, _load(embeddings, "train"), embedding_kind)
    return to_conversations(dataset) if conversational else dataset


def hash_split(key: str) -> str:
    """
    Find the split of a prompt or a user by its hash: the same wherever it occurs, whatever other rows there are.

    Args:
        key (`str`):
            A prompt or a user.

    Returns:
        `str`: `"train"` for eight tenths of all keys, `"validation"` and `"test"` for a tenth each.
    """
    tenth = int(text_id(key), 16) % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def split_by_hash(dataset: Dataset, column: str) -> dict[str, Dataset]:
    """
    Split rows such that no value of a column is in two splits.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows.
        column (`str`):
            `"prompt"` or `"user_id"`, whose value [`hash_split`] looks at.

    Returns:
        `dict[str, Dataset]`: `"train"`, `"validation"` and `"test"`.

    Raises:
        `ValueError`: if a split is empty.
    """
    if column == "user_id":
        check_user_ids(dataset, "given")
    values = dataset.with_format(None).select_columns(column)[:][column]
    found = [hash_split(plain_text(value) if isinstance(value, list) else str(value)) for value in values]
    rows = {split: [index for index, name in enumerate(found) if name == split] for split in SPLITS}
    empty = [split for split, indices in rows.items() if not indices]
    if empty:
        raise ValueError(
            f"None of the {len(dataset)} rows falls into {empty}: validation and test get a tenth of the values of "
            f"`{column}` each. Give rows of more values of it."
        )
    return {split: dataset.select(indices) for split, indices in rows.items()}


def hold_out_users(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """
    Split rows by users: whom to train on, and whom to evaluate on. Hashes of their names decide, so that the same users are
    held out in every run.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs of at least two users.
        share (`float`):
            The share of users to evaluate on, between 0 and 1. At least one is, and at least one is not.

    Returns:
        `tuple` of two [`~datasets.Dataset`]: the pairs to train on and those to evaluate on, in their order.

    Raises:
        `ValueError`: if the share is no share, or there is one user only.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"`eval_users={share}` must lie between 0 and 1: the share of users to evaluate on, such as 0.1."
        )
    check_user_ids(dataset, "given")
    names = dataset.with_format(None).select_columns("user_id")[:]["user_id"]
    users = sorted(set(names), key=lambda name: text_id(str(name)))
    if len(users) < 2:
        raise ValueError(
            f"`eval_users={share}` needs at least 2 users, and there is {len(users)}. Give rows of more users."
        )
    held_out = set(users[: min(max(round(share * len(users)), 1), len(users) - 1)])
    rows = {kind: [index for index, name in enumerate(names) if (name in held_out) == kind] for kind in (False, True)}
    return dataset.select(rows[False]), dataset.select(rows[True])


def save_splits(
    splits: dict[str, Dataset], output_dir: str, repo_id: str | None = None, private: bool = False
) -> None:
    """
    Save preference pairs as `train.parquet`, `validation.parquet`, ..., with their numbers in the log.

    Args:
        splits (`dict[str, Dataset]`):
            Preference pairs by the name of their split.
        output_dir (`str`):
            Folder, which is made where it is absent.
        repo_id (`str`, *optional*):
            Name of a dataset on the Hub that they are pushed to as well, for `--dataset_name`.
        private (`bool`, *optional*, defaults to `False`):
            Whether that dataset is private, if it is new.
    """
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    for name, dataset in splits.items():
        path = Path(output_dir) / f"{name}.parquet"
        with whole_file(path) as part:
            dataset.to_parquet(part)
        logger.info("%s: %d pairs of %d users", path, len(dataset), len(dataset.unique("user_id")))
    if repo_id is not None:
        DatasetDict(splits).push_to_hub(repo_id, private=private)


def with_roles(contexts: Dataset, targets: Dataset) -> Dataset:
    """
    Join the pairs that users are known by with those that are predicted, for the users who have both.

    Args:
        contexts ([`~datasets.Dataset`]), targets ([`~datasets.Dataset`]):
            Preference pairs of the same users.

    Returns:
        [`~datasets.Dataset`] with the column `role`: `"context"` or `"target"`. Targets that a user is known by already, in
        either order, are left out, with a logged count.

    Raises:
        `ValueError`: if the ids of users are of two types, or nobody has both.
    """
    kinds = [dataset.features["user_id"] for dataset in (contexts, targets)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"`user_id` is of the type {kinds[0]} in the contexts and {kinds[1]} in the targets, so that nobody is in both. Read "
            "both files as text or both as numbers."
        )
    users = set(contexts["user_id"][:]) & set(targets["user_id"][:])
    if not users:
        raise ValueError("No user has both context and target pairs. Give rows of the same users.")
    parts = []
    for role, dataset in (("context", contexts), ("target", targets)):
        rows = [index for index, user in enumerate(dataset["user_id"]) if user in users]
        dataset = dataset.remove_columns("role") if "role" in dataset.column_names else dataset
        parts.append(dataset.select(rows).add_column("role", [role] * len(rows)))
    joined = concatenate_datasets(parts)
    keys = list(zip(joined["user_id"][:], pair_codes(joined).tolist(), strict=True))
    seen = set(keys[: len(parts[0])])
    known = [index for index in range(len(parts[0]), len(joined)) if keys[index] in seen]
    if not known:
        return joined
    logger.warning("Left out %d of %d targets that are contexts too.", len(known), len(parts[1]))
    return joined.select(np.delete(np.arange(len(joined)), known))


def _load(name: str, split: str, config: str | None = None) -> Dataset:
    path = Path(name)
    if suffix := _suffix(name):
        builder, kwargs = _BUILDERS[suffix]
        dataset = _load_as_text(builder, "train", data_files=name, **kwargs)
        return _with_names_of_json(dataset, path) if builder == "json" else dataset
    if path.is_dir() and any((path / file).exists() for file in ("state.json", "dataset_dict.json")):
        dataset = load_from_disk(name)
        if isinstance(dataset, DatasetDict):
            if split not in dataset:
                raise ValueError(
                    f"{name!r} has no split {split!r}, only {list(dataset)}. Name another folder or file."
                )
            dataset = dataset[split]
        return dataset.with_format(None)
    return _load_as_text(name, split, name=config)


def _suffix(name: str) -> str | None:
    """The suffix of a file's format, beneath that of its compression; none of another name."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _BUILDERS else None


def has_one_split(name: str) -> bool:
    """Whether the same rows are read of a file or folder, whichever split is asked for."""
    return _suffix(name) is not None or Path(name, "state.json").exists()


def _load_as_text(path: str, split: str, **kwargs) -> Dataset:
    """Load a dataset; of CSV files all columns as text, without values that count as absent."""
    if isinstance(load_dataset_builder(path, **kwargs), Csv):
        first = next(iter(load_dataset(path, split=split, streaming=True, nrows=1, **kwargs)), {})
        features = Features(dict.fromkeys(first, Value("string")))
        kwargs |= {"features": features, "keep_default_na": False, "na_filter": False}
    return load_dataset(path, split=split, **kwargs)


def _with_names_of_json(dataset: Dataset, path: Path) -> Dataset:
    """Names and texts as they stand in the file, where they were taken for dates or floats, or were text and numbers."""

    def is_taken(column: str) -> bool:
        kind = getattr(dataset.features.get(column), "dtype", "")
        is_mixed = type(dataset.features.get(column)).__name__ == "Json"
        return (
            is_mixed or kind.startswith(("timestamp", "date", "time")) or column in _NAMES and kind.startswith("float")
        )

    taken = [column for column in (*_NAMES, *_TEXTS) if is_taken(column)]
    if not taken or not path.is_file():
        return dataset
    # of a file that may be compressed
    options = {"sample_by": "document", "encoding": "utf-8-sig"}
    text = "".join(load_dataset("text", data_files=str(path), split="train", **options)["text"][:])
    literal = {"parse_int": _Literal, "parse_float": _Literal, "parse_constant": lambda _: None}
    if text.lstrip().startswith("["):
        rows = json.loads(text, **literal)
    else:
        rows = [json.loads(line, **literal) for line in text.split("\n") if line.strip()]
    for column in taken:
        values = [row.get(column) for row in rows]
        if column in _NAMES and _are_confused(values):
            continue
        if all(isinstance(value, (str, type(None))) for value in values):
            dataset = dataset.remove_columns(column).add_column(column, values)
    return dataset


class _Literal(str):
    """A number of JSON, as it is written."""


def _are_confused(values: list) -> bool:
    """Whether a number and a text are written alike, such as 7 and "7"."""
    numbers = {value for value in values if isinstance(value, _Literal)}
    return any(value in numbers and not isinstance(value, _Literal) for value in values if isinstance(value, str))


def _select(dataset: Dataset, where: list[str], name: str) -> Dataset:
    conditions = dict(condition.split("=", maxsplit=1) for condition in where if "=" in condition)
    unknown = set(conditions) - set(dataset.column_names)
    if unknown or len(conditions) < len(where):
        raise ValueError(
            f"The conditions {where} must each be `column=value`, of another column of {dataset.column_names}."
        )
    if not conditions:
        return dataset
    columns = dataset.with_format(None).select_columns(list(conditions))[:]
    keep = [
        all(value is not None and str(value) == wanted for value, wanted in zip(row, conditions.values(), strict=True))
        for row in zip(*(columns[column] for column in conditions), strict=True)
    ]
    if not any(keep):
        raise ValueError(f"No row of {name!r} meets the conditions {where}.")
    return dataset.select([index for index, kept in enumerate(keep) if kept])
