"""np_trl: reward models and policies that adapt to a new user from a few choices."""

from importlib import import_module
from typing import TYPE_CHECKING


__version__ = "0.1.0"

# public name -> module that is imported when the name is first used
_PUBLIC = {
    "EvaluationProtocol": "np_trl.data",
    "NPDPOConfig": "np_trl.trainer",
    "NPDPOTrainer": "np_trl.trainer",
    "NPRewardConfig": "np_trl.trainer",
    "NPRewardModel": "np_trl.models",
    "NPRewardModelConfig": "np_trl.models",
    "NPRewardTrainer": "np_trl.trainer",
    "Question": "np_trl.users",
    "QuestionPool": "np_trl.users",
    "TextEmbedder": "np_trl.models",
    "UserAccuracy": "np_trl.metrics",
    "UserCalibration": "np_trl.metrics",
    "UserNLL": "np_trl.metrics",
    "UserProfile": "np_trl.users",
    "UserReward": "np_trl.users",
    "best_of_n": "np_trl.users",
    "evaluate_users": "np_trl.evaluation",
    "export_adapter": "np_trl.users",
    "export_model": "np_trl.users",
    "load_policy": "np_trl.trainer",
    "sample_latents": "np_trl.users",
    "select_pairs": "np_trl.users",
    "simulate_users": "np_trl.populations",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'np_trl' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from np_trl.data import EvaluationProtocol
    from np_trl.evaluation import evaluate_users
    from np_trl.metrics import UserAccuracy, UserCalibration, UserNLL
    from np_trl.models import NPRewardModel, NPRewardModelConfig, TextEmbedder
    from np_trl.populations import simulate_users
    from np_trl.trainer import NPDPOConfig, NPDPOTrainer, NPRewardConfig, NPRewardTrainer, load_policy
    from np_trl.users import (
        Question,
        QuestionPool,
        UserProfile,
        UserReward,
        best_of_n,
        export_adapter,
        export_model,
        sample_latents,
        select_pairs,
    )
