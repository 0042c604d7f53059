import itertools

import numpy as np
import pytest

from np_trl.populations import style_bayes_accuracy, style_population
from np_trl.populations.style import STYLES, split_prompts
from np_trl.populations.style_grammar import (
    ATTRIBUTES,
    NOUNS,
    VERBS,
    all_prompts,
    detect_attributes,
    is_grammatical,
    write_answer,
)


@pytest.mark.parametrize("style", STYLES)
def test_answers_are_parsed_as_they_were_written(style):
    rng = np.random.default_rng(0)
    for prompt in all_prompts()[::7]:
        answer = write_answer(prompt, style, rng)
        assert detect_attributes(answer) == style
        assert is_grammatical(prompt, answer)


def test_other_texts_are_not_grammatical():
    prompt = "How do I fix the bike?"
    answer = " Perhaps, here's the trick: ask a buddy, then possibly fix the bike real good."
    assert is_grammatical(prompt, answer)
    for wrong in (
        answer.replace("bike", "lamp"),
        answer.replace("fix", "sell"),
        answer.replace("possibly", "certainly"),
        answer.replace("ask a buddy", "consult the manual"),
        answer.replace("ask a buddy", "ask a buddy, then ask a buddy, then take it slow"),
        answer.replace("real good", "thoroughly"),
        answer.removesuffix("."),
        answer.replace(", then", "\n-"),
        "",
        " no",
    ):
        assert not is_grammatical(prompt, wrong), wrong


def test_evaluation_prompts_are_unseen_but_made_of_known_words():
    train, evaluation = split_prompts()
    assert not set(train) & set(evaluation)
    assert set(train) | set(evaluation) == set(all_prompts())
    for prompts in (train, evaluation):
        words = " ".join(prompts)
        assert all(f" {word} " in words for word in VERBS) and all(f" {word}?" in words for word in NOUNS)


def test_choices_follow_the_signed_sum_and_are_never_ties():
    dataset = style_population(split_prompts()[0], num_users=16, pairs_per_user=10, seed=3)
    assert len(set(dataset["user_id"])) == 16
    for row in dataset:
        difference = np.subtract(detect_attributes(row["chosen"]), detect_attributes(row["rejected"]))
        assert np.dot(row["style"], difference) > 0


def test_seeds_draw_other_users():
    prompts, _ = split_prompts()
    first = style_population(prompts, 16, 4, seed=0)
    assert first.to_list() == style_population(prompts, 16, 4, seed=0).to_list()
    other = style_population(prompts, 16, 4, seed=1)
    assert first["chosen"] != other["chosen"] and not set(first["user_id"]) & set(other["user_id"])


def test_bayes_limit():
    limits = style_bayes_accuracy([0, 1, 3, 5, 10])
    assert limits[0] == pytest.approx(0.5)
    assert [round(limits[n], 3) for n in (1, 3, 5, 10)] == [0.718, 0.885, 0.956, 0.996]


def test_bayes_limit_agrees_with_simulation():
    """The posterior predictive, simulated on drawn users: nothing is shared with the exact recursion."""
    rng, correct = np.random.default_rng(0), {1: [], 3: []}
    differences = [np.subtract(a, b) for a, b in itertools.product(STYLES, repeat=2)]
    for _ in range(4000):
        style = STYLES[rng.integers(16)]
        choosable = [d for d in differences if np.dot(style, d) > 0]
        pairs = [choosable[i] for i in rng.integers(len(choosable), size=4)]
        for num_context in correct:
            types = [t for t in STYLES if all(np.dot(t, d) > 0 for d in pairs[:num_context])]
            votes = sum(np.sign(np.dot(t, pairs[3])) for t in types)
            correct[num_context].append((np.sign(votes) + 1) / 2)
    for num_context, values in correct.items():
        limit = style_bayes_accuracy([num_context])[num_context]
        assert abs(np.mean(values) - limit) < 4 * np.std(values) / len(values) ** 0.5


def test_attributes_have_four_names():
    assert len(ATTRIBUTES) == 4 and len(STYLES) == 16
