"""
Everyday answers: users who choose between answers that SmolLM2-135M-Instruct wrote to everyday prompts.

The answers come with the package (`examples/datasets/write_answers.py` made them). A user weighs the four attributes of
`answer_style.py`: with one sign for each (16 types), or, in a continuum, with any weights. Pairs that leave a user
indifferent are never shown. Weights are not in what a model sees.
"""

from importlib.resources import files

import numpy as np
from datasets import Dataset, load_dataset

from np_trl.data.loading import split_by_hash
from np_trl.populations.answer_style import ATTRIBUTES, OPPOSITES, REQUESTS, detect_attributes
from np_trl.populations.attributes import Attributes
from np_trl.populations.scored_responses import simulate_users


EVERYDAY = Attributes(ATTRIBUTES, OPPOSITES, detect_attributes, REQUESTS)
STYLES = EVERYDAY.styles


def load_answers() -> Dataset:
    """
    Load the answers.

    Returns:
        [`~datasets.Dataset`] with the columns `kind`, `prompt`, `response`, and 1 or -1 for each of `ATTRIBUTES`.
    """
    path = str(files("np_trl.everyday_answers") / "answers.parquet")
    answers = load_dataset("parquet", data_files=path, split="train")
    attributes = np.array([detect_attributes(text) for text in answers["response"]])  # (answers, 4)
    for name, values in zip(ATTRIBUTES, attributes.T, strict=True):
        answers = answers.add_column(name, values)
    return answers


def everyday_population(
    split: str, num_users: int, pairs_per_user: int, seed: int = 0, is_continuum: bool = False
) -> Dataset:
    """
    Draw users and their choices.

    Args:
        split (`str`):
            Whose prompts: `"train"`, `"validation"` or `"test"`, which share none.
        num_users (`int`):
            Number of users. User `i` has type `STYLES[i % 16]`, so a multiple of 16 is balanced.
        pairs_per_user (`int`):
            Choices of each user.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything drawn.
        is_continuum (`bool`, *optional*, defaults to `False`):
            Whether users weigh the attributes by normal weights instead of signs.

    Returns:
        [`~datasets.Dataset`] with the columns `user_id`, and `prompt`, `chosen`, `rejected` as messages; and, for
        evaluation only, `style`, the signs of the user's weights, and `group`, their names.
    """
    styles = np.array([STYLES[user % len(STYLES)] for user in range(num_users)])  # (users, 4)
    weights = styles.astype(float)
    if is_continuum:
        weights = np.random.default_rng((2, seed)).normal(size=weights.shape)
        styles = np.where(weights > 0, 1, -1)
    answers = split_by_hash(load_answers(), "prompt")[split]
    pairs = simulate_users(answers, list(ATTRIBUTES), weights, pairs_per_user, seed=seed, standardize=False)

    def to_messages(pair: dict) -> dict:
        user = pair["user_id"]
        return {
            "user_id": f"{split}-{seed}-{user}",
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "chosen": [{"role": "assistant", "content": pair["chosen"]}],
            "rejected": [{"role": "assistant", "content": pair["rejected"]}],
            "style": styles[user].tolist(),
            "group": EVERYDAY.name(styles[user]),
        }

    return Dataset.from_list([to_messages(pair) for pair in pairs])
