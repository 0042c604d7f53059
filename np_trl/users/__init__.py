"""A person in use: profiles."""

from np_trl.users.profile import UserProfile


__all__ = ["UserProfile"]
