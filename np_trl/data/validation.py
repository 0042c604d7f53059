"""Checks of preference data. Each error names the value, the limit and the mend, and comes before any training step."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from np_trl.data.preference_rows import EMBED_COLUMNS, PreferenceRows


logger = logging.getLogger(__name__)


def check_preferences(dataset: Dataset, name: str) -> None:
    """
    Check users and texts of a dataset of preference pairs.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs.
        name (`str`):
            What to call the dataset in an error.

    Raises:
        `ValueError`: if `user_id` is absent or null, a prompt or completion is empty, or a pair is a tie.
    """
    if "user_id" not in dataset.column_names:
        raise ValueError(
            f"The {name} dataset has no `user_id` column, only {dataset.column_names}. Add one that says who chose; "
            "np_trl infers each user from that user's pairs."
        )
    nulls = dataset.select_columns("user_id").with_format("arrow")[:].column("user_id").null_count
    if nulls:
        raise ValueError(
            f"`user_id` is null in {nulls} of {len(dataset)} rows of the {name} dataset. Fill it in or drop these rows."
        )
    texts = dataset.select_columns([name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names])
    start = 0
    for batch in texts.with_format("arrow").iter(batch_size=10_000) if texts.column_names else ():
        if _may_be_bad(batch):
            for index, row in enumerate(batch.to_pylist(), start=start):
                _check_texts(row, index, name)
        start += len(batch)


def drop_ties(dataset: Dataset, name: str) -> Dataset:
    """
    Leave out pairs of identical options, with a logged count.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs; without texts there is nothing to compare.
        name (`str`):
            What to call the dataset in the log.

    Returns:
        [`~datasets.Dataset`]: the other rows, in their order.
    """
    if not {"chosen", "rejected"} <= set(dataset.column_names):
        return dataset
    columns = dataset.select_columns(["chosen", "rejected"])[:]
    pairs = zip(columns["chosen"], columns["rejected"], strict=True)
    kept = [index for index, (chosen, rejected) in enumerate(pairs) if chosen != rejected]
    if len(kept) == len(dataset):
        return dataset
    logger.warning("Dropped %d of %d ties of the %s dataset.", len(dataset) - len(kept), len(dataset), name)
    return dataset.select(kept)


def check_embeddings(dataset: Dataset, name: str, embed_size: int | None = None) -> int:
    """
    Check the embedding columns of a dataset.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs.
        name (`str`):
            What to call the dataset in an error.
        embed_size (`int`, *optional*):
            Size that the model takes.

    Returns:
        `int`: the embedding size E.

    Raises:
        `ValueError`: if a column is absent, sizes differ, a value is not finite, or the size is not the model's.
    """
    missing = [column for column in EMBED_COLUMNS if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The {name} dataset has no {missing} column, only {dataset.column_names}. Embed both options of each "
            "pair, with the same embedder."
        )
    sizes = set()
    start = 0
    for batch in dataset.select_columns(list(EMBED_COLUMNS)).with_format("arrow").iter(batch_size=4096):
        for column in EMBED_COLUMNS:
            values = batch.column(column).combine_chunks()
            sizes.update(np.unique(np.diff(_offsets(values))).tolist())
            if len(sizes) > 1:
                raise ValueError(
                    f"The {name} dataset holds embeddings of sizes {sorted(sizes)} (`{column}`, rows {start} to "
                    f"{start + len(batch) - 1}), but all must have one size. Embed all options with the same embedder."
                )
            finite = np.isfinite(values.flatten().to_numpy(zero_copy_only=False)).reshape(len(batch), -1).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"`{column}` of row {start + int(np.argmin(finite))} of the {name} dataset holds NaN or infinite "
                    "values. Drop the row or embed it again (a float16 embedder may overflow)."
                )
        start += len(batch)
    (size,) = sizes
    if embed_size is not None and size != embed_size:
        raise ValueError(
            f"The {name} dataset holds embeddings of size {size}, but the model takes `embed_size={embed_size}`. Embed "
            f"with the embedder of the model, or build the model with `embed_size={size}`."
        )
    return size


def select_users(dataset: Dataset, name: str, required_pairs: int, drop: bool, evaluation: bool = False) -> Dataset:
    """
    Find the users with too few pairs for a task.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs.
        name (`str`):
            What to call the dataset in an error.
        required_pairs (`int`):
            Pairs that a task needs.
        drop (`bool`):
            Whether to drop these users, with a logged count, or to raise.
        evaluation (`bool`, *optional*, defaults to `False`):
            Whether only pairs for contexts count, and one for a target, where a column `role` tells them apart.

    Returns:
        [`~datasets.Dataset`]: the rows of the other users, in their order.

    Raises:
        `ValueError`: if there is such a user and `drop` is false, or if nobody is left.
    """
    rows = PreferenceRows(dataset)
    counts = rows.max_contexts + 1 if evaluation else rows.counts
    short = np.flatnonzero(counts < required_pairs)
    if len(short) == 0:
        return dataset
    example = f"user {rows.user_ids[short[0]]!r} has {counts[short[0]]}"
    if not drop or len(short) == len(rows):
        raise ValueError(
            f"{len(short)} of {len(rows)} users of the {name} dataset have fewer than the {required_pairs} pairs that a "
            f"task needs ({example}). Set `drop_short_users=True` to leave such users out, or lower `num_targets`, "
            "`max_context` or `eval_num_contexts`."
        )
    logger.warning(
        "Dropped %d of %d users of the %s dataset with fewer than %d pairs (%s).",
        len(short), len(rows), name, required_pairs, example,
    )  # fmt: skip
    kept = np.ones(len(dataset), dtype=bool)
    for user in short:
        kept[rows.of_user(user)] = False
    return dataset.select(np.flatnonzero(kept))


def _may_be_bad(batch: pa.Table) -> bool:
    """Whether there are empty strings or ties in a batch. Conversations are always looked at."""
    if not all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in batch.schema.types):
        return True
    empty = [pc.any(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)).as_py() for column in batch.columns]
    nulls = [column.null_count > 0 for column in batch.columns]
    is_pair = {"chosen", "rejected"} <= set(batch.column_names)
    return any(empty) or any(nulls) or (is_pair and pc.any(pc.equal(batch["chosen"], batch["rejected"])).as_py())


def _check_texts(row: dict, index: int, name: str) -> None:
    for column, value in row.items():
        text = value[-1]["content"] if isinstance(value, list) and value else value
        if not (text or "").strip():
            raise ValueError(f"`{column}` of row {index} of the {name} dataset is empty. Fill it in or drop the row.")
    if {"chosen", "rejected"} <= row.keys() and row["chosen"] == row["rejected"]:
        raise ValueError(
            f"`chosen` and `rejected` of row {index} of the {name} dataset are the same ({str(row['chosen'])[:60]!r}). "
            "A tie says nothing about the user: drop it, or set `drop_ties=True`."
        )


def _offsets(values) -> np.ndarray:
    """Offsets of an Arrow array of lists, of variable or fixed size."""
    if hasattr(values, "offsets"):
        return values.offsets.to_numpy()
    return np.arange(len(values) + 1) * values.type.list_size
