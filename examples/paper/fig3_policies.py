"""
What latents a policy infers from users' choices, in the plane of their first two principal components, by group and number of
choices (Fig. 3; Fig. 7 for three modes).

```sh
python examples/paper/fig3_policies.py \
    --model runs/np_dpo_style --dataset_name runs/np_dpo_style/users.parquet --group_column group --figure fig3_policies_style
```
"""

from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
from figures import HERE, FigureArguments
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from trl import TrlParser

from np_trl.data import EvaluationProtocol
from np_trl.evaluation.generations import Generations
from np_trl.scripts.evaluation_arguments import EvaluationArguments


@dataclass
class ScriptArguments(FigureArguments, EvaluationArguments):
    output_dir: str = field(default="runs/fig3_policies", metadata={"help": "Working folder of the evaluation."})
    results_dir: str = field(default=str(HERE / "results"), metadata={"help": "Folder of the two files."})


def draw(ax, plane: np.ndarray, groups: np.ndarray, title: str) -> None:
    for index, group in enumerate(np.unique(groups)):
        members = plane[groups == group]
        ax.scatter(*members.T, s=8, alpha=0.7, color=plt.get_cmap("tab20")(index % 20), lw=0, label=group)
    ax.set(title=title, xticks=[], yticks=[], xlabel="PC 1")


def main(script_args: ScriptArguments, protocol: EvaluationProtocol) -> None:
    evaluation, numbers = script_args.load(protocol), {}
    num_contexts = [n for n in protocol.num_contexts if n > 0]
    picture, axes = plt.subplots(1, len(num_contexts), figsize=(3 * len(num_contexts), 2.8), layout="constrained")
    for ax, num_context in zip(np.atleast_1d(axes), num_contexts, strict=True):
        users = Generations(evaluation, num_context, answers_per_user=1)
        groups = np.array(protocol.groups(users.rows))[users.users]
        latents = users.latents.cpu().numpy()
        pca = PCA(2).fit(latents)
        share = float(pca.explained_variance_ratio_.sum())
        numbers[f"nc{num_context}_silhouette"] = float(silhouette_score(latents, groups))
        numbers[f"nc{num_context}_explained_variance"] = share
        draw(ax, pca.transform(latents), groups, f"$N_C = {num_context}$ ({share:.0%} of variance)")
    np.atleast_1d(axes)[0].set_ylabel("PC 2")
    if len(np.unique(groups)) <= 4:
        np.atleast_1d(axes)[-1].legend(fontsize=7, markerscale=2)
    script_args.num_seeds = 1  # one model
    script_args.save(picture, numbers, seed=protocol.seed)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, EvaluationProtocol)).parse_args_and_config())
