import logging
import time

import numpy as np
import pytest
from datasets import Dataset

from np_trl import simulate_users
from np_trl.data.loading import SPLITS, hash_split
from np_trl.populations.scored_responses import draw_mixtures, simulate_splits


SCORES = ["clarity", "brevity"]


def items(num_prompts: int = 30, responses: int = 6, seed: int = 0, scores: list[str] = SCORES) -> Dataset:
    """Responses that are named by their prompt and number, with random scores of different scales."""
    rng = np.random.default_rng(seed)
    texts = [(f"p{p}", f"p{p} r{r}") for p in range(num_prompts) for r in range(responses)]
    columns = {name: rng.normal(scale=10.0**index, size=len(texts)) for index, name in enumerate(scores)}
    return Dataset.from_dict({"prompt": [p for p, _ in texts], "response": [r for _, r in texts], **columns})


def score_differences(users: Dataset, table: Dataset, scores: list[str] = SCORES) -> np.ndarray:
    """Score of the chosen minus score of the rejected: `(rows, S)`."""
    values = dict(zip(table["response"], np.stack([table[name] for name in scores], axis=1), strict=True))
    return np.stack([values[row["chosen"]] - values[row["rejected"]] for row in users])


def test_a_mode_reproduces_the_order_of_its_score():
    table = items()
    users = simulate_users(table, SCORES, np.eye(2), pairs_per_user=50)
    differences = score_differences(users, table)
    assert (differences[np.arange(100), np.array(users["user_id"])] > 0).all()
    assert users["group"] == ["clarity"] * 50 + ["brevity"] * 50
    assert all(row["chosen"].startswith(f"{row['prompt']} ") for row in users)
    assert all(row["rejected"].startswith(f"{row['prompt']} ") for row in users)


def test_a_mixture_agrees_with_the_modes_where_they_agree_and_weighs_standardised_scores():
    table = items()
    weights = np.array([[0.3, 0.7]])
    users = simulate_users(table, SCORES, weights, pairs_per_user=200)
    differences = score_differences(users, table)
    agreeing = ~np.array(users["is_conflicting"])
    assert agreeing.any() and (differences[agreeing] > 0).all()
    stds = np.array([np.std(table[name]) for name in SCORES])
    assert (differences / stds @ weights[0] > 0).all()
    assert set(users["group"]) == {"mixture"} and users["weights"][0] == [0.3, 0.7]


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.75, 1.0])
def test_the_conflict_rate_is_kept_for_every_user(rate):
    table, size = items(num_prompts=60), 41
    users = simulate_users(table, SCORES, np.eye(2), size, conflict_rate=rate)
    conflicts = (score_differences(users, table).prod(axis=1) < 0).reshape(2, size)
    assert (abs(conflicts.mean(axis=1) - rate) <= 1 / size).all()
    assert (conflicts.flatten() == users["is_conflicting"]).all()


def test_with_three_modes_a_pair_conflicts_where_one_differs_from_the_other_two():
    scores = ["a", "b", "c"]
    table = items(scores=scores)
    users = simulate_users(table, scores, np.eye(3), 100, conflict_rate=1.0)
    signs = np.sign(score_differences(users, table, scores)).sum(axis=1)
    assert set(signs) == {-1, 1}


def test_all_pairs_of_different_responses_and_no_others_are_drawn():
    table = items(num_prompts=3, responses=4)
    users = simulate_users(table, SCORES, [[1, 0]], pairs_per_user=3 * 6)
    assert len({frozenset((row["chosen"], row["rejected"])) for row in users}) == 18
    with pytest.raises(ValueError, match="has 18 pairs to choose from, but `pairs_per_user=19`"):
        simulate_users(table, SCORES, [[1, 0]], pairs_per_user=19)


def test_ties_repeated_responses_and_single_responses_are_left_out(caplog):
    columns = {
        "prompt": ["one", "many", "many", "many", "many"],
        "response": ["alone", "a", "b", "a", "c"],
        "clarity": [9.0, 1.0, 1.0, 5.0, 2.0],
        "brevity": [9.0, 1.0, 2.0, 5.0, 3.0],
    }
    with caplog.at_level(logging.INFO):
        users = simulate_users(Dataset.from_dict(columns), SCORES, [[1, 0]], pairs_per_user=2)
    # the second "a" does not count, and a is as clear as b
    assert sorted(zip(users["chosen"], users["rejected"], strict=True)) == [("c", "a"), ("c", "b")]
    assert "1 repeated responses, and 1 prompts with a single response" in caplog.text


@pytest.mark.parametrize("rate", [None, 0.25, 0.5, 0.75, 1.0])
def test_without_a_number_a_user_has_all_pairs_at_the_rate_of_conflicts(rate):
    table = items(num_prompts=20)
    alone = simulate_users(table, SCORES, [[1, 0]], None)
    num_conflicting = sum(alone["is_conflicting"])
    assert len(alone) == 20 * 15 and 0 < num_conflicting < 300
    users = simulate_users(table, SCORES, np.eye(2), None, conflict_rate=rate)
    assert users["user_id"] == sorted(users["user_id"])
    first = users.filter(lambda row: row["user_id"] == 0)
    pairs = {frozenset((row["chosen"], row["rejected"])) for row in first}
    assert len(users) == 2 * len(first) and len(pairs) == len(first)
    if rate is None:
        assert len(first) == 300
    else:
        assert abs(np.mean(first["is_conflicting"]) - rate) <= 1 / len(first)
        expected = min(num_conflicting / rate, (300 - num_conflicting) / (1 - rate) if rate < 1 else np.inf)
        assert len(first) == int(expected)


def test_users_may_have_different_numbers_of_pairs():
    table = Dataset.from_dict(
        {"prompt": ["p"] * 3, "response": list("abc"), "clarity": [1.0, 2.0, 3.0], "brevity": [1.0, 1.0, 2.0]}
    )
    users = simulate_users(table, SCORES, np.eye(2), None)
    assert users["user_id"] == [0, 0, 0, 1, 1]  # a is as brief as b
    with pytest.raises(ValueError, match="User 0 has 0 conflicting pairs"):
        simulate_users(table, SCORES, np.eye(2), None, conflict_rate=1.0)


def test_splits_share_neither_prompts_nor_users():
    weights = {split: np.eye(2).repeat(size, axis=0) for split, size in zip(SPLITS, (1, 2, 3), strict=True)}
    splits = simulate_splits(items(100), SCORES, weights, {"train": None, "validation": 20, "test": 10}, 1.0)
    assert [len(dataset.unique("user_id")) for dataset in splits.values()] == [2, 4, 6]
    for split, dataset in splits.items():
        assert {hash_split(prompt) for prompt in dataset["prompt"]} == {split}
        assert all(user.startswith(f"{split}-") for user in dataset["user_id"])
        assert set(dataset["group"]) == set(SCORES) and all(dataset["is_conflicting"])


def test_mixtures_are_points_of_the_simplex_with_the_moments_of_the_distribution():
    for concentration, num_scores in ((0.5, 2), (1.0, 3)):
        weights = draw_mixtures(20_000, num_scores, concentration)
        assert weights.shape == (20_000, num_scores) and (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        variance = (1 / num_scores) * (1 - 1 / num_scores) / (num_scores * concentration + 1)
        np.testing.assert_allclose(weights.mean(axis=0), 1 / num_scores, atol=0.01)
        np.testing.assert_allclose(weights.var(axis=0), variance, atol=0.005)
    with pytest.raises(ValueError, match="`concentration=0` must be positive"):
        draw_mixtures(1, 2, 0)


def test_users_are_a_function_of_the_arguments():
    first, again = (simulate_users(items(), SCORES, np.eye(2), 40, 0.5, seed=3).to_dict() for _ in range(2))
    assert first == again
    assert simulate_users(items(), SCORES, np.eye(2), 40, 0.5, seed=4).to_dict() != first


def test_ten_thousand_items_take_seconds():
    table = items(num_prompts=700, responses=15)
    start = time.perf_counter()
    users = simulate_users(table, SCORES, np.eye(2).repeat(300, axis=0), 40, conflict_rate=1.0)
    assert len(users) == 600 * 40 and time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": ["clarity", "depth"]}, r"`items` has no \['depth'\] column"),
        ({"weights": [[1.0]]}, r"`weights` has shape \(1, 1\)"),
        ({"conflict_rate": 1.5}, "`conflict_rate=1.5` must be between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"scores": SCORES, "weights": np.eye(2), "pairs_per_user": 5, **change}
    with pytest.raises(ValueError, match=message):
        simulate_users(items(), **arguments)


def test_a_missing_score_is_named():
    table = items().map(lambda row, index: {"brevity": None if index == 7 else row["brevity"]}, with_indices=True)
    with pytest.raises(ValueError, match="`brevity` of row 7 of `items` is missing"):
        simulate_users(table, SCORES, np.eye(2), 5)
