"""
Section 4.2 and appendix D.1: what latents NP-BTL infers from a user's choices, in the plane of their first two principal
components (Fig. 3; Fig. 7 for three modes).

```sh
python examples/paper/fig3_latents.py \
    --dataset_name alpacaeval_aspects/items.parquet --embeddings alpacaeval_aspects/embeddings.parquet
python examples/paper/fig3_latents.py --config examples/configs/fig7_latents_three_modes.yaml \
    --dataset_name alpacaeval_aspects/items.parquet --embeddings alpacaeval_aspects/embeddings.parquet
```
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from figures import COLORS, fit, parse, with_seed
from modes import ItemArguments
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from np_trl import NPRewardConfig, NPRewardModel
from np_trl.data import PreferenceRows
from np_trl.evaluation.report import summarize_runs
from np_trl.scripts.reward_model_arguments import RewardModelArguments


@torch.no_grad()
def infer_latents(model: NPRewardModel, users: Dataset, num_context: int) -> np.ndarray:
    """Infer the latent of each user from its first choices: `(U, Z)`."""
    rows = PreferenceRows(users)
    contexts = torch.stack([rows.embeds(rows.of_user(user)[:num_context]) for user in range(len(rows))])
    return model.cpu().eval().infer_latents(contexts, torch.ones(contexts.shape[:2], dtype=torch.bool)).numpy()


def run(
    script_args: ItemArguments, training_args: NPRewardConfig, model_args: RewardModelArguments
) -> tuple[dict[str, float], dict[int, np.ndarray]]:
    """Train on one seed; return how well the modes part, and the latents in the plane, by N_C."""
    train_items, eval_items = script_args.load()
    train_groups = script_args.draw_groups(train_items, 1, script_args.num_train_pairs, 2 * training_args.seed)
    num_contexts = [n for n in training_args.eval_num_contexts if n > 0]
    weights = np.eye(len(script_args.modes)).repeat(script_args.num_eval_users, axis=0)
    users = script_args.draw_users(eval_items, weights, max(num_contexts), 2 * training_args.seed + 1)
    model = fit(training_args, model_args, concatenate_datasets(list(train_groups.values()))).model
    metrics, points = {}, {}
    for num_context in num_contexts:
        latents = infer_latents(model, users, num_context)
        pca = PCA(2).fit(latents)
        points[num_context] = pca.transform(latents)
        metrics[f"nc{num_context}_silhouette"] = float(silhouette_score(latents, weights.argmax(axis=1)))
        metrics[f"nc{num_context}_explained_variance"] = float(pca.explained_variance_ratio_.sum())
    return metrics, points


def draw(axes, points: dict[int, np.ndarray], numbers: dict[str, float], modes: list[str]) -> None:
    for ax, (num_context, plane) in zip(axes, points.items(), strict=True):
        groups = np.split(plane, len(modes))  # users come mode by mode
        for group, mode, color in zip(groups, modes, COLORS, strict=False):
            ax.scatter(*group.T, s=4, alpha=0.5, color=color, lw=0, label=mode.replace("_", " "))
        share = numbers[f"nc{num_context}_explained_variance"]
        ax.set(title=f"$N_C = {num_context}$ ({share:.0%} of variance)", xticks=[], yticks=[], xlabel="PC 1")
    axes[0].set_ylabel("PC 2")
    axes[-1].legend(fontsize=7, markerscale=3)


def main(script_args: ItemArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> None:
    seeds = range(script_args.num_seeds)
    runs, points = zip(*(run(script_args, with_seed(training_args, i), model_args) for i in seeds), strict=True)
    picture, axes = plt.subplots(1, len(points[0]), figsize=(3 * len(points[0]), 2.8), layout="constrained")
    draw(axes, points[0], runs[0], script_args.modes)
    script_args.save(picture, summarize_runs(runs), modes=script_args.modes)


if __name__ == "__main__":
    main(*parse(ItemArguments, "fig3_latents"))
