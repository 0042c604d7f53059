"""The metrics of an evaluation for every number of context pairs N_C, from the margins of all tasks."""

import evaluate
import numpy as np
from transformers import EvalPrediction

from np_trl.metrics.user_metrics import UserAccuracy, UserCalibration, UserNLL, user_means


# how the names of other metrics than those of groups begin
_RESERVED_NAMES = ("new_options", "shuffled", "worst_decile", "worst_group")


def check_group_names(groups: list[str]) -> None:
    """
    Check that the metrics of groups have names of their own.

    Args:
        groups (`list[str]`):
            The group of every user.

    Raises:
        `ValueError`: if a group is called like another metric, such as the control `shuffled`.
    """
    taken = sorted(set(_RESERVED_NAMES) & set(groups))
    if taken:
        raise ValueError(
            f"Groups are called {taken}, and so are other metrics, such as `nc10_{taken[0]}_accuracy`. Rename these groups in "
            "the column that `eval_group_column` names."
        )


def num_context_curve(prediction: EvalPrediction, groups: list[str] | None = None) -> dict[str, float]:
    """
    Compute the metrics for every N_C.

    Args:
        prediction ([`~transformers.EvalPrediction`]):
            `predictions`: margins `(tasks, targets)`, NaN where a task has fewer targets; log-likelihoods of all targets
            of a task together `(tasks,)`; and whether a target is of options that no context has `(tasks, targets)`.
            `label_ids`: conditions `(tasks, 2)`, user and N_C.
        groups (`list[str]`, *optional*):
            The group of every user.

    Returns:
        `dict[str, float]`:

        - `nc{N}_accuracy`, `nc{N}_accuracy_se`, `nc{N}_worst_decile_accuracy`, `nc{N}_nll`, `nc{N}_ece`, `nc{N}_users`;
        - `nc{N}_joint_nll`: in nats, of all targets of a task together;
        - where N_C = 0 is there, `nc{N}_gain` and `nc{N}_gain_se`: by how much the accuracy of the users at N exceeds
          that of the same users at 0;
        - of each group `nc{N}_{group}_accuracy`, `_accuracy_se`, `_gain`, `_gain_se`, and the least of their accuracies,
          `nc{N}_worst_group_accuracy`;
        - where options recur, `nc{N}_new_options_accuracy` and its standard error: on the targets none of whose options
          occurs in the user's largest context, the same targets at every N.

    Raises:
        `ValueError`: if a group is called like another metric.
    """
    check_group_names(groups or [])
    metrics, accuracies = {}, {}
    margins, joint, new_options = (np.asarray(predictions) for predictions in prediction.predictions)
    recurring = bool((~new_options & ~np.isnan(margins)).any())
    conditions = np.asarray(prediction.label_ids)
    for num_context in np.unique(conditions[:, 1]):
        selected = conditions[:, 1] == num_context
        if np.isnan(margins[selected]).all():
            continue
        values = _compute(margins[selected], conditions[selected, 0])
        accuracies[num_context] = _user_accuracies(margins[selected], conditions[selected, 0])
        values["joint_nll"] = float(user_means(-joint[selected], conditions[selected, 0]).mean())
        values["users"] = len(accuracies[num_context])
        if num_context > 0 and 0 in accuracies:
            values.update(_gain(accuracies[num_context], accuracies[0]))
        if groups is not None:
            base = accuracies.get(0, {}) if num_context > 0 else {}
            values.update(_group_accuracies(accuracies[num_context], base, groups))
        if recurring:
            unseen = np.where(new_options, margins, np.nan)[selected]
            values.update(_new_options_accuracy(unseen, conditions[selected, 0]))
        metrics.update({f"nc{num_context}_{key}": value for key, value in values.items()})
    return metrics


def _user_accuracies(margins: np.ndarray, users: np.ndarray) -> dict[int, float]:
    users, present = np.broadcast_to(users[:, None], margins.shape), ~np.isnan(margins)
    correct = (np.sign(margins[present]) + 1) / 2
    return dict(zip(np.unique(users[present]).tolist(), user_means(correct, users[present]), strict=True))


def _gain(accuracies: dict[int, float], base: dict[int, float]) -> dict[str, float]:
    return _mean({user: accuracy - base[user] for user, accuracy in accuracies.items() if user in base}, "gain")


def _group_accuracies(accuracies: dict[int, float], base: dict[int, float], groups: list[str]) -> dict[str, float]:
    """Mean accuracy of the users of each group, and by how much it exceeds that of the same users at N_C = 0."""
    values, means = {}, []
    for group in sorted({groups[user] for user in accuracies}):
        members = {user: accuracy for user, accuracy in accuracies.items() if groups[user] == group}
        found = _mean(members, "accuracy") | _gain(members, base)
        means.append(found["accuracy"])
        values |= {f"{group}_{key}": value for key, value in found.items()}
    return {**values, "worst_group_accuracy": min(means)}


def _mean(accuracies: dict[int, float], name: str) -> dict[str, float]:
    values = np.array(list(accuracies.values()))
    if len(values) < 2:
        return {name: float(values.mean())} if len(values) else {}
    return {name: float(values.mean()), f"{name}_se": float(values.std(ddof=1) / len(values) ** 0.5)}


def _new_options_accuracy(margins: np.ndarray, users: np.ndarray) -> dict[str, float]:
    accuracies = _user_accuracies(margins, users)
    return _mean(accuracies, "new_options_accuracy") if len(accuracies) > 1 else {}


def _compute(margins: np.ndarray, users: np.ndarray) -> dict[str, float]:
    users = np.broadcast_to(users[:, None], margins.shape)
    present = ~np.isnan(margins)
    metric = evaluate.combine([UserAccuracy(), UserNLL(), UserCalibration()])
    return metric.compute(margins=margins[present].tolist(), users=users[present].tolist())
