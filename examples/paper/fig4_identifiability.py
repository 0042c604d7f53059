"""
Section 4.3.1: how well NP-BTL tells who chose, by the correlation of the two scores of an option (Example 4.3, Fig. 4).

Four models, each trained at one correlation; contexts of any correlation. All target pairs conflict, so that an error on
them is an error about z*. A task is decided by the kind of user that makes its targets, together, more likely.

```sh
python examples/paper/fig4_identifiability.py
```
"""

from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
from datasets import Dataset, concatenate_datasets
from figures import COLORS, FigureArguments, error_bars, fit, parse, with_seed
from transformers import EvalPrediction

from np_trl import NPRewardConfig
from np_trl.evaluation.report import summarize_runs
from np_trl.populations.correlated import correlated_bayes_error, correlated_population
from np_trl.scripts.reward_model_arguments import RewardModelArguments


@dataclass
class ScriptArguments(FigureArguments):
    train_correlations: list[float] = field(
        default_factory=lambda: [-1.0, -0.7, 0.0, 0.7], metadata={"help": "A model is trained at each of them."}
    )
    test_correlations: list[float] = field(
        default_factory=lambda: [-1.0, -0.7, -0.35, 0.0, 0.35, 0.7, 0.9],
        metadata={"help": "Correlations in the context pairs, at which every model is tested."},
    )
    num_tasks: int = field(default=6000, metadata={"help": "Test tasks at each correlation, N_C and seed."})


def test_population(num_tasks: int, correlation: float, max_context: int, seed: int) -> Dataset:
    """Users with contexts of a correlation, and 20 targets that conflict, whatever it is."""
    sets = {
        "context": correlated_population(num_tasks, max_context, correlation, seed),
        "target": correlated_population(num_tasks, 20, -1.0, seed + 1),
    }
    return concatenate_datasets([pairs.add_column("role", np.full(len(pairs), role)) for role, pairs in sets.items()])


def identification_error(prediction: EvalPrediction) -> dict[str, float]:
    """How often the targets are, together, less likely than those of a user of the other kind, who would swap them."""
    margins, num_contexts = prediction.predictions[0], prediction.label_ids[:, 1]
    wrong = (1 - np.sign(np.nansum(margins, axis=1))) / 2  # (tasks,)
    metrics = {}
    for num_context in np.unique(num_contexts):
        values = wrong[num_contexts == num_context]
        metrics[f"nc{num_context}_task_error"] = float(values.mean())
        metrics[f"nc{num_context}_task_error_se"] = float(values.std() / len(values) ** 0.5)
    return metrics


def run(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> dict:
    """Train the models on one seed and test each at every correlation."""
    metrics, seed, num_contexts = {}, 4 * training_args.seed, training_args.eval_num_contexts
    eval_datasets = {
        f"test{correlation}": test_population(script_args.num_tasks, correlation, max(num_contexts), seed + 1)
        for correlation in script_args.test_correlations
    }
    for train_correlation in script_args.train_correlations:
        train_dataset = correlated_population(4000, 40, train_correlation, seed)
        trainer = fit(training_args, model_args, train_dataset, eval_datasets, identification_error)
        evaluated = trainer.evaluate()
        for test, n in [(test, n) for test in eval_datasets for n in num_contexts]:
            name, source = f"train{train_correlation}_{test}_nc{n}", f"eval_{test}_nc{n}"
            metrics[f"{name}_pair_error"] = 1 - evaluated[f"{source}_accuracy"]
            metrics[f"{name}_pair_error_se"] = evaluated[f"{source}_accuracy_se"]
            metrics[f"{name}_task_error"] = evaluated[f"{source}_task_error"]
            metrics[f"{name}_task_error_se"] = evaluated[f"{source}_task_error_se"]
    return metrics


def draw(axes, numbers: dict[str, float], script_args: ScriptArguments, num_contexts: list[int]) -> None:
    tests, grid = script_args.test_correlations, np.linspace(-1, max(script_args.test_correlations), 100)
    for ax, n in zip(axes, num_contexts, strict=True):
        limit = [correlated_bayes_error(correlation, [n])[n] for correlation in grid]
        ax.plot(grid, limit, "k--", lw=1, label="Bayes limit")
        for index, (train, color) in enumerate(zip(script_args.train_correlations, COLORS, strict=False)):
            keys = [f"train{train}_test{test}_nc{n}_pair_error" for test in tests]
            # rings of different sizes, for most of them lie on each other
            style = {"color": color, "ls": "", "elinewidth": 1, "markersize": 9 - 2 * index, "markerfacecolor": "none"}
            error_bars(ax, tests, numbers, keys, label=rf"$\rho_{{train}} = {train:g}$", **style)
        ax.set(title=f"$N_C = {n}$", xlabel=r"correlation in the context $\rho_{test}$", ylim=(-0.02, 0.52))
    axes[0].set_ylabel("error of identifying $z^*$")
    axes[0].legend(fontsize=7)


def main(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> None:
    seeds = range(script_args.num_seeds)
    numbers = summarize_runs([run(script_args, with_seed(training_args, index), model_args) for index in seeds])
    num_contexts = training_args.eval_num_contexts
    for correlation in script_args.test_correlations:
        for n, error in correlated_bayes_error(correlation, num_contexts).items():
            numbers[f"bayes_test{correlation}_nc{n}_error"] = error
    size = {"figsize": (3.2 * len(num_contexts), 3.2), "layout": "constrained"}
    picture, axes = plt.subplots(1, len(num_contexts), sharey=True, squeeze=False, **size)
    draw(axes[0], numbers, script_args, num_contexts)
    script_args.save(picture, numbers)


if __name__ == "__main__":
    main(*parse(ScriptArguments, "fig4_identifiability"))
