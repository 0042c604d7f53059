"""Users, tasks, the collator, and simulated users."""

from np_trl.data.contextual_collator import ContextualCollator, EmbeddingTargets, TokenTargets
from np_trl.data.preference_rows import PreferenceRows
from np_trl.data.simulated_users import simulate_users
from np_trl.data.style_population import style_bayes_accuracy, style_population
from np_trl.data.tasks import EvaluationTasks, TaskSampler, TaskSampling, TrainingTasks


__all__ = [
    "ContextualCollator",
    "EmbeddingTargets",
    "EvaluationTasks",
    "PreferenceRows",
    "TaskSampler",
    "TaskSampling",
    "TokenTargets",
    "TrainingTasks",
    "simulate_users",
    "style_bayes_accuracy",
    "style_population",
]
