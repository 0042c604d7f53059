"""Options that recur are run once."""

import numpy as np
from datasets import Dataset

from np_trl.data.distinct_options import DistinctOptions


def pairs_of(num_rows: int, num_prompts: int, num_options: int) -> Dataset:
    rng, rows = np.random.default_rng(0), []
    for _ in range(num_rows):
        prompt, options = int(rng.integers(num_prompts)), rng.choice(num_options, 2, replace=False).tolist()
        # the tokens of a prompt and of an option have any length
        rows.append([[prompt] * (prompt + 1), *([10 + option] * (1 + option % 3) for option in options)])
    return Dataset.from_list(
        [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True)) for row in rows]
    )


def numbers(dataset: Dataset) -> np.ndarray:
    """A number for each option, of its own tokens and its prompt's: `(rows, 2)`."""
    return np.array(
        [[100 * row["prompt_ids"][0] + row[side][0] for side in ("chosen_ids", "rejected_ids")] for row in dataset]
    )


def test_each_option_is_there_once_and_its_values_come_back_to_every_row():
    dataset = pairs_of(300, num_prompts=5, num_options=5)
    distinct = DistinctOptions(dataset)
    values = numbers(distinct.pairs)
    assert len(distinct.pairs) == 15  # of five options to a prompt one has no other
    assert len(np.unique(values)) == 25
    np.testing.assert_array_equal(distinct.spread(values), numbers(dataset))
    vectors = np.stack([values, -values], axis=2)
    np.testing.assert_array_equal(distinct.spread(vectors)[..., 1], -numbers(dataset))


def test_options_that_do_not_recur_stay_in_their_pairs():
    dataset = pairs_of(6, num_prompts=5, num_options=100)
    distinct = DistinctOptions(dataset)
    assert distinct.pairs is dataset
    values = numbers(dataset)
    assert distinct.spread(values) is values


def test_one_completion_to_two_prompts_is_two_options():
    rows = [{"prompt_ids": [prompt], "chosen_ids": [7], "rejected_ids": [8]} for prompt in (1, 2)] * 4
    assert len(DistinctOptions(Dataset.from_list(rows)).pairs) == 2
