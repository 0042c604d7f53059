"""
Make preference pairs of simulated users from UltraFeedback: `train.parquet`, `validation.parquet` and `test.parquet`.

A user goes by one aspect, or by a weighted sum of several, and chooses between the responses to a prompt. Prompts are split
by their hash (8 : 1 : 1), so none is in two files. Ties are left out; so are responses without a rating and repeated ones,
with counts in the log.

Helpful against honest users (HH, section 4.2 of the paper), on pairs on which they conflict:

```sh
python examples/prepare_ultrafeedback.py --output_dir data/ultrafeedback_hh
```

Three modes (HHT, appendix D.1):

```sh
python examples/prepare_ultrafeedback.py \
    --modes helpfulness honesty truthfulness \
    --output_dir data/ultrafeedback_hht
```

Every second pair conflicts (section 4.3.2):

```sh
python examples/prepare_ultrafeedback.py --conflict_rate 0.5 --output_dir data/ultrafeedback_hh_50
```

Users with weights of their own (appendix D.2; three modes make the three-dimensional setup):

```sh
python examples/prepare_ultrafeedback.py --mixture dirichlet --num_users 1500 --output_dir data/ultrafeedback_2d
```

Of any other table with scores of responses:

```sh
python examples/prepare_ultrafeedback.py \
    --dataset_name items.parquet --modes judge_quality brevity --output_dir data/alpacaeval
```

Then embed the texts with `embed_preferences.py`.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
from trl import TrlParser

from np_trl.data.loading import SPLITS, load_preferences, save_splits
from np_trl.populations.scored_responses import draw_mixtures, simulate_splits
from np_trl.populations.ultrafeedback import ultrafeedback_items


MIXTURE_PAIRS = 40  # of each training user


@dataclass
class ScriptArguments:
    output_dir: str = field(metadata={"help": "Folder for the three files."})
    repo_id: str | None = field(
        default=None, metadata={"help": "Dataset on the Hub to push the splits to, for `--dataset_name`."}
    )
    private: bool = field(default=False, metadata={"help": "Whether that dataset is private."})
    dataset_name: str = field(
        default="openbmb/UltraFeedback",
        metadata={"help": "UltraFeedback; or any table with `prompt`, `response` and scores, one row a response."},
    )
    modes: list[str] = field(
        default_factory=lambda: ["helpfulness", "honesty"],
        metadata={
            "help": "Scores that users go by. UltraFeedback has helpfulness, honesty, truthfulness, instruction_following."
        },
    )
    conflict_rate: float | None = field(
        default=1.0,
        metadata={"help": "Share of conflicting pairs (Def. 4.2) of each user. null in a YAML file: as it happens."},
    )
    mixture: str | None = field(
        default=None, metadata={"help": "dirichlet: each user weighs the modes. Default: each goes by one of them."}
    )
    concentration: float = field(default=0.5, metadata={"help": "Parameter of the Dirichlet distribution of weights."})
    num_train_users: int = field(default=1, metadata={"help": "Training users of each mode, without a mixture."})
    num_users: int = field(default=1500, metadata={"help": "Training users of a mixture."})
    pairs_per_user: int | None = field(
        default=None,
        metadata={"help": f"Pairs of a training user. Default: all there are, with a mixture {MIXTURE_PAIRS}."},
    )
    num_eval_users: int = field(
        default=100, metadata={"help": "Users of each mode, or of the mixture, in validation and in test."}
    )
    num_eval_pairs: int = field(default=30, metadata={"help": "Pairs of each of these users."})
    seed: int = field(default=0, metadata={"help": "Seed of weights and pairs. The split does not depend on it."})

    def __post_init__(self):
        if self.mixture not in (None, "dirichlet"):
            raise ValueError(f"`mixture={self.mixture!r}` is unknown. Choose 'dirichlet', or leave it out.")

    def draw_weights(self) -> dict[str, np.ndarray]:
        """Draw the weights of the users of each split."""
        num_train = self.num_train_users if self.mixture is None else self.num_users
        sizes = dict(zip(SPLITS, (num_train, self.num_eval_users, self.num_eval_users), strict=True))
        if self.mixture is None:
            return {split: np.eye(len(self.modes)).repeat(size, axis=0) for split, size in sizes.items()}
        return {
            split: draw_mixtures(size, len(self.modes), self.concentration, len(SPLITS) * self.seed + index)
            for index, (split, size) in enumerate(sizes.items())
        }

    def count_pairs(self) -> dict[str, int | None]:
        """The number of pairs of each user, `None` for all."""
        num_train = self.pairs_per_user
        if num_train is None and self.mixture is not None:
            num_train = MIXTURE_PAIRS
        return dict(zip(SPLITS, (num_train, self.num_eval_pairs, self.num_eval_pairs), strict=True))


def main(script_args: ScriptArguments) -> None:
    items = load_preferences(script_args.dataset_name)
    if "completions" in items.column_names:
        items = ultrafeedback_items(items, script_args.modes)
    splits = simulate_splits(
        items,
        script_args.modes,
        script_args.draw_weights(),
        script_args.count_pairs(),
        script_args.conflict_rate,
        script_args.seed,
    )
    if script_args.mixture is None:  # `group` says it
        splits = {split: dataset.remove_columns("weights") for split, dataset in splits.items()}
    save_splits(splits, script_args.output_dir, script_args.repo_id, script_args.private)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("np_trl").setLevel(logging.INFO)
    main(*TrlParser(ScriptArguments).parse_args_and_config())
