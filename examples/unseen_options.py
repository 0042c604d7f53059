"""
How NP-BTL predicts choices between options that it was not trained on: some options are withheld from training, and new
users, known by choices between the others, are evaluated on pairs with one of them (`one`), or two (`both`).

```sh
python examples/unseen_options.py --config examples/configs/np_reward_jester.yaml --num_withheld 15
```
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import set_seed
from trl import TrlParser

from np_trl import NPRewardConfig, NPRewardTrainer
from np_trl.data.embeddings import add_option_ids
from np_trl.data.preference_rows import ID_COLUMNS, option_ids
from np_trl.evaluation.report import save_report, summarize_runs
from np_trl.scripts.preference_arguments import PreferenceArguments
from np_trl.scripts.reward_model_arguments import RewardModelArguments


@dataclass
class ScriptArguments(PreferenceArguments):
    num_withheld: int = field(default=15, metadata={"help": "Options that training does not see."})
    num_seeds: int = field(default=3, metadata={"help": "Number of runs, each with other options withheld."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads."})


def count_withheld(dataset: Dataset, withheld: np.ndarray) -> np.ndarray:
    """Count the withheld options of every pair: 0, 1 or 2."""
    return sum(np.isin(dataset[name], withheld).astype(int) for name in ID_COLUMNS)


def with_roles(dataset: Dataset, withheld: np.ndarray, number: int) -> Dataset:
    """Keep pairs without withheld options, as contexts, and those with this number of them, as targets."""
    counts = count_withheld(dataset, withheld)
    roles = np.where(counts == 0, "context", "target")
    return dataset.add_column("role", roles.tolist()).select(np.flatnonzero((counts == 0) | (counts == number)))


def run(training_args, model_args: RewardModelArguments, train_dataset: Dataset, eval_dataset: Dataset, withheld):
    """Train without the withheld options, and evaluate."""
    train_dataset = train_dataset.select(np.flatnonzero(count_withheld(train_dataset, withheld) == 0))
    trainer = NPRewardTrainer(
        model_args.build(train_dataset),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset={"one": with_roles(eval_dataset, withheld, 1), "both": with_roles(eval_dataset, withheld, 2)},
    )
    trainer.train()
    return {key: value for key, value in trainer.evaluate().items() if "_nc" in key}


def main(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> None:
    if script_args.num_threads is not None:
        torch.set_num_threads(script_args.num_threads)
    train_dataset, eval_dataset = (add_option_ids(dataset) for dataset in script_args.load())
    runs = []
    for seed in range(training_args.seed, training_args.seed + script_args.num_seeds):
        set_seed(seed)
        withheld = np.random.default_rng(seed).choice(
            option_ids(train_dataset), script_args.num_withheld, replace=False
        )
        args = dataclasses.replace(training_args, seed=seed)
        runs.append(run(args, model_args, train_dataset, eval_dataset, withheld))
    figures = summarize_runs(runs)
    for name in ("one", "both"):
        cells = [figures.get(f"eval_{name}_nc{n}_accuracy", float("nan")) for n in training_args.eval_num_contexts]
        print(f"{name:<8}" + "".join(f"{cell:>9.4f}" for cell in cells))
    save_report(Path(training_args.output_dir) / "unseen_options.json", figures, num_seeds=script_args.num_seeds)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, NPRewardConfig, RewardModelArguments)).parse_args_and_config())
