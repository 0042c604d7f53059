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
            `(tasks, 3)`: user, N_C, and 1 where the context is another user's.

    Returns:
        `dict[str, float]`: `nc{N}_accuracy`, `nc{N}_accuracy_se`, `nc{N}_worst_decile_accuracy`, `nc{N}_nll`,
        `nc{N}_ece`, and, for another user's context, `nc{N}_shuffled_accuracy`, `nc{N}_shuffled_accuracy_se`.
    """
    metrics = {}
    conditions = np.asarray(prediction.label_ids)
    for num_context, shuffled in sorted({(int(n), int(s)) for _, n, s in conditions}):
        selected = (conditions[:, 1] == num_context) & (conditions[:, 2] == shuffled)
        values = _compute(np.asarray(prediction.predictions)[selected], conditions[selected, 0])
        if shuffled:
            values = {f"shuffled_{key}": values[key] for key in ("accuracy", "accuracy_se")}
        metrics.update({f"nc{num_context}_{key}": value for key, value in values.items()})
    return metrics


def _compute(margins: np.ndarray, users: np.ndarray) -> dict[str, float]:
    users = np.broadcast_to(users[:, None], margins.shape)
    present = ~np.isnan(margins)
    metric = evaluate.combine([UserAccuracy(), UserNLL(), UserCalibration()])
    return metric.compute(margins=margins[present].tolist(), users=users[present].tolist())
