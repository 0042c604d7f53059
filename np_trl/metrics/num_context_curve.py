"""The metrics of an evaluation for every number of context pairs N_C, from what the trainers' evaluation gathers."""

import evaluate
import numpy as np
from transformers import EvalPrediction

from np_trl.metrics.user_metrics import UserAccuracy, UserCalibration, UserNLL, user_means


def num_context_curve(prediction: EvalPrediction) -> dict[str, float]:
    """
    Compute the metrics for every N_C.

    Args:
        prediction ([`~transformers.EvalPrediction`]):
            `predictions`: margins `(tasks, targets)`, NaN where a task has fewer targets, and log-likelihoods of all
            targets of a task together `(tasks,)`; `label_ids`: conditions `(tasks, 2)`, user and N_C.

    Returns:
        `dict[str, float]`: `nc{N}_accuracy`, `nc{N}_accuracy_se`, `nc{N}_worst_decile_accuracy`, `nc{N}_nll`,
        `nc{N}_joint_nll` (nats, of all targets of a task together), `nc{N}_ece`, `nc{N}_users`; and, where N_C = 0 is there, `nc{N}_gain` and `nc{N}_gain_se`: by how much the
        accuracy of the users at N exceeds that of the same users at 0.
    """
    metrics, accuracies = {}, {}
    margins, joint = (np.asarray(predictions) for predictions in prediction.predictions)
    conditions = np.asarray(prediction.label_ids)
    for num_context in np.unique(conditions[:, 1]):
        selected = conditions[:, 1] == num_context
        values = _compute(margins[selected], conditions[selected, 0])
        accuracies[num_context] = _user_accuracies(margins[selected], conditions[selected, 0])
        values["joint_nll"] = float(user_means(-joint[selected], conditions[selected, 0]).mean())
        values["users"] = len(accuracies[num_context])
        if num_context > 0 and 0 in accuracies:
            values.update(_gain(accuracies[num_context], accuracies[0]))
        metrics.update({f"nc{num_context}_{key}": value for key, value in values.items()})
    return metrics


def _user_accuracies(margins: np.ndarray, users: np.ndarray) -> dict[int, float]:
    users, present = np.broadcast_to(users[:, None], margins.shape), ~np.isnan(margins)
    correct = (np.sign(margins[present]) + 1) / 2
    return dict(zip(np.unique(users[present]).tolist(), user_means(correct, users[present]), strict=True))


def _gain(accuracies: dict[int, float], base: dict[int, float]) -> dict[str, float]:
    gains = np.array([accuracy - base[user] for user, accuracy in accuracies.items() if user in base])
    if len(gains) < 2:
        return {"gain": float(gains.mean())} if len(gains) else {}
    return {"gain": float(gains.mean()), "gain_se": float(gains.std(ddof=1) / len(gains) ** 0.5)}


def _compute(margins: np.ndarray, users: np.ndarray) -> dict[str, float]:
    users = np.broadcast_to(users[:, None], margins.shape)
    present = ~np.isnan(margins)
    metric = evaluate.combine([UserAccuracy(), UserNLL(), UserCalibration()])
    return metric.compute(margins=margins[present].tolist(), users=users[present].tolist())
