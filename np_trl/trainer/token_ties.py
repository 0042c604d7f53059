"""Tokenised pairs: what truncation leaves of them, and those whose options it makes the same."""

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from np_trl.data.pair_codes import TOKEN_COLUMNS
from np_trl.models.text_context import describe_token_tie, truncate_pair
from np_trl.models.texts import SIDES
from np_trl.trainer.np_dpo_config import NPDPOConfig


def find_token_ties(prepared: Dataset, args: NPDPOConfig, name: str) -> list[int]:
    """
    Find the pairs that are ties in the tokens that are kept, and check what is left of the others.

    Args:
        prepared ([`~datasets.Dataset`]):
            Rows with `prompt_ids`, `chosen_ids` and `rejected_ids`.
        args ([`NPDPOConfig`]):
            With `max_length`, `truncation_mode` and `drop_ties`.
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
    is_cut = np.zeros(len(prepared), dtype=bool) if args.max_length is None else lengths >= args.max_length
    ties = []
    for index in np.flatnonzero(is_cut | (chosen == rejected) | (chosen == 0) | (rejected == 0)).tolist():
        row = prepared[index]
        options = [row["prompt_ids"] + row[f"{side}_ids"] for side in SIDES]
        where = f"row {index} of the {name} dataset"
        kept = truncate_pair(len(row["prompt_ids"]), *options, args.max_length, args.truncation_mode, where)
        if kept[0] != kept[1]:
            continue
        if not args.drop_ties:
            raise ValueError(describe_token_tie(kept, args.max_length, where))
        ties.append(index)
    return ties
