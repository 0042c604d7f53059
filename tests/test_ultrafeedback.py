import logging

import numpy as np
import pytest
from datasets import Dataset

from np_trl import simulate_users
from np_trl.data.loading import SPLITS, hash_split
from np_trl.populations.ultrafeedback import ASPECTS, ultrafeedback_items


def completion(response: str, **ratings: str) -> dict:
    annotations = {aspect: {"Rating": ratings.get(aspect, "3"), "Rationale": "because"} for aspect in ASPECTS}
    return {"response": response, "model": "some-model", "annotations": annotations}


def prompts(train: int, validation: int, test: int) -> list[str]:
    """As many prompts as asked for of each split."""
    numbers = dict(zip(SPLITS, (train, validation, test), strict=True))
    candidates = [f"Question {n}?" for n in range(100 * sum(numbers.values()))]
    return [
        prompt
        for split, number in numbers.items()
        for prompt in [prompt for prompt in candidates if hash_split(prompt) == split][:number]
    ]


def write_ultrafeedback(path, given: list[str], num_responses: int = 4, awkward: bool = False) -> str:
    """Save hand-made UltraFeedback whose first two aspects always conflict, and return its path."""
    rng, rows = np.random.default_rng(0), []
    for prompt in given:
        ratings = rng.permutation(np.arange(1, num_responses + 1))
        completions = [
            completion(f"{prompt} {n}", helpfulness=str(n), honesty=str(6 - n), truthfulness=str(rating))
            for n, rating in enumerate(ratings, start=1)
        ]
        rows.append({"instruction": prompt, "completions": completions})
    if awkward:
        rows[0]["completions"][0]["annotations"] = None
        rows[0]["completions"][1] = completion("rated in part", honesty="N/A")
        rows[1]["completions"] = rows[1]["completions"][:1]
        rows[2]["completions"].append(completion(f"{given[2]} 1", helpfulness="5", honesty="5"))
    Dataset.from_list(rows).to_json(path / "ultrafeedback.jsonl")
    return str(path / "ultrafeedback.jsonl")


def rows() -> Dataset:
    completions = [
        completion("long and kind", helpfulness="5", honesty="2"),
        completion("short and true", helpfulness="1", honesty="4"),
        completion("unrated", honesty="N/A"),
        completion(" "),
    ]
    return Dataset.from_list([{"instruction": "Why?", "source": "hand", "completions": completions}])


def test_responses_come_with_their_ratings_and_those_without_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        items = ultrafeedback_items(rows())
    assert items.column_names == ["prompt", "response", "model", *ASPECTS]
    assert items["response"] == ["long and kind", "short and true"]
    assert items["helpfulness"] == [5, 1] and items["honesty"] == [2, 4] and items["truthfulness"] == [3, 3]
    assert "Left out 2 of 4 responses" in caplog.text


def test_only_the_aspects_that_are_asked_for_must_be_rated():
    items = ultrafeedback_items(rows(), ["helpfulness"])
    assert items["response"] == ["long and kind", "short and true", "unrated"]
    with pytest.raises(ValueError, match="must be among"):
        ultrafeedback_items(rows(), ["charm"])


def test_annotations_of_every_kind_of_absence_are_passed_by(caplog):
    rated, annotations = completion("rated"), completion("x")["annotations"]
    awkward = [
        {**rated, "response": "no annotations", "annotations": None},
        {**rated, "response": "no aspect", "annotations": {**annotations, "honesty": None}},
        {**rated, "response": "no rating", "annotations": {**annotations, "honesty": {"Rating": None}}},
        completion("no number", honesty="N/A (see above)"),
        completion("not finite", honesty="nan"),
        {**rated, "response": None},
    ]
    completions = [[*awkward, rated], [], None]
    dataset = Dataset.from_list([{"instruction": str(n), "completions": given} for n, given in enumerate(completions)])
    with caplog.at_level(logging.WARNING):
        assert ultrafeedback_items(dataset)["response"] == ["rated"]
    assert "Left out 6 of 7 responses" in caplog.text


def test_the_items_make_users_who_conflict():
    scores = ["helpfulness", "honesty"]
    users = simulate_users(ultrafeedback_items(rows()), scores, np.eye(2), 1, conflict_rate=1.0)
    assert users["chosen"] == ["long and kind", "short and true"]
    assert users["rejected"] == ["short and true", "long and kind"]
