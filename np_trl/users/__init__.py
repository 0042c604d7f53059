"""Users of a trained model: profiles, uncertainty, the next question, rewards and export."""

from np_trl.users.export import export_adapter, export_model
from np_trl.users.posterior import sample_latents
from np_trl.users.profile import UserProfile
from np_trl.users.questions import QuestionPool
from np_trl.users.rewards import UserReward, best_of_n
from np_trl.users.selection import Question, select_pairs
from np_trl.users.user_file import read_pairs


__all__ = [
    "Question",
    "QuestionPool",
    "UserProfile",
    "UserReward",
    "best_of_n",
    "export_adapter",
    "export_model",
    "read_pairs",
    "sample_latents",
    "select_pairs",
]
