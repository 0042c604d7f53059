"""Ties in tokens: pairs whose options are the same after truncation."""

import logging

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from np_trl.data.pair_codes import TOKEN_COLUMNS
from np_trl.models.text_context import describe_token_tie, truncate_pair
from np_trl.models.texts import SIDES


logger = logging.getLogger(__name__)


def drop_token_ties(prepared: Dataset, max_length: int | None, truncation: str, drop: bool, name: str) -> Dataset:
    """
    Leave out the pairs that are ties in the tokens that are kept, with a logged count.

    Args:
        prepared ([`~datasets.Dataset`]), max_length (`int`, *optional*), truncation (`str`), drop (`bool`), name (`str`):
            Those of [`find_token_ties`].

    Returns:
        [`~datasets.Dataset`]: the other rows.

    Raises:
        `ValueError`: as [`find_token_ties`].
    """
    ties = find_token_ties(prepared, max_length, truncation, drop, name)
    if not ties:
        return prepared
    logger.warning("Dropped %d pairs of the %s dataset that are ties in tokens.", len(ties), name)
    return prepared.select(np.delete(np.arange(len(prepared)), ties))


def find_token_ties(prepared: Dataset, max_length: int | None, truncation: str, drop: bool, name: str) -> list[int]:
    """
    Find the pairs that are ties in the tokens that are kept, and check what is left of the others.

    Args:
        prepared ([`~datasets.Dataset`]):
            Rows with `prompt_ids`, `chosen_ids` and `rejected_ids`.
        max_length (`int`, *optional*), truncation (`str`):
            Largest number of tokens of an option, and which are kept: [`truncate_pair`].
        drop (`bool`):
            Whether ties are to be dropped, or refused.
        name (`str`):
            What to call the dataset in an error.

    Returns:
        `list[int]`: numbers of the rows to drop.

    Raises:
        `ValueError`: if nothing is left of a completion, or if there are ties that are not to be dropped.
    """
    table = prepared.select_columns(list(TOKEN_COLUMNS)).with_format("arrow")[:]
    prompt, chosen, rejected = (pc.list_value_length(table[column]).to_numpy() for column in TOKEN_COLUMNS)
    lengths = prompt + np.minimum(chosen, rejected)
    is_cut = np.zeros(len(prepared), dtype=bool) if max_length is None else lengths >= max_length
    ties = []
    for index in np.flatnonzero(is_cut | (chosen == rejected) | (chosen == 0) | (rejected == 0)).tolist():
        row = prepared[index]
        options = [row["prompt_ids"] + row[f"{side}_ids"] for side in SIDES]
        where = f"row {index} of the {name} dataset"
        kept = truncate_pair(len(row["prompt_ids"]), *options, max_length, truncation, where)
        if kept[0] != kept[1]:
            continue
        if not drop:
            raise ValueError(describe_token_tie(kept, max_length, where))
        ties.append(index)
    return ties
