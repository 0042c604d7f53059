import logging

import numpy as np
import pytest
from datasets import Dataset
from personal_llm import personal_llm_items, reward_models

from np_trl import simulate_users


REWARDS = ["gemma_2b", "oasst_deberta_v3"]


def row(prompt: str, **fields) -> dict:
    """Two responses: the first pleases gemma_2b, the second oasst_deberta_v3."""
    columns = {"prompt": prompt, "subset": "hh", "prompt_id": 7}
    for number, rewards in (("1", (2.5, -1.0)), ("2", (-0.5, 3.0))):
        columns |= {f"response_{number}": f"{prompt} {number}", f"response_{number}_model": "some-model"}
        columns |= {f"response_{number}_{name}": reward for name, reward in zip(REWARDS, rewards, strict=True)}
    return columns | fields


def test_reward_models_are_what_gives_numbers_to_every_response():
    dataset = Dataset.from_list([row("a")])
    assert reward_models(dataset) == REWARDS  # not `response_1_model`, a text
    with pytest.raises(
        ValueError, match=r"'gemma_2b' has no column of numbers for \['2'\] of the responses \['1', '2'\]"
    ):
        reward_models(dataset.remove_columns("response_2_gemma_2b"))
    with pytest.raises(ValueError, match="There is no column of texts `response_1`"):
        reward_models(dataset.select_columns(["prompt", "response_1"]))


def test_every_response_is_a_row_with_its_rewards():
    items = personal_llm_items(Dataset.from_list([row("a"), row("b")]))
    assert items.column_names == ["prompt", "response", *REWARDS]
    assert items["response"] == ["a 1", "a 2", "b 1", "b 2"] and items["prompt"] == ["a", "a", "b", "b"]
    assert items["gemma_2b"] == [2.5, -0.5] * 2 and items["oasst_deberta_v3"] == [-1.0, 3.0] * 2


def test_responses_that_are_empty_or_lack_a_reward_are_counted(caplog):
    awkward = [row("a", response_1=None), row("b", response_2=" "), row("c", response_1_gemma_2b=None)]
    awkward.append(row("d", response_2_oasst_deberta_v3=float("nan")))
    with caplog.at_level(logging.WARNING):
        items = personal_llm_items(Dataset.from_list([*awkward, row("e")]))
    assert items["response"] == ["a 2", "b 1", "c 2", "d 1", "e 1", "e 2"]
    assert "Left out 4 of 10 responses" in caplog.text


def test_users_weigh_the_reward_models():
    users = simulate_users(personal_llm_items(Dataset.from_list([row("a")])), REWARDS, [[0.9, 0.1], [0.1, 0.9]], 1)
    assert users["chosen"] == ["a 1", "a 2"] and all(users["is_conflicting"])
    assert np.allclose(users["weights"], [[0.9, 0.1], [0.1, 0.9]])
