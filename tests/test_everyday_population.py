"""Answers to everyday prompts, and users who choose between them."""

import numpy as np
import pytest

from np_trl.populations.answer_style import ATTRIBUTES, detect_attributes
from np_trl.populations.everyday import EVERYDAY, STYLES, everyday_population, load_answers


@pytest.mark.parametrize(
    "text, shown",
    [
        ("Use salt.", ()),
        (" ".join(["word"] * 31), ("long",)),
        ("1. Use salt.\n2. Rinse.", ("list",)),
        ("Tips:\n\n- salt\n* water", ("list",)),
        ("It costs 1. Then 2. Then no more, in one line.", ()),
        ("Great question! Use salt.", ("warm",)),
        ("I’d say salt.", ("hedged",)),
        ("Perhaps\n\n1) salt\n2) water!", ("list", "warm", "hedged")),
        ("The mightiest salt is probable.", ()),
        ("", ()),
    ],
)
def test_attributes_are_read_off_a_text(text, shown):
    assert detect_attributes(text) == tuple(1 if name in shown else -1 for name in ATTRIBUTES)


def test_the_answers_show_every_style_and_do_not_repeat():
    answers = load_answers()
    styles = np.stack([answers[name] for name in ATTRIBUTES], axis=1)
    counts = [(styles == style).all(axis=1).mean() for style in STYLES]
    assert min(counts) > 0.01, dict(zip(map(EVERYDAY.name, STYLES), counts, strict=True))
    assert np.abs(styles.mean(axis=0)).max() < 0.6
    assert len({(row["prompt"], row["response"]) for row in answers}) == len(answers)
    assert len(answers.unique("prompt")) > 500
    assert all(row["response"] == row["response"].strip() for row in answers)


def test_users_choose_by_their_type_and_see_prompts_of_their_split():
    datasets = {split: everyday_population(split, 16, 12, seed=3) for split in ("train", "validation", "test")}
    for name, dataset in datasets.items():
        assert len(dataset) == 16 * 12 and len(dataset.unique("user_id")) == 16
        assert all(user.startswith(name) for user in dataset.unique("user_id"))
        for row in dataset:
            chosen, rejected = (detect_attributes(row[side][0]["content"]) for side in ("chosen", "rejected"))
            assert np.dot(row["style"], np.subtract(chosen, rejected)) > 0
            assert row["group"] == EVERYDAY.name(row["style"])
    prompts = [{row["prompt"][0]["content"] for row in dataset} for dataset in datasets.values()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert len(set(datasets["test"]["group"])) == 16


def test_users_of_a_continuum_weigh_attributes_differently():
    dataset = everyday_population("train", 40, 10, seed=1, is_continuum=True)
    signed = 0
    for row in dataset:
        chosen, rejected = (detect_attributes(row[side][0]["content"]) for side in ("chosen", "rejected"))
        signed += np.dot(row["style"], np.subtract(chosen, rejected)) > 0
    # their signs alone do not decide every choice, but most
    assert 0.75 < signed / len(dataset) < 1
    assert dataset.to_list() == everyday_population("train", 40, 10, seed=1, is_continuum=True).to_list()
