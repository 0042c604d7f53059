"""Evaluation of saved models on users: curves, texts, and baselines."""

from np_trl.evaluation.evaluate_users import evaluate_users, load_evaluation
from np_trl.evaluation.user_evaluation import UserEvaluation


__all__ = ["UserEvaluation", "evaluate_users", "load_evaluation"]
