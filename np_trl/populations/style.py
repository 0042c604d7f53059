"""
The style population: users who choose between two answers by the style they like, and its exact Bayes limit.

A user is one sign for each of the four attributes (16 types) and prefers the answer with the larger signed sum; pairs
that leave the user indifferent are never shown. The signs are not in the data. See `style_grammar.py` for the texts.
"""

import itertools
from collections import defaultdict

import numpy as np
from datasets import Dataset

from np_trl.populations.attributes import Attributes
from np_trl.populations.style_grammar import (
    ATTRIBUTES,
    OPPOSITES,
    REQUESTS,
    all_prompts,
    detect_attributes,
    write_answer,
)


STYLE = Attributes(ATTRIBUTES, OPPOSITES, detect_attributes, REQUESTS)
STYLES = STYLE.styles


def split_prompts(holdout: int = 5) -> tuple[list[str], list[str]]:
    """
    Split the prompts of the language into those for training and those for evaluation.

    Args:
        holdout (`int`, *optional*, defaults to `5`):
            Every `holdout`-th prompt (along the diagonals of the verb x noun table) is kept for evaluation.

    Returns:
        `tuple[list[str], list[str]]`: training prompts, evaluation prompts; every word occurs in both.
    """
    prompts = all_prompts()
    held_out = [index % holdout == (index // 20) % holdout for index in range(len(prompts))]
    train = [prompt for prompt, held in zip(prompts, held_out, strict=True) if not held]
    evaluation = [prompt for prompt, held in zip(prompts, held_out, strict=True) if held]
    return train, evaluation


def style_population(prompts: list[str], num_users: int, pairs_per_user: int, seed: int = 0) -> Dataset:
    """
    Draw users and their choices.

    Args:
        prompts (`list[str]`):
            Prompts to draw from, uniformly.
        num_users (`int`):
            Number of users. User `i` has type `STYLES[i % 16]`, so a multiple of 16 is balanced.
        pairs_per_user (`int`):
            Choices of each user.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything drawn.

    Returns:
        [`~datasets.Dataset`] with the columns `user_id`, `prompt`, `chosen`, `rejected`, and `style` and
        `group`: the user's signs and their names, for evaluation only.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        style = STYLES[user % len(STYLES)]
        for _ in range(pairs_per_user):
            chosen, rejected = _draw_choice(style, rng)
            prompt, content = str(rng.choice(prompts)), int(rng.integers(2**32))
            rows.append(
                {
                    "user_id": f"{seed}-{user}",
                    "prompt": prompt,
                    # the same content in two styles
                    "chosen": write_answer(prompt, chosen, np.random.default_rng(content)),
                    "rejected": write_answer(prompt, rejected, np.random.default_rng(content)),
                    "style": list(style),
                    "group": STYLE.name(style),
                }
            )
    return Dataset.from_list(rows)


def _draw_choice(style: tuple[int, ...], rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Draw two attribute vectors until the user prefers one; return them as chosen, rejected."""
    while True:
        first, second = (STYLES[index] for index in rng.integers(len(STYLES), size=2))
        utility = np.dot(style, np.subtract(first, second))
        if utility != 0:
            return (first, second) if utility > 0 else (second, first)


def style_bayes_accuracy(num_contexts: list[int]) -> dict[int, float]:
    """
    Return the best possible accuracy on unseen pairs after each number of context pairs, exactly.

    A choice says that `style . difference > 0`, so the posterior is uniform over the types that agree with every
    choice. The distribution of that set of types is propagated pair by pair, without sampling.

    Args:
        num_contexts (`list[int]`):
            Numbers of context pairs, N_C.

    Returns:
        `dict[int, float]`: N_C -> accuracy between 0 and 1.
    """
    differences = _difference_probabilities()
    preferring = {d: frozenset(s for s in STYLES if np.dot(s, d) > 0) for d in differences}
    shown = sum(p for d, p in differences.items() if STYLES[0] in preferring[d])  # P(a draw's first option is chosen)
    limits, distribution = {}, {frozenset(STYLES): 1.0}
    for num_context in range(max(num_contexts) + 1):
        limits[num_context] = sum(
            weight * sum(p * len(types & preferring[d]) * _share(types, d, preferring) for d, p in differences.items())
            / (len(types) * shown)
            for types, weight in distribution.items()
        )  # fmt: skip
        following = defaultdict(float)
        for types, weight in distribution.items():
            for d, p in differences.items():
                remaining = types & preferring[d]
                if remaining:
                    following[remaining] += weight * p * len(remaining) / (len(types) * shown)
        distribution = following
    return {num_context: limits[num_context] for num_context in num_contexts}


def _difference_probabilities() -> dict[tuple[int, ...], float]:
    """Probability of each difference of two uniform attribute vectors."""
    probabilities = defaultdict(float)
    for first, second in itertools.product(STYLES, repeat=2):
        probabilities[tuple(np.subtract(first, second).tolist())] += 1 / len(STYLES) ** 2
    return dict(probabilities)


def _share(types: frozenset, difference: tuple[int, ...], preferring: dict) -> float:
    """Probability that the Bayes predictor picks the chosen option: 1, 0, or 1/2 where the posterior is tied."""
    opposite = tuple(-x for x in difference)
    return 0.5 + 0.5 * float(np.sign(len(types & preferring[difference]) - len(types & preferring[opposite])))
