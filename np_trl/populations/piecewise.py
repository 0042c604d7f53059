"""
Example 4.1 of the paper: one-dimensional options, two kinds of users, and the Bayes limit.

Everybody values y up to 1/2 alike; beyond, half of the users value 2y and the other half 1 - y (eq. 9, where x means
y). Options lie in [0, 1]: with the [-1, 1] of appendix C.1 nothing would conflict often enough for Table 1b.
"""

import numpy as np
from datasets import Dataset


def piecewise_population(num_users: int, pairs_per_user: int, seed: int = 0) -> Dataset:
    """
    Draw users and their choices between uniform options.

    Args:
        num_users (`int`):
            Number of users; even ones have z* = 0, odd ones z* = 1.
        pairs_per_user (`int`):
            Choices of each user.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything drawn.

    Returns:
        [`~datasets.Dataset`] with the columns `user_id`, `chosen_embeds`, `rejected_embeds` (lists of one number), and
        `kind`: z*, for evaluation only.
    """
    rng = np.random.default_rng(seed)
    kind = np.arange(num_users).repeat(pairs_per_user) % 2  # (N,)
    options = rng.random((num_users * pairs_per_user, 2), dtype=np.float32)  # (N, 2)
    rewards = piecewise_reward(options, kind[:, None])
    first = rewards[:, 0] > rewards[:, 1]
    chosen = np.where(first, options[:, 0], options[:, 1])
    rejected = np.where(first, options[:, 1], options[:, 0])
    return Dataset.from_dict(
        {
            "user_id": np.arange(num_users).repeat(pairs_per_user),
            "chosen_embeds": chosen[:, None],
            "rejected_embeds": rejected[:, None],
            "kind": kind,
        }
    )


def piecewise_reward(options: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Reward of options in [0, 1] for users of a kind (eq. 9): y up to 1/2, beyond it 2y or 1 - y."""
    return np.where(options <= 0.5, options, np.where(kind == 0, 2 * options, 1 - options))


def piecewise_bayes_accuracy(num_contexts: list[int]) -> dict[int, float]:
    """
    Return the best possible accuracy on unseen pairs after each number of context pairs.

    Half of all pairs conflict, and one conflicting context pair shows the kind of the user: the accuracy is
    `1 - (1/4) (1/2)^N`.

    Args:
        num_contexts (`list[int]`):
            Numbers of context pairs, N_C.

    Returns:
        `dict[int, float]`: N_C -> accuracy between 0 and 1.
    """
    return {num_context: 1 - 0.25 * 0.5**num_context for num_context in num_contexts}
