"""User-wise accuracy, likelihood and calibration, as `evaluate` metrics."""

from np_trl.metrics.num_context_curve import num_context_curve
from np_trl.metrics.user_metrics import UserAccuracy, UserCalibration, UserNLL


__all__ = ["UserAccuracy", "UserCalibration", "UserNLL", "num_context_curve"]
