import logging

import pytest
from datasets import Dataset
from prism import prism_preferences


def utterance(conversation: str, turn: int, response: str | None, chosen: bool = False, **fields) -> dict:
    return {
        "utterance_id": f"{conversation}{turn}{response}",
        "interaction_id": f"{conversation}-{turn}",
        "conversation_id": conversation,
        "user_id": f"user of {conversation}",
        "turn": turn,
        "within_turn_id": 0,
        "conversation_type": "unguided",
        "user_prompt": f"prompt {turn}",
        "model_response": response,
        "model_name": "some-model",
        "model_provider": "someone",
        "score": 50,
        "if_chosen": chosen,
        "included_in_balanced_subset": True,
        **fields,
    }


def rows(*utterances: dict) -> Dataset:
    return Dataset.from_list(list(utterances))


CONVERSATION = [
    # turns and conversations are not in order
    utterance("c", 1, "so", chosen=True),
    utterance("d", 0, "no", chosen=True),
    utterance("c", 1, "thus"),
    utterance("c", 0, "b", score=90),
    utterance("c", 0, "a", chosen=True, score=10),
    utterance("c", 0, "d"),
    utterance("d", 0, "yes"),
]


def test_the_chosen_response_beats_each_other_one_of_its_turn_whatever_the_scores():
    pairs = prism_preferences(rows(*CONVERSATION))
    # between b and d nobody chose
    found = {(row["user_id"], row["prompt"], row["chosen"], row["rejected"]) for row in pairs}
    assert found == {
        ("user of c", "prompt 0", "a", "b"),
        ("user of c", "prompt 0", "a", "d"),
        ("user of d", "prompt 0", "no", "yes"),
    }
    assert len(pairs) == 3 and set(pairs["turn"]) == {0} and set(pairs["conversation_type"]) == {"unguided"}


def test_the_prompt_of_a_later_turn_is_the_conversation_with_the_chosen_responses():
    pairs = prism_preferences(rows(*CONVERSATION), opening_turns_only=False)
    (later,) = (row for row in pairs if row["turn"] == 1)
    assert later["prompt"] == [
        {"role": "user", "content": "prompt 0"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "prompt 1"},
    ]
    assert later["chosen"] == [{"role": "assistant", "content": "so"}]
    assert later["rejected"] == [{"role": "assistant", "content": "thus"}]
    opening = [row for row in pairs if row["turn"] == 0]
    assert len(opening) == 3 and all(len(row["prompt"]) == 1 for row in opening)


AWKWARD = [
    utterance("nothing chosen", 0, "a"),
    utterance("nothing chosen", 0, "b"),
    utterance("nothing chosen", 1, "a", chosen=True),
    utterance("nothing chosen", 1, "b"),
    utterance("two chosen", 0, "a", chosen=True),
    utterance("two chosen", 0, "b", chosen=True),
    utterance("chosen is empty", 0, " ", chosen=True),
    utterance("chosen is empty", 0, "b"),
    utterance("no prompt", 0, "a", chosen=True, user_prompt=None),
    utterance("no prompt", 0, "b", user_prompt=None),
    utterance("alone", 0, "a", chosen=True),
    utterance("repeated", 0, "a", chosen=True),
    utterance("repeated", 0, "a"),
    utterance("repeated", 0, "b"),
    utterance("repeated", 0, "b"),
    utterance("repeated", 0, None),
]


def test_turns_without_a_choice_and_repeated_or_empty_responses_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        pairs = prism_preferences(rows(*AWKWARD))
    assert [(row["conversation_id"], row["chosen"], row["rejected"]) for row in pairs] == [("repeated", "a", "b")]
    assert "2 empty responses, 2 repeated responses, 4 turns without a prompt or one chosen response" in caplog.text


def test_what_follows_on_a_turn_without_a_choice_has_no_prompt(caplog):
    gap = [utterance("gap", turn, text, chosen=text == "a") for turn in (0, 2) for text in "ab"]
    with caplog.at_level(logging.WARNING):
        pairs = prism_preferences(rows(*AWKWARD, *gap), opening_turns_only=False)
    assert [(row["conversation_id"], row["turn"]) for row in pairs] == [("repeated", 0), ("gap", 0)]
    assert "6 turns without a prompt or one chosen response, or after such a turn" in caplog.text


def test_other_tables_are_refused():
    with pytest.raises(ValueError, match=r"`utterances` has no \['if_chosen'\] column.*configuration `utterances`"):
        prism_preferences(rows(*CONVERSATION).remove_columns("if_chosen"))
    with pytest.raises(ValueError, match="The 2 utterances make no pair"):
        prism_preferences(rows(*AWKWARD[:2]))
