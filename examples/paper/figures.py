"""What all figures share: their arguments, one training run, and lines with error bars."""

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import set_seed
from trl import TrlParser

from np_trl import NPRewardConfig, NPRewardTrainer
from np_trl.evaluation.report import save_report
from np_trl.files import whole_file
from np_trl.scripts.reward_model_arguments import RewardModelArguments


HERE = Path(__file__).parent
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


@dataclass
class FigureArguments:
    """Arguments of every figure."""

    figure: str | None = field(default=None, metadata={"help": "Name of the two files that are written."})
    results_dir: str = field(
        default=str(HERE / "results"), metadata={"help": "Folder of the picture (PNG) and of its numbers (JSON)."}
    )
    num_seeds: int = field(default=3, metadata={"help": "Number of runs, with the seeds `seed`, `seed + 1`, ..."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads."})

    def save(self, picture: Figure, numbers: dict, **facts) -> None:
        """Write the picture and its numbers."""
        save_report(Path(self.results_dir) / f"{self.figure}.json", numbers, num_seeds=self.num_seeds, **facts)
        save_picture(picture, Path(self.results_dir) / f"{self.figure}.png")


def save_picture(picture: Figure, path: Path) -> None:
    """Write a picture: when it gets its name it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        picture.savefig(part, format="png", dpi=100, bbox_inches="tight")


def parse(script_arguments: type, recipe: str) -> tuple[FigureArguments, NPRewardConfig, RewardModelArguments]:
    """Parse the command line over `configs/{recipe}.yaml`, unless it names a recipe of its own."""
    arguments = sys.argv[1:]
    if "--config" not in arguments:
        arguments = ["--config", str(HERE.parent / "configs" / f"{recipe}.yaml"), *arguments]
    parser = TrlParser((script_arguments, NPRewardConfig, RewardModelArguments))
    script_args, training_args, model_args = parser.parse_args_and_config(arguments)
    if script_args.num_threads is not None:
        torch.set_num_threads(script_args.num_threads)
    return script_args, training_args, model_args


def with_seed(training_args: NPRewardConfig, run: int) -> NPRewardConfig:
    """Return the arguments of run 0, 1, ..., which differ in the seed."""
    args = copy.copy(training_args)
    args.seed = training_args.seed + run
    return args


def without_context(training_args: NPRewardConfig) -> NPRewardConfig:
    """Return the arguments for a model that knows no users."""
    args = copy.copy(training_args)
    args.min_context, args.max_context = 0, 0
    args.eval_num_contexts, args.eval_shuffled_contexts = [0], []
    return args


def fit(
    training_args, model_args, train_dataset, eval_dataset=None, compute_metrics=None, **fields
) -> NPRewardTrainer:
    """Train a model whose configuration has `fields`, from the seed of `training_args`."""
    set_seed(training_args.seed)
    model = model_args.build(train_dataset, **fields)
    trainer = NPRewardTrainer(
        model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    return trainer


def error_bars(axes, x: list[float], numbers: dict[str, float], keys: list[str], **style) -> None:
    """Draw a line through the numbers of these keys, with their standard errors over seeds."""
    errors = [numbers.get(f"{key}_se_over_seeds", 0) for key in keys]
    style = {"marker": "o", "markersize": 3, "capsize": 2, **style}
    axes.errorbar(x, [numbers[key] for key in keys], yerr=errors, **style)
