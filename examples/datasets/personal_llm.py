"""Items for [`simulate_users`] from PersonalLLM (Zollo et al., 2024; `namkoong-lab/PersonalLLM` on the Hub)."""

import logging
import math
import re

from datasets import Dataset, Value


logger = logging.getLogger(__name__)

_RESPONSE = re.compile(r"response_(\d+)")
_REWARD = re.compile(r"response_(\d+)_(.+)")


def reward_models(dataset: Dataset) -> list[str]:
    """
    Name the reward models of PersonalLLM: what is after `response_{number}_` in the names of the columns of numbers.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows of PersonalLLM.

    Returns:
        `list[str]`: the names, in their order.

    Raises:
        `ValueError`: if there is no response, no reward model, or a response that lacks one of them.
    """
    found = {}
    for column, feature in dataset.features.items():
        match = _REWARD.fullmatch(column)
        if match and isinstance(feature, Value) and feature.dtype.startswith(("float", "int", "uint")):
            found.setdefault(match[2], set()).add(match[1])
    responses = set(_response_numbers(dataset))
    if not responses or not found:
        raise ValueError(
            f"There is no column of texts `response_1` with numbers `response_1_<reward model>` among "
            f"{dataset.column_names}. Give the rows of PersonalLLM as they are."
        )
    for name, numbers in found.items():
        if responses - numbers:
            raise ValueError(f"The reward model {name!r} has no column of numbers for {sorted(responses - numbers)} of the "
                             f"responses {sorted(responses)}. Add these columns, or remove all of this reward model.")  # fmt: skip
    return list(found)


def personal_llm_items(dataset: Dataset) -> Dataset:
    """
    Turn rows of PersonalLLM, one a prompt with eight responses, into one row a response.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`; `response_1`, `response_2`, ...; and for each of them a number from every reward model, as
            `response_1_gemma_2b`.

    Returns:
        [`~datasets.Dataset`] with the columns `prompt`, `response`, and a number for each of the [`reward_models`]. Responses
        that are empty or without one of the numbers are left out, with a logged count.

    Raises:
        `ValueError`: as in [`reward_models`].

    Example:
    ```python
    >>> dataset = load_dataset("namkoong-lab/PersonalLLM", split="train")
    >>> rewards = reward_models(dataset)  # ["gemma_2b", "gemma_7b", ...]
    >>> # a user of PersonalLLM weighs the reward models; few of them, at a small concentration
    >>> weights = draw_mixtures(num_users=1000, num_scores=len(rewards), concentration=0.05)
    >>> users = simulate_users(personal_llm_items(dataset), rewards, weights, pairs_per_user=40)
    ```
    """
    rewards = reward_models(dataset)
    numbers = _response_numbers(dataset)
    items = dataset.map(
        _to_items,
        batched=True,
        fn_kwargs={"rewards": rewards, "numbers": numbers},
        remove_columns=dataset.column_names,
        desc="Reading PersonalLLM",
    )
    total = len(dataset) * len(numbers)
    if len(items) < total:
        logger.warning("Left out %d of %d responses that lack a reward or are empty.", total - len(items), total)
    return items


def _response_numbers(dataset: Dataset) -> list[str]:
    return [match[1] for column in dataset.column_names if (match := _RESPONSE.fullmatch(column))]


def _to_items(batch: dict[str, list], rewards: list[str], numbers: list[str]) -> dict[str, list]:
    columns = {name: [] for name in ("prompt", "response", *rewards)}
    for index, prompt in enumerate(batch["prompt"]):
        for number in numbers:
            response = batch[f"response_{number}"][index] or ""
            values = [batch[f"response_{number}_{reward}"][index] for reward in rewards]
            if not response.strip() or any(value is None or not math.isfinite(value) for value in values):
                continue
            for column, value in zip(columns.values(), (prompt, response, *map(float, values)), strict=True):
                column.append(value)
    return columns
