"""The distinct options of preference pairs: where answers recur, as those that many users compare do, each is run once."""

import numpy as np
import pyarrow as pa
from datasets import Dataset

from np_trl.data.pair_codes import TOKEN_COLUMNS, column_codes, option_token_codes


class DistinctOptions:
    """
    The options of tokenised pairs, each once, as pairs of two options to the same prompt.

    Where that would not spare half of the pairs, they stay as they are.

    Args:
        dataset ([`~datasets.Dataset`]):
            Pairs with `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Attributes:
        pairs ([`~datasets.Dataset`]): the same columns; a prompt with an odd number of options has one of them twice.
    """

    def __init__(self, dataset: Dataset):
        self.pairs, self._places = dataset, None
        codes = option_token_codes(dataset)  # (rows, 2)
        # where an option is first, in the columns one below the other
        _, first = np.unique(codes.T, return_index=True)
        prompts = np.tile(column_codes(dataset, ["prompt_ids"])[:, 0], 2)[first]
        pairs = _pair_within(prompts)  # (N, 2)
        if 2 * len(pairs) <= len(dataset):
            self.pairs, places = self._take(dataset, first[pairs]), np.empty(len(first), dtype=np.int64)
            places[pairs.ravel()] = np.arange(pairs.size)
            self._places = places[codes]

    @staticmethod
    def _take(dataset: Dataset, places: np.ndarray) -> Dataset:
        needed, rows = np.unique(places % len(dataset), return_inverse=True)
        rows, sides = rows.reshape(places.shape), places // len(dataset)
        table = dataset.select_columns(list(TOKEN_COLUMNS)).select(needed).with_format("arrow")[:]
        prompts, *completions = (table.column(name).combine_chunks() for name in TOKEN_COLUMNS)
        options, chosen, rejected = pa.concat_arrays(completions), *(rows + sides * len(needed)).T
        columns = (prompts.take(rows[:, 0]), options.take(chosen), options.take(rejected))
        return Dataset(pa.table(dict(zip(TOKEN_COLUMNS, columns, strict=True))))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values `(N, 2, ...)` of the options of `pairs`, as `(rows, 2, ...)` of those of the dataset."""
        return values if self._places is None else values.reshape(-1, *values.shape[2:])[self._places]


def _pair_within(groups: np.ndarray) -> np.ndarray:
    """Pair up the members of each group, `(N, 2)`; the last of an odd number with itself."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    return np.array(
        [
            (members[index], members[min(index + 1, len(members) - 1)])
            for members in np.split(order, starts)
            for index in range(0, len(members), 2)
        ]
    )
