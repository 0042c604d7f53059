"""
Make preference pairs from datasets of many users: `train.parquet`, `validation.parquet` and `test.parquet`.

The choices of PRISM's participants (Kirk et al., 2024), split by participant (8 : 1 : 1):

```sh
python examples/prepare_preferences.py --source prism --output_dir data/prism
```

Simulated users who weigh the reward models of PersonalLLM (Zollo et al., 2024), split by prompt:

```sh
python examples/prepare_preferences.py --source personal_llm --num_users 1000 --output_dir data/personal_llm
```

The types of users of UltraFeedback-P (Poddar et al., 2024), split again by prompt, from the files of its authors:

```sh
python examples/prepare_preferences.py \
    --source ultrafeedback_p \
    --dataset_name uf_p_4/train.jsonl uf_p_4/test.jsonl \
    --output_dir data/ultrafeedback_p_4
```

Then embed the texts with `embed_preferences.py`.
"""

import logging
from dataclasses import dataclass, field

from datasets import Dataset, concatenate_datasets
from personal_llm import personal_llm_items, reward_models
from prism import prism_preferences
from trl import TrlParser
from ultrafeedback_p import ultrafeedback_p_preferences

from np_trl.data.loading import SPLITS, load_preferences, save_splits, split_by_hash
from np_trl.populations.scored_responses import draw_mixtures, simulate_splits


HUB_NAMES = {"prism": "HannahRoseKirk/prism-alignment", "personal_llm": "namkoong-lab/PersonalLLM"}


@dataclass
class ScriptArguments:
    source: str = field(metadata={"help": "Whose format it is: prism, personal_llm or ultrafeedback_p."})
    output_dir: str = field(metadata={"help": "Folder for the three files."})
    repo_id: str | None = field(
        default=None, metadata={"help": "Dataset on the Hub to push the splits to, for `--dataset_name`."}
    )
    private: bool = field(default=False, metadata={"help": "Whether that dataset is private."})
    dataset_name: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files, or datasets on the Hub. Default: the source's own name on the Hub, where it has one."
        },
    )
    split: str = field(default="train", metadata={"help": "Split of a dataset on the Hub."})
    opening_turns_only: bool = field(
        default=True, metadata={"help": "prism: opening turns as strings; otherwise all turns as conversations."}
    )
    num_users: int = field(default=1000, metadata={"help": "personal_llm: training users."})
    pairs_per_user: int = field(default=40, metadata={"help": "personal_llm: pairs of each of them."})
    num_eval_users: int = field(default=100, metadata={"help": "personal_llm: users in validation and in test."})
    num_eval_pairs: int = field(default=30, metadata={"help": "personal_llm: pairs of each of these."})
    concentration: float = field(
        default=0.05, metadata={"help": "personal_llm: parameter of the Dirichlet distribution of users' weights."}
    )
    conflict_rate: float | None = field(
        default=None, metadata={"help": "personal_llm: share of conflicting pairs. Default: as it happens."}
    )
    seed: int = field(default=0, metadata={"help": "personal_llm: seed of weights and pairs."})

    def load(self) -> Dataset:
        """Load the rows of the source."""
        if not self.dataset_name and self.source not in HUB_NAMES:
            raise ValueError(f"`source={self.source!r}` has no name on the Hub. Set `dataset_name` to its files.")
        names = self.dataset_name or [HUB_NAMES[self.source]]
        config = "utterances" if self.source == "prism" else None
        return concatenate_datasets([load_preferences(name, self.split, config=config) for name in names])


def prepare_prism(script_args: ScriptArguments) -> dict[str, Dataset]:
    return split_by_hash(prism_preferences(script_args.load(), script_args.opening_turns_only), "user_id")


def prepare_ultrafeedback_p(script_args: ScriptArguments) -> dict[str, Dataset]:
    return split_by_hash(ultrafeedback_p_preferences(script_args.load()), "prompt")


def prepare_personal_llm(script_args: ScriptArguments) -> dict[str, Dataset]:
    dataset = script_args.load()
    rewards = reward_models(dataset)
    sizes = (script_args.num_users, script_args.num_eval_users, script_args.num_eval_users)
    weights = {
        split: draw_mixtures(size, len(rewards), script_args.concentration, len(SPLITS) * script_args.seed + index)
        for index, (split, size) in enumerate(zip(SPLITS, sizes, strict=True))
    }
    pairs = (script_args.pairs_per_user, script_args.num_eval_pairs, script_args.num_eval_pairs)
    pairs = dict(zip(SPLITS, pairs, strict=True))
    items = personal_llm_items(dataset)
    return simulate_splits(items, rewards, weights, pairs, script_args.conflict_rate, script_args.seed)


PREPARE = {
    "prism": prepare_prism,
    "personal_llm": prepare_personal_llm,
    "ultrafeedback_p": prepare_ultrafeedback_p,
}


def main(script_args: ScriptArguments) -> None:
    if script_args.source not in PREPARE:
        raise ValueError(f"`source={script_args.source!r}` is unknown. Choose one of {list(PREPARE)}.")
    save_splits(
        PREPARE[script_args.source](script_args), script_args.output_dir, script_args.repo_id, script_args.private
    )


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("np_trl").setLevel(logging.INFO)
    main(*TrlParser(ScriptArguments).parse_args_and_config())
