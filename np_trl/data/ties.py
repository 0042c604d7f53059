"""Ties: pairs whose options are the same, in texts or in embeddings, from which nothing can be learned."""

import logging

import numpy as np
from datasets import Dataset

from np_trl.models.texts import SIDES, canonical, describe_tie


logger = logging.getLogger(__name__)


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

    Raises:
        `ValueError`: if none is left.
    """
    if not set(SIDES) <= set(dataset.column_names):
        return dataset
    columns = dataset.with_format(None).select_columns(list(SIDES))[:]
    pairs = zip(columns["chosen"], columns["rejected"], strict=True)
    ties = np.array([canonical(chosen) == canonical(rejected) for chosen, rejected in pairs], dtype=bool)
    return _leave_out(dataset, ties, name)


def leave_out_embedding_ties(dataset: Dataset, ties: np.ndarray, name: str, drop: bool) -> Dataset:
    """
    Find the pairs whose options have the same embedding.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs.
        ties (`np.ndarray` of shape `(rows,)`):
            Which of them are ties, from [`read_embeddings`].
        name (`str`):
            What to call the dataset in an error.
        drop (`bool`):
            Whether to drop these pairs, with a logged count, or to raise.

    Returns:
        [`~datasets.Dataset`]: the other rows, in their order.

    Raises:
        `ValueError`: if there is such a pair and `drop` is false, or if none is left.
    """
    if ties.any() and not drop:
        row = int(np.argmax(ties))
        shown = dataset.with_format(None)[row]
        shown = shown.get("chosen", shown["chosen_embeds"])
        raise ValueError(describe_tie(f"row {row} of the {name} dataset", "embedded alike", shown))
    return _leave_out(dataset, ties, name)


def _leave_out(dataset: Dataset, ties: np.ndarray, name: str) -> Dataset:
    if not ties.any():
        return dataset
    if ties.all():
        raise ValueError(
            f"All {len(ties)} pairs of the {name} dataset are ties, so that nothing is left to learn from. Look at how `chosen` "
            "and `rejected` were made."
        )
    logger.warning("Dropped %d of %d ties of the %s dataset.", ties.sum(), len(ties), name)
    return dataset.select(np.flatnonzero(~ties))
