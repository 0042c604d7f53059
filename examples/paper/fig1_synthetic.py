"""
Section 4.1: two kinds of users on [0, 1] (Example 4.1). Fig. 1a, the fitted rewards of BTL, DPL and NP-BTL beside the true
ones; Table 1b, their accuracy by the number of choices that a user has given.

```sh
python examples/paper/fig1_synthetic.py
```
"""

from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Dataset
from figures import COLORS, FigureArguments, error_bars, fit, parse, with_seed, without_context

from np_trl import NPRewardConfig, NPRewardModel
from np_trl.data import PreferenceRows
from np_trl.evaluation.report import summarize_runs
from np_trl.populations.piecewise import piecewise_bayes_accuracy, piecewise_population, piecewise_reward
from np_trl.scripts.reward_model_arguments import RewardModelArguments


BASELINES = {"btl": "bradley_terry", "dpl": "mean_variance"}
NAMES = {"dpl": "DPL", "btl": "BTL", "np_btl": "NP-BTL"}
GRID = np.linspace(0, 1, 201)
CURVES_PER_KIND = 8
CURVE_CONTEXT = 10  # choices behind each curve


@dataclass
class ScriptArguments(FigureArguments):
    num_users: int = field(default=4000, metadata={"help": "Users to train on, and as many others to evaluate on."})


def run(
    script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments
) -> tuple[dict[str, float], dict[str, NPRewardModel]]:
    """Train the three models on one seed; return their accuracies and the models."""
    train_dataset = piecewise_population(script_args.num_users, pairs_per_user=40, seed=2 * training_args.seed)
    eval_dataset = piecewise_population(script_args.num_users, pairs_per_user=30, seed=2 * training_args.seed + 1)
    trainers = {"np_btl": fit(training_args, model_args, train_dataset, eval_dataset)}
    for name, head in BASELINES.items():
        trainers[name] = fit(
            without_context(training_args), model_args, train_dataset, eval_dataset, conditional=False, head=head
        )
    metrics = {}
    for name, trainer in trainers.items():
        evaluated = trainer.evaluate()
        for num_context in trainer.args.eval_num_contexts:
            for key in ("accuracy", "accuracy_se", "nll"):
                metrics[f"{name}_nc{num_context}_{key}"] = evaluated[f"eval_nc{num_context}_{key}"]
    return metrics, {name: trainer.model.eval() for name, trainer in trainers.items()}


@torch.no_grad()
def conditional_curves(model: NPRewardModel, users: Dataset) -> np.ndarray:
    """Rewards of the grid for each user, from all its choices: `(U, grid)`."""
    rows = PreferenceRows(users)
    contexts = torch.stack([rows.embeds(rows.of_user(user)) for user in range(len(rows))])  # (U, C, 2, 1)
    model = model.cpu()
    latents = model.infer_latents(contexts, torch.ones(contexts.shape[:2], dtype=torch.bool))  # (U, Z)
    options = torch.tensor(GRID, dtype=torch.float32)[:, None].repeat(len(rows), 1)  # (U * grid, 1)
    index = torch.arange(len(rows)).repeat_interleave(len(GRID))
    return model(options, latents=latents, context_index=index).logits.view(len(rows), -1).numpy()


@torch.no_grad()
def population_curve(model: NPRewardModel) -> tuple[np.ndarray, np.ndarray | None]:
    """Rewards of the grid, and their standard deviations for DPL: `(grid,)` each."""
    outputs = model.cpu()(torch.tensor(GRID, dtype=torch.float32)[:, None])
    std = None if outputs.log_stds is None else outputs.log_stds.exp().squeeze(-1).numpy()
    return outputs.logits.squeeze(-1).numpy(), std


def to_unit(rewards: np.ndarray) -> tuple[np.ndarray, float]:
    """Shift and scale to [0, 1], for choices fix a reward up to that at best; return the scale too."""
    low, scale = rewards.min(), np.ptp(rewards)
    return (rewards - low) / scale, scale


def draw_rewards(axes, models: dict[str, NPRewardModel], seed: int) -> None:
    for kind, color in enumerate(COLORS[:2]):
        axes[0].plot(GRID, to_unit(piecewise_reward(GRID, np.array(kind)))[0], color=color, label=f"$z^* = {kind}$")
    for ax, name in zip(axes[1:3], BASELINES, strict=True):
        rewards, std = population_curve(models[name])
        rewards, scale = to_unit(rewards)
        ax.plot(GRID, rewards, color="black", label="all users")
        if std is not None:
            std = std / scale
            ax.fill_between(GRID, rewards - std, rewards + std, color="black", alpha=0.2, label="± its std", lw=0)
    users = piecewise_population(2 * CURVES_PER_KIND, CURVE_CONTEXT, seed)
    for user, rewards in enumerate(conditional_curves(models["np_btl"], users)):
        label = f"user of $z^* = {user}$" if user < 2 else None
        axes[3].plot(GRID, to_unit(rewards)[0], color=COLORS[user % 2], lw=1, alpha=0.7, label=label)
    titles = ("true rewards", "BTL", "DPL", f"NP-BTL, {CURVE_CONTEXT} choices")
    for ax, title, place in zip(
        axes, titles, ("upper left", "lower center", "upper left", "lower center"), strict=True
    ):
        ax.set(title=title, xlabel="option $y$")
        ax.legend(fontsize=7, loc=place)
    axes[0].set_ylabel("reward, scaled to [0, 1]")


def draw_accuracies(ax, numbers: dict[str, float], num_contexts: list[int]) -> None:
    for name, color in zip(NAMES, ("tab:olive", "black", "tab:blue"), strict=True):
        keys = [f"{name}_nc{n}_accuracy" for n in (num_contexts if name == "np_btl" else [0] * len(num_contexts))]
        error_bars(ax, num_contexts, numbers, keys, color=color, ls=":" if name == "btl" else "-", label=NAMES[name])
    ax.plot(num_contexts, [numbers[f"bayes_nc{n}_accuracy"] for n in num_contexts], "k--", lw=1, label="Bayes limit")
    ax.set(title="unseen pairs", xlabel="choices given $N_C$", ylabel="accuracy", xticks=num_contexts)
    ax.legend(fontsize=7, loc="center right")


def main(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> None:
    runs, first_models = [], None
    for index in range(script_args.num_seeds):
        metrics, models = run(script_args, with_seed(training_args, index), model_args)
        runs.append(metrics)
        first_models = first_models or models
    numbers = summarize_runs(runs)
    for num_context, accuracy in piecewise_bayes_accuracy(training_args.eval_num_contexts).items():
        numbers[f"bayes_nc{num_context}_accuracy"] = accuracy
    picture, axes = plt.subplots(1, 5, figsize=(15, 3), layout="constrained")
    draw_rewards(axes[:4], first_models, seed=2 * training_args.seed + 1)
    draw_accuracies(axes[4], numbers, training_args.eval_num_contexts)
    script_args.save(picture, numbers)


if __name__ == "__main__":
    main(*parse(ScriptArguments, "fig1_synthetic"))
