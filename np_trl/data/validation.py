"""Checks of preference data. Each error names the value, the limit and the fix, and comes before any training step."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from np_trl.data.embedding_columns import EMBED_COLUMNS, check_one_embedding_each, read_matrix
from np_trl.data.pair_codes import TEXT_COLUMNS, TOKEN_COLUMNS, option_text_codes
from np_trl.data.preference_rows import PreferenceRows
from np_trl.models.texts import SIDES, check_pair


logger = logging.getLogger(__name__)

# columns that trainers compute: in a dataset they are another run's. And columns of TRL's other formats, which it may take for the
# format of these rows
FOREIGN_COLUMNS = (
    *TOKEN_COLUMNS, "ref_chosen_logps", "ref_rejected_logps", "completion", "messages", "conversations",
)  # fmt: skip


def drop_foreign_columns(dataset: Dataset, name: str) -> Dataset:
    """
    Leave out columns named like those that a trainer computes itself, or reads in other formats, with a logged warning.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs.
        name (`str`):
            What to call the dataset in the log.

    Returns:
        [`~datasets.Dataset`]: the other columns.
    """
    found = [column for column in FOREIGN_COLUMNS if column in dataset.column_names]
    if found:
        logger.warning(
            "The columns %s of the %s dataset are left out: pairs are read of `chosen` and `rejected`, and all else is computed "
            "again.", found, name,
        )  # fmt: skip
    return dataset.remove_columns(found)


def check_preferences(dataset: Dataset, name: str, required: tuple[str, ...] = ()) -> None:
    """
    Check users and texts of a dataset of preference pairs.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs.
        name (`str`):
            What to call the dataset in an error.
        required (`tuple[str, ...]`, *optional*):
            Columns of texts that it must have. Without embedding columns, `"chosen"` and `"rejected"`.

    Raises:
        `ValueError`: if there are no rows, a column is absent, `user_id` does not say who chose, a prompt or completion is no
        text, or a pair is a tie.
    """
    if "user_id" not in dataset.column_names:
        raise ValueError(
            f"The {name} dataset has no `user_id` column, only {dataset.column_names}. Add one that says who chose; "
            "np_trl infers each user from that user's pairs."
        )
    if len(dataset) == 0:
        raise ValueError(f"The {name} dataset has no rows. Give preference pairs, or leave it out.")
    check_user_ids(dataset, name)
    if set(EMBED_COLUMNS).isdisjoint(dataset.column_names):
        required = SIDES
    missing = [column for column in required if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The {name} dataset has no {missing} column, only {dataset.column_names}. Each row is a pair of texts, `chosen` "
            "and `rejected`, or of their embeddings, `chosen_embeds` and `rejected_embeds`."
        )
    texts = dataset.select_columns([column for column in TEXT_COLUMNS if column in dataset.column_names])
    start = 0
    for batch in texts.with_format("arrow").iter(batch_size=10_000) if texts.column_names else ():
        if _may_be_bad(batch):
            rows = texts.with_format(None)[start : start + len(batch)]
            for index, values in enumerate(zip(*rows.values(), strict=True), start=start):
                check_pair(dict(zip(rows, values, strict=True)), f"row {index} of the {name} dataset", required=())
        start += len(batch)


def check_user_ids(dataset: Dataset, name: str) -> None:
    """
    Check that the column `user_id` says of each row whose it is.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `user_id`.
        name (`str`):
            What to call the dataset in an error.

    Raises:
        `ValueError`: if an id is null, blank, NaN, a number that floats round, or no single value.
    """
    ids = dataset.select_columns("user_id").with_format("arrow")[:].column("user_id")
    kind = ids.type.value_type if pa.types.is_dictionary(ids.type) else ids.type
    where = f"{len(ids)} rows of the {name} dataset"
    if ids.null_count:
        raise ValueError(f"`user_id` is null in {ids.null_count} of {where}. Fill it in or drop these rows.")
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (is_text or is_number or pa.types.is_boolean(kind)):
        raise ValueError(
            f"`user_id` of the {name} dataset is of the type {kind}, such as {ids[0].as_py()!r}, but must be text or a whole "
            "number, alike in all rows. Give each user a name."
        )
    if is_text:
        blank = pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(ids.cast(pa.large_string()))), 0)).as_py()
        if blank:
            raise ValueError(
                f"`user_id` is blank in {blank} of {where}. It would make one user of all of them: fill it in or drop these rows."
            )
    elif pa.types.is_floating(kind):
        values = ids.cast(kind).to_numpy()
        unknown = int((~np.isfinite(values)).sum())
        if unknown:
            raise ValueError(
                f"`user_id` is NaN or infinite in {unknown} of {where}. It would make one user of all of them: fill it in or drop "
                "these rows."
            )
        # above which a float of its precision does not hold every whole number
        if np.abs(values).max() >= 2 ** (np.finfo(values.dtype).nmant + 1):
            raise ValueError(
                f"`user_id` of the {name} dataset holds {np.abs(values).max():.0f} as a float, which rounds such numbers, so that "
                "users are merged. Read the ids as text or as whole numbers."
            )


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
        `ValueError`: if a column is absent, a row is no list of finite numbers, or sizes differ, from each other or the
        model's.
    """
    return read_embeddings(dataset, name, embed_size)[0]


def read_embeddings(dataset: Dataset, name: str, embed_size: int | None = None) -> tuple[int, np.ndarray]:
    """
    Check the embedding columns of a dataset, as [`check_embeddings`], and find the ties.

    Returns:
        `int`: the embedding size E; and `np.ndarray` of shape `(rows,)`: whether both options have the same embedding.
    """
    missing = [column for column in EMBED_COLUMNS if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The {name} dataset has no {missing} column, only {dataset.column_names}. Embed both options of each "
            "pair, with the same embedder."
        )
    if len(dataset) == 0:
        raise ValueError(f"The {name} dataset has no rows. Give preference pairs, or leave it out.")
    where, sizes, ties, start = f"the {name} dataset", {}, [], 0
    for batch in dataset.select_columns(list(EMBED_COLUMNS)).with_format("arrow").iter(batch_size=4096):
        sides = [read_matrix(batch.column(column), column, where, start) for column in EMBED_COLUMNS]
        for column, side in zip(EMBED_COLUMNS, sides, strict=True):
            sizes.setdefault(side.shape[1], f"`{column}`, rows {start} to {start + len(batch) - 1}")
        if len(sizes) > 1:
            found = f"sizes {sorted(sizes)} ({', '.join(f'{size}: {rows}' for size, rows in sizes.items())})"
            raise ValueError(
                f"The {name} dataset holds embeddings of {found}, but all must have one size. Embed all options with the same "
                "embedder."
            )
        ties.append(_equal_rows(*sides))
        start += len(batch)
    (size,) = sizes
    check_embed_size(size, name, embed_size)
    return size, np.concatenate(ties)


def check_embed_size(size: int, name: str, embed_size: int | None) -> None:
    """Raise a `ValueError` if the embeddings of a dataset, of `size`, are not of the size that the model takes."""
    if embed_size is not None and size != embed_size:
        raise ValueError(
            f"The {name} dataset holds embeddings of size {size}, but the model takes `embed_size={embed_size}`. Embed "
            f"with the embedder of the model, or build the model with `embed_size={size}`."
        )


def check_option_embeddings(dataset: Dataset, name: str, has_texts: bool) -> None:
    """
    Check that one text has one embedding.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs with checked texts and embeddings; without texts there is nothing to compare.
        name (`str`):
            What to call the dataset in an error.
        has_texts (`bool`):
            Whether the model sees the texts too. Then, and without the column `prompt`, an option with two is only warned of.

    Raises:
        `ValueError`: if a text has two.
    """
    columns = set(dataset.column_names)
    if set(SIDES) <= columns:
        refuse = "prompt" in columns and not has_texts
        check_one_embedding_each(dataset, option_text_codes(dataset), name, refuse)


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


def _equal_rows(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which rows of two matrices are equal; of most, the first values differ."""
    equal = one[:, 0] == other[:, 0]
    equal[equal] = (one[equal] == other[equal]).all(axis=1)
    return equal


def _may_be_bad(batch: pa.Table) -> bool:
    """Whether there are empty strings or ties in a batch. All but plain strings are always looked at."""
    if not all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in batch.schema.types):
        return True
    if not set(batch.column_names) <= {"prompt", *SIDES}:
        return True
    empty = [pc.any(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)).as_py() for column in batch.columns]
    nulls = [column.null_count > 0 for column in batch.columns]
    is_pair = set(SIDES) <= set(batch.column_names)
    return any(empty) or any(nulls) or (is_pair and pc.any(pc.equal(batch["chosen"], batch["rejected"])).as_py())
