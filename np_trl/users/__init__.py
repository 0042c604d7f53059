"""A person in use: profiles, what is still open about a person, and what to ask next."""

from np_trl.users.posterior import sample_latents
from np_trl.users.profile import UserProfile
from np_trl.users.questions import QuestionPool
from np_trl.users.selection import select_pairs


__all__ = ["QuestionPool", "UserProfile", "sample_latents", "select_pairs"]
