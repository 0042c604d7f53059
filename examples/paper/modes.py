"""
Users of a few modes of behaviour, from a table of responses with scores; NP-BTL beside BTL-mixed and one dedicated BTL
model a mode (sections 4.2 and 4.3.2, appendices D.1 and D.2). What figures 2, 3, 5, 6, 7 and 8 share.
"""

from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
from datasets import Dataset, concatenate_datasets
from figures import COLORS, FigureArguments, error_bars, fit, with_seed, without_context

from np_trl import NPRewardConfig, NPRewardTrainer, simulate_users
from np_trl.data.embeddings import join_embeddings
from np_trl.data.loading import hash_split, load_preferences
from np_trl.evaluation.report import summarize_runs
from np_trl.populations.ultrafeedback import ultrafeedback_items
from np_trl.scripts.reward_model_arguments import RewardModelArguments


@dataclass
class ItemArguments(FigureArguments):
    """Arguments of figures on real responses."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "File or dataset with one row a response: prompt, response, scores; or UltraFeedback."},
    )
    embeddings: str | None = field(
        default=None, metadata={"help": "File or dataset with `text_id` and `embedding` of every text, once."}
    )
    embedding_kind: str = field(
        default="response", metadata={"help": "What was embedded: `response` or `prompt_response`."}
    )
    modes: list[str] = field(
        default_factory=lambda: ["helpfulness", "honesty"], metadata={"help": "Columns of the scores, one a mode."}
    )
    num_train_pairs: int = field(default=12000, metadata={"help": "Training pairs of each mode."})
    num_eval_users: int = field(default=300, metadata={"help": "Users of each mode to evaluate on."})
    num_eval_pairs: int = field(default=40, metadata={"help": "Pairs of each of these users."})

    def load(self) -> tuple[Dataset, Dataset]:
        """
        Load the responses to train on, and those to other prompts to evaluate on: where the column `prompt_split` does not
        say `train`, or else of a tenth of the prompts.
        """
        items = load_preferences(self.dataset_name)
        if "completions" in items.column_names:
            items = ultrafeedback_items(items, self.modes)
        if "prompt_split" in items.column_names:
            is_train = np.array([split == "train" for split in items["prompt_split"]])
        else:
            is_train = np.array([hash_split(prompt) != "test" for prompt in items["prompt"]])
        return items.select(np.flatnonzero(is_train)), items.select(np.flatnonzero(~is_train))

    def draw_users(self, items: Dataset, weights: np.ndarray, num_pairs: int, seed: int, rate: float = 1.0) -> Dataset:
        """Draw users of these weights with their embedded choices, a share `rate` of them on conflicting pairs."""
        users = simulate_users(items, self.modes, weights, num_pairs, rate, seed)
        return join_embeddings(users, load_preferences(self.embeddings), self.embedding_kind)

    def draw_groups(self, items: Dataset, users_per_mode: int, num_pairs: int, seed: int) -> dict[str, Dataset]:
        """Draw users of every mode; those of one mode are a dataset."""
        users = self.draw_users(items, np.eye(len(self.modes)).repeat(users_per_mode, axis=0), num_pairs, seed)
        size = users_per_mode * num_pairs
        return {mode: users.select(range(i * size, (i + 1) * size)) for i, mode in enumerate(self.modes)}


def train_on_modes(
    script_args: ItemArguments, training_args: NPRewardConfig, model_args: RewardModelArguments
) -> dict[str, NPRewardTrainer]:
    """Train NP-BTL and BTL on all modes, and a dedicated BTL model on each; name them, ready to be evaluated."""
    train_items, eval_items = script_args.load()
    seed = 2 * training_args.seed
    train_groups = script_args.draw_groups(train_items, 1, script_args.num_train_pairs, seed)
    eval_groups = script_args.draw_groups(eval_items, script_args.num_eval_users, script_args.num_eval_pairs, seed + 1)
    eval_groups["mean"] = concatenate_datasets(list(eval_groups.values()))  # users of all modes
    mixed, args = concatenate_datasets(list(train_groups.values())), without_context(training_args)
    trainers = {
        "np_btl": fit(training_args, model_args, mixed, eval_groups),
        "btl_mixed": fit(args, model_args, mixed, eval_groups, conditional=False),
    }
    for mode, group in train_groups.items():
        trainers[f"btl_{mode}"] = fit(args, model_args, group, eval_groups, conditional=False)
    return trainers


def evaluate(trainer: NPRewardTrainer, name: str) -> dict[str, float]:
    """
    Evaluate a model on every set of users: `{name}_{group}_nc{N}_accuracy`, ...

    The control with other users' contexts is of users of all modes together: within a group, the others are alike.
    """
    evaluated, metrics = trainer.evaluate(), {}
    for group in trainer.eval_dataset:
        for num_context in trainer.args.eval_num_contexts:
            keys = ["accuracy", "accuracy_se", "nll"]
            if group == "mean" and num_context in trainer.args.eval_shuffled_contexts:
                keys.append("shuffled_accuracy")
            metrics |= {
                f"{name}_{group}_nc{num_context}_{k}": evaluated[f"eval_{group}_nc{num_context}_{k}"] for k in keys
            }
    return metrics


def draw_groups(axes, numbers: dict[str, float], modes: list[str], num_contexts: list[int]) -> None:
    """Draw one panel for each mode, and one for their mean: accuracy by N_C beside the models that take no context."""
    for ax, group, color in zip(axes, [*modes, "mean"], [*COLORS[: len(modes)], "black"], strict=True):
        keys = [f"np_btl_{group}_nc{n}_accuracy" for n in num_contexts]
        error_bars(ax, num_contexts, numbers, keys, color=color, label="NP-BTL")
        dedicated = [numbers[f"btl_{mode}_{mode}_nc0_accuracy"] for mode in modes]
        best = np.mean(dedicated) if group == "mean" else dedicated[modes.index(group)]
        ax.axhline(best, color=color, ls="--", lw=1, label="BTL, dedicated")
        ax.axhline(numbers[f"btl_mixed_{group}_nc0_accuracy"], color="gray", ls=":", label="BTL, mixed")
        ax.set(title=group.replace("_", " "), xlabel="choices given $N_C$", xticks=num_contexts)
    axes[0].set_ylabel("accuracy on unseen pairs")
    axes[-1].legend(fontsize=7, loc="lower right")


def compare_on_modes(
    script_args: ItemArguments, training_args: NPRewardConfig, model_args: RewardModelArguments
) -> None:
    """Train and evaluate on every seed, and save the figure."""
    runs = []
    for index in range(script_args.num_seeds):
        trainers = train_on_modes(script_args, with_seed(training_args, index), model_args)
        runs.append({key: v for name, trainer in trainers.items() for key, v in evaluate(trainer, name).items()})
    numbers, num_panels = summarize_runs(runs), len(script_args.modes) + 1
    picture, axes = plt.subplots(1, num_panels, figsize=(3 * num_panels, 2.8), layout="constrained", sharey=True)
    draw_groups(axes, numbers, script_args.modes, training_args.eval_num_contexts)
    script_args.save(picture, numbers, modes=script_args.modes)
