"""The data of a training run: rows, users, tasks and the collator."""

from np_trl.data.contextual_collator import ContextualCollator, EmbeddingTargets, TokenTargets
from np_trl.data.evaluation_protocol import EvaluationProtocol
from np_trl.data.evaluation_tasks import EvaluationTasks
from np_trl.data.preference_rows import PreferenceRows
from np_trl.data.tasks import TaskSampler, TaskSampling, TrainingTasks


__all__ = [
    "ContextualCollator",
    "EmbeddingTargets",
    "EvaluationProtocol",
    "EvaluationTasks",
    "PreferenceRows",
    "TaskSampler",
    "TaskSampling",
    "TokenTargets",
    "TrainingTasks",
]
