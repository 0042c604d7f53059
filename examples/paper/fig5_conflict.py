"""
Section 4.3.2: how NP-BTL depends on the share of conflicting pairs (Def. 4.2), in training and in the context (Fig. 5).
All target pairs conflict, and have other prompts than the context.

```sh
python examples/paper/fig5_conflict.py \
    --dataset_name alpacaeval_aspects/items.parquet --embeddings alpacaeval_aspects/embeddings.parquet
```
"""

from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
from datasets import Dataset, concatenate_datasets
from figures import COLORS, error_bars, fit, parse, with_seed, without_context
from modes import ItemArguments

from np_trl import NPRewardConfig
from np_trl.evaluation.report import summarize_runs
from np_trl.scripts.reward_model_arguments import RewardModelArguments


@dataclass
class ScriptArguments(ItemArguments):
    train_rates: list[float] = field(
        default_factory=lambda: [1.0, 0.75, 0.5], metadata={"help": "A model is trained at each of these rates."}
    )
    context_rates: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0],
        metadata={"help": "Rates in the context pairs, at which every model is evaluated."},
    )


def evaluation_users(
    script_args: ScriptArguments, items: Dataset, rate: float, max_context: int, seed: int
) -> Dataset:
    """Users of all modes, with contexts of a conflict rate and targets that all conflict."""
    weights = np.eye(len(script_args.modes)).repeat(script_args.num_eval_users, axis=0)
    sets = {
        "context": script_args.draw_users(items, weights, max_context, seed, rate),
        "target": script_args.draw_users(items, weights, script_args.num_eval_pairs, seed + 1),
    }
    return concatenate_datasets([pairs.add_column("role", np.full(len(pairs), role)) for role, pairs in sets.items()])


def run(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> dict:
    """Train at each rate on one seed, and evaluate at each; beside it the mean of the dedicated BTL models."""
    train_items, eval_items = script_args.load()
    metrics, seed, num_contexts = {}, 4 * training_args.seed, training_args.eval_num_contexts
    eval_datasets = {
        f"context{rate}": evaluation_users(script_args, eval_items, rate, max(num_contexts), seed + 1)
        for rate in script_args.context_rates
    }
    weights = np.eye(len(script_args.modes))
    for train_rate in script_args.train_rates:
        users = script_args.draw_users(train_items, weights, script_args.num_train_pairs, seed, train_rate)
        evaluated = fit(training_args, model_args, users, eval_datasets).evaluate()
        for name, n, key in [
            (d, n, k) for d in eval_datasets for n in num_contexts for k in ("accuracy", "accuracy_se")
        ]:
            metrics[f"train{train_rate}_{name}_nc{n}_{key}"] = evaluated[f"eval_{name}_nc{n}_{key}"]
    args = without_context(training_args)
    train_groups = script_args.draw_groups(train_items, 1, script_args.num_train_pairs, seed)
    eval_groups = script_args.draw_groups(eval_items, script_args.num_eval_users, script_args.num_eval_pairs, seed + 2)
    dedicated = [
        fit(args, model_args, group, eval_groups[mode], conditional=False).evaluate()["eval_nc0_accuracy"]
        for mode, group in train_groups.items()
    ]
    return {**metrics, "btl_dedicated_accuracy": float(np.mean(dedicated))}


def draw(axes, numbers: dict[str, float], script_args: ScriptArguments, num_contexts: list[int]) -> None:
    for ax, n in zip(axes, num_contexts, strict=True):
        for train_rate, color in zip(script_args.train_rates, COLORS, strict=False):
            keys = [f"train{train_rate}_context{rate}_nc{n}_accuracy" for rate in script_args.context_rates]
            label = f"trained at {train_rate:g}"
            error_bars(ax, script_args.context_rates, numbers, keys, color=color, lw=1, label=label)
        ax.axhline(numbers["btl_dedicated_accuracy"], color="black", ls="--", lw=1, label="BTL, dedicated")
        ax.set(title=f"$N_C = {n}$", xlabel="conflict rate in the context", xticks=script_args.context_rates)
    axes[0].set_ylabel("accuracy on conflicting pairs")
    axes[0].legend(fontsize=7)


def main(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> None:
    seeds, num_contexts = range(script_args.num_seeds), training_args.eval_num_contexts
    numbers = summarize_runs([run(script_args, with_seed(training_args, index), model_args) for index in seeds])
    picture, axes = plt.subplots(1, len(num_contexts), figsize=(12, 3), layout="constrained", sharey=True)
    draw(axes, numbers, script_args, num_contexts)
    script_args.save(picture, numbers, modes=script_args.modes)


if __name__ == "__main__":
    main(*parse(ScriptArguments, "fig5_conflict"))
