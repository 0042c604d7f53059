import logging

import pytest
from datasets import Dataset
from ultrafeedback_p import ultrafeedback_p_preferences


def row(prompt="Why?", chosen="because", rejected="no idea", data_subset="8", controversial=True, **fields) -> dict:
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {
        "Index": 3,
        **pair,
        "data_subset": data_subset,
        "controversial": controversial,
        "reversed": False,
        **fields,
    }


def say(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def test_a_type_of_users_is_a_user():
    rows = [row(survey_options=True), row(data_subset="4", controversial=False, survey_options=False)]
    pairs = ultrafeedback_p_preferences(Dataset.from_list(rows))
    assert pairs.to_list() == [
        {"user_id": "8", "prompt": "Why?", "chosen": "because", "rejected": "no idea", "is_conflicting": True,
         "survey_options": True},
        {"user_id": "4", "prompt": "Why?", "chosen": "because", "rejected": "no idea", "is_conflicting": False,
         "survey_options": False},
    ]  # fmt: skip


def test_columns_that_only_some_files_have_may_be_absent():
    dataset = Dataset.from_list([row(data_subset=2)]).remove_columns("controversial")
    assert ultrafeedback_p_preferences(dataset).column_names == ["user_id", "prompt", "chosen", "rejected"]
    assert ultrafeedback_p_preferences(dataset)["user_id"] == ["2"]
    with pytest.raises(ValueError, match=r"The dataset has no \['data_subset'\] column"):
        ultrafeedback_p_preferences(dataset.remove_columns("data_subset"))


@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("prompt", ["Why?", [say("user", "Why?")]])
def test_options_that_are_conversations_go_on_from_their_prompt(prompt, with_prompt):
    opening = [say("user", "Why?")] if with_prompt else []
    rows = [row(prompt, [*opening, say("assistant", "because")], [*opening, say("assistant", "no idea")])]
    (pair,) = ultrafeedback_p_preferences(Dataset.from_list(rows))
    assert pair["prompt"] == [say("user", "Why?")]
    assert pair["chosen"] == [say("assistant", "because")] and pair["rejected"] == [say("assistant", "no idea")]


def test_strings_that_begin_with_their_prompt_go_on_from_it():
    row = {"data_subset": "8", "controversial": True, "prompt": "How? ", "chosen": "How? So.", "rejected": "How? No."}
    (pair,) = ultrafeedback_p_preferences(Dataset.from_list([row]))
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("How? ", "So.", "No.")


def test_ties_repetitions_and_gaps_are_left_out_and_counted(caplog):
    awkward = [
        row(prompt=None), row(prompt=" "), row(chosen=""), row(rejected=None), row(data_subset=None),
        row(data_subset=" "), row(chosen="no idea"), row(), row(Index=4),
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        pairs = ultrafeedback_p_preferences(Dataset.from_list([*awkward, row(data_subset="4")]))
    assert pairs["user_id"] == ["8", "4"]
    assert "Left out 8 of 10 pairs" in caplog.text
    with pytest.raises(ValueError, match="None of the 7 rows has a type of users"):
        ultrafeedback_p_preferences(Dataset.from_list(awkward[:7]))
