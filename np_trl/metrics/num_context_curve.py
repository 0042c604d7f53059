"""The metrics of an evaluation for every number of context pairs N_C, from what the trainers' evaluation gathers."""

import evaluate
import numpy as np
from transformers import EvalPrediction

from np_trl.metrics.user_metrics import UserAccuracy, UserCalibration, UserNLL


def num_context_curve(prediction: EvalPrediction) -> dict[str, float]:
    """
    Compute the metrics for every N_C.

    Args:
        prediction ([`~transformers.EvalPrediction`]):
            `predictions`: margins `(tasks, targets)`, NaN where a task has fewer targets; `label_ids`: conditions
            `(tasks, 2)`, user and N_C.

    Returns:
        `dict[str, float]`: `nc{N}_accuracy`, `nc{N}_accuracy_se`, `nc{N}_worst_decile_accuracy`, `nc{N}_nll`,
        `nc{N}_ece`.
    """
    metrics = {}
    margins, conditions = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    for num_context in np.unique(conditions[:, 1]):
        selected = conditions[:, 1] == num_context
        values = _compute(margins[selected], conditions[selected, 0])
        metrics.update({f"nc{num_context}_{key}": value for key, value in values.items()})
    return metrics


def _compute(margins: np.ndarray, users: np.ndarray) -> dict[str, float]:
    users = np.broadcast_to(users[:, None], margins.shape)
    present = ~np.isnan(margins)
    metric = evaluate.combine([UserAccuracy(), UserNLL(), UserCalibration()])
    return metric.compute(margins=margins[present].tolist(), users=users[present].tolist())
