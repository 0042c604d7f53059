"""
Example 4.3 of the paper: options of two correlated scores, two kinds of users, and the Bayes limit.

The scores of an option are standard normal with correlation rho. Half of the users choose by the first score, the
others by the second. Only a pair on which the scores disagree shows who chose; of all pairs these are
`1/2 - arcsin(rho) / pi` (appendix A).
"""

import math

import numpy as np
from datasets import Dataset


def correlated_population(num_users: int, pairs_per_user: int, correlation: float, seed: int = 0) -> Dataset:
    """
    Draw users and their choices between options of two scores.

    Args:
        num_users (`int`):
            Number of users; even ones have z* = 0, odd ones z* = 1.
        pairs_per_user (`int`):
            Choices of each user.
        correlation (`float`):
            Correlation rho of the two scores, from -1 to 1. At -1 every pair conflicts, at 1 none does.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything drawn.

    Returns:
        [`~datasets.Dataset`] with the columns `user_id`, `chosen_embeds`, `rejected_embeds` (lists of two numbers), and
        `kind`: z*, for evaluation only.
    """
    rng = np.random.default_rng(seed)
    kind = np.arange(num_users).repeat(pairs_per_user) % 2  # (N,)
    options = rng.standard_normal((len(kind), 2, 2), dtype=np.float32)  # (N, option, score)
    options[..., 1] = correlation * options[..., 0] + math.sqrt(1 - correlation**2) * options[..., 1]
    rewards = np.take_along_axis(options, kind[:, None, None], axis=2)  # (N, option, 1)
    first = rewards[:, 0] > rewards[:, 1]  # (N, 1)
    return Dataset.from_dict(
        {
            "user_id": np.arange(num_users).repeat(pairs_per_user),
            "chosen_embeds": np.where(first, options[:, 0], options[:, 1]),
            "rejected_embeds": np.where(first, options[:, 1], options[:, 0]),
            "kind": kind,
        }
    )


def correlated_conflict_rate(correlation: float) -> float:
    """Return the share of pairs on which two scores with this correlation disagree."""
    return 0.5 - math.asin(correlation) / math.pi


def correlated_bayes_error(correlation: float, num_contexts: list[int]) -> dict[int, float]:
    """
    Return the smallest possible error of identifying z* from each number of context pairs.

    One conflicting pair determines z*, and without one it is a guess: the error is `(1/2) (1 - c)^N` with c the conflict
    rate; for N = 1, `1/4 + arcsin(rho) / (2 pi)`.

    Args:
        correlation (`float`):
            Correlation rho of the two scores in the context pairs.
        num_contexts (`list[int]`):
            Numbers of context pairs, N_C.

    Returns:
        `dict[int, float]`: N_C -> error between 0 and 1/2.
    """
    agreement = 1 - correlated_conflict_rate(correlation)
    return {num_context: 0.5 * agreement**num_context for num_context in num_contexts}
