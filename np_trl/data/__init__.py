"""Users, tasks, the collator, and simulated users."""

from np_trl.data.contextual_collator import ContextualCollator, EmbeddingTargets, TokenTargets
from np_trl.data.personal_llm import personal_llm_items
from np_trl.data.preference_rows import PreferenceRows
from np_trl.data.prism import prism_preferences
from np_trl.data.simulated_users import simulate_users
from np_trl.data.style_population import style_bayes_accuracy, style_population
from np_trl.data.tasks import EvaluationTasks, TaskSampler, TaskSampling, TrainingTasks
from np_trl.data.ultrafeedback import ultrafeedback_items
from np_trl.data.ultrafeedback_p import ultrafeedback_p_preferences


__all__ = [
    "ContextualCollator",
    "EmbeddingTargets",
    "EvaluationTasks",
    "PreferenceRows",
    "TaskSampler",
    "TaskSampling",
    "TokenTargets",
    "TrainingTasks",
    "personal_llm_items",
    "prism_preferences",
    "simulate_users",
    "style_bayes_accuracy",
    "style_population",
    "ultrafeedback_items",
    "ultrafeedback_p_preferences",
]
