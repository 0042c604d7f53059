"""
Metrics of user-wise preference prediction, as `evaluate` metrics.

All take one log-odds `margins` and one user for each pair: the margin is positive where the chosen option is
predicted. Users count equally, whatever their number of pairs.
"""

import datasets
import evaluate
import numpy as np


_FEATURES = datasets.Features({"margins": datasets.Value("float64"), "users": datasets.Value("int64")})

_CITATION = """\
@inproceedings{kobalczyk2025fewshot,
    title     = {Few-shot Steerable Alignment: Adapting Rewards and LLM Policies with Neural Processes},
    author    = {Katarzyna Kobalczyk and Claudio Fanconi and Hao Sun and Mihaela van der Schaar},
    year      = 2025,
}"""


class _UserMetric(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation=_CITATION,
            inputs_description="`margins`: log-odds of the chosen option, one a pair. `users`: who chose, one a pair.",
            features=_FEATURES,
        )


class UserAccuracy(_UserMetric):
    """
    Accuracy of predicted choices, averaged over users. A margin of 0 counts half.

    Returns `accuracy`, its standard error over users `accuracy_se`, and `worst_decile_accuracy`, the mean of the worst
    tenth of the users (at least one).
    """

    def _compute(self, margins, users) -> dict[str, float]:
        correct = (np.sign(_read_margins(margins)) + 1) / 2
        per_user = np.sort(user_means(correct, users))
        decile = per_user[: max(1, len(per_user) // 10)]
        return {
            "accuracy": float(per_user.mean()),
            "accuracy_se": float(per_user.std(ddof=1) / len(per_user) ** 0.5) if len(per_user) > 1 else float("nan"),
            "worst_decile_accuracy": float(decile.mean()),
        }


class UserNLL(_UserMetric):
    """Negative log-likelihood of the choices in nats, averaged over users. Returns `nll`."""

    def _compute(self, margins, users) -> dict[str, float]:
        return {"nll": float(user_means(np.logaddexp(0, -_read_margins(margins)), users).mean())}


class UserCalibration(_UserMetric):
    """
    Expected calibration error of predicted choices, over pairs: ten equal bins of confidence between 0.5 and 1.
    Returns `ece`.
    """

    def _compute(self, margins, users) -> dict[str, float]:
        margins = _read_margins(margins)
        confidence = 1 / (1 + np.exp(-np.abs(margins)))
        correct = (np.sign(margins) + 1) / 2
        bins = np.minimum(((confidence - 0.5) * 20).astype(int), 9)
        gaps = np.bincount(bins, weights=correct - confidence, minlength=10)
        return {"ece": float(np.abs(gaps).sum() / len(margins))}


def _read_margins(margins: list[float]) -> np.ndarray:
    margins = np.asarray(margins, dtype=float)
    if not np.isfinite(margins).all():
        raise ValueError(
            f"{(~np.isfinite(margins)).sum()} of {len(margins)} `margins` are NaN or infinite, which is no prediction. Look at the "
            "model: its weights, its embeddings or its precision."
        )
    return margins


def user_means(values: np.ndarray, users: list[int]) -> np.ndarray:
    """Mean of `values` for each user, in the order of the users' numbers."""
    _, codes = np.unique(users, return_inverse=True)
    return np.bincount(codes, weights=values) / np.bincount(codes)
