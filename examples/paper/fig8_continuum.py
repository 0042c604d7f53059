"""
Appendix D.2: users who weigh two or three scores, z* ~ Dirichlet(1/2, ...), and the accuracy over the simplex (Fig. 8).

The two-dimensional setup takes the first two of the three modes.

```sh
python examples/paper/fig8_continuum.py \
    --dataset_name alpacaeval_aspects/items.parquet --embeddings alpacaeval_aspects/embeddings.parquet
```
"""

import dataclasses
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
from figures import error_bars, fit, parse, with_seed, without_context
from modes import ItemArguments

from np_trl import NPRewardConfig
from np_trl.evaluation.report import summarize_runs
from np_trl.scripts.reward_model_arguments import RewardModelArguments


CORNERS = np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])  # of the simplex of three weights, in the plane


@dataclass
class ScriptArguments(ItemArguments):
    num_train_users: int = field(default=1500, metadata={"help": "Training users, each with weights of its own."})
    num_eval_users: int = field(default=100, metadata={"help": "Users at each point of the simplex to evaluate on."})
    grid: list[int] = field(
        default_factory=lambda: [10, 6], metadata={"help": "Steps along an edge of the simplex, in 2-D and in 3-D."}
    )


def simplex(num_modes: int, steps: int) -> np.ndarray:
    """Points of the simplex, `steps` steps along an edge: `(points, num_modes)`."""
    grid = np.stack(np.meshgrid(*[np.arange(steps + 1)] * num_modes, indexing="ij"), axis=-1).reshape(-1, num_modes)
    return grid[grid.sum(axis=1) == steps] / steps


def name(point: np.ndarray) -> str:
    return "z" + "_".join(f"{weight:.2f}" for weight in point)


def run(script_args: ScriptArguments, steps: int, training_args: NPRewardConfig, model_args: RewardModelArguments):
    """Train NP-BTL and BTL on one seed, and evaluate them at every point of the simplex."""
    train_items, eval_items = script_args.load()
    num_modes, seed = len(script_args.modes), 2 * training_args.seed
    weights = np.random.default_rng(seed).dirichlet([0.5] * num_modes, script_args.num_train_users)
    train_dataset = script_args.draw_users(train_items, weights, script_args.num_eval_pairs, seed)
    eval_datasets = {
        name(point): script_args.draw_users(
            eval_items,
            np.tile(point, (script_args.num_eval_users, 1)),
            script_args.num_eval_pairs,
            seed=1_000 * (seed + 1) + index,
        )
        for index, point in enumerate(simplex(num_modes, steps))
    }
    models = {
        "np_btl": fit(training_args, model_args, train_dataset, eval_datasets),
        "btl": fit(without_context(training_args), model_args, train_dataset, eval_datasets, conditional=False),
    }
    metrics = {}
    for model, trainer in models.items():
        evaluated = trainer.evaluate()
        for n in trainer.args.eval_num_contexts:
            for point in eval_datasets:
                for key in ("accuracy", "accuracy_se"):
                    metrics[f"{model}_{point}_nc{n}_{key}"] = evaluated[f"eval_{point}_nc{n}_{key}"]
            accuracies = [evaluated[f"eval_{point}_nc{n}_accuracy"] for point in eval_datasets]
            metrics[f"{model}_mean_nc{n}_accuracy"] = float(np.mean(accuracies))
            metrics[f"{model}_worst_nc{n}_accuracy"] = min(accuracies)
    return metrics


def draw_segment(ax, numbers: dict[str, float], modes: list[str], steps: int, num_contexts: list[int]) -> None:
    points = simplex(2, steps)
    for n, color in zip(num_contexts, plt.cm.viridis(np.linspace(0, 0.9, len(num_contexts))), strict=True):
        keys = [f"np_btl_{name(point)}_nc{n}_accuracy" for point in points]
        error_bars(ax, points[:, 0], numbers, keys, color=color, lw=1, label=f"$N_C = {n}$")
    keys = [f"btl_{name(point)}_nc0_accuracy" for point in points]
    ax.plot(points[:, 0], [numbers[key] for key in keys], color="gray", ls="--", lw=1, label="BTL, mixed")
    first, second = (mode.replace("_", " ") for mode in modes)
    ax.set(xlabel=f"$z_0$: weight of {first}; the rest is {second}", ylabel="accuracy on unseen pairs")
    ax.legend(fontsize=7, ncols=2)


def draw_triangles(axes, numbers: dict[str, float], modes: list[str], steps: int, num_contexts: list[int]) -> None:
    points = simplex(3, steps)
    maps = [[numbers[f"np_btl_{name(point)}_nc{n}_accuracy"] for point in points] for n in num_contexts]
    levels = np.linspace(np.min(maps), np.max(maps), 15)
    for ax, n, accuracies in zip(axes, num_contexts, maps, strict=True):
        picture = ax.tricontourf(*(points @ CORNERS).T, accuracies, levels=levels, cmap="viridis")
        for corner, mode, side in zip(CORNERS, modes, ("top", "top", "bottom"), strict=True):
            ax.text(*corner, mode.replace("_", "\n"), ha="center", va=side, fontsize=7)
        ax.set(
            title=f"$N_C = {n}$, mean {np.mean(accuracies):.3f}", aspect="equal", xlim=(-0.15, 1.15), ylim=(-0.2, 1.1)
        )
        ax.axis("off")
    plt.colorbar(picture, ax=axes, label="accuracy", format="%.2f")


def main(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> None:
    setups = {
        "2d": dataclasses.replace(script_args, modes=script_args.modes[:2]),
        "3d": script_args,
    }
    numbers = {}
    for (setup, setup_args), steps in zip(setups.items(), script_args.grid, strict=True):
        seeds = [with_seed(training_args, index) for index in range(script_args.num_seeds)]
        numbers[setup] = summarize_runs([run(setup_args, steps, args, model_args) for args in seeds])
    num_contexts = training_args.eval_num_contexts
    panels = [["2d"] * len(num_contexts), [f"nc{n}" for n in num_contexts]]
    picture, axes = plt.subplot_mosaic(panels, figsize=(10.5, 4.8), layout="constrained")
    draw_segment(axes["2d"], numbers["2d"], setups["2d"].modes, script_args.grid[0], num_contexts)
    triangles = [axes[f"nc{n}"] for n in num_contexts]
    draw_triangles(triangles, numbers["3d"], script_args.modes, script_args.grid[1], num_contexts)
    script_args.save(picture, numbers, modes=script_args.modes)


if __name__ == "__main__":
    main(*parse(ScriptArguments, "fig8_continuum"))
