"""Answers in several styles: what is asked for, and what is kept."""

import re

import pyarrow.parquet as pq
import pytest
import write_answers
from tests.testing_utils import chat_tokenizer, tiny_base
from write_answers import KINDS, Arguments, draw_requests, end_whole, is_broken, keep_whole, read_prompts

from np_trl.populations.everyday import load_answers


def test_prompts_are_many_and_ask_for_no_style():
    prompts = [prompt for kind in KINDS for prompt in read_prompts(kind)]
    assert len(prompts) == 600 and len({prompt.lower() for prompt in prompts}) > 595
    assert all(3 <= len(prompt.split()) <= 25 for prompt in prompts)
    asking = [
        p for p in prompts if re.search(r"\b(?:briefly|in one sentence|step by step|bullet|in a list)\b", p, re.I)
    ]
    assert not asking


def test_every_prompt_is_asked_in_different_styles():
    requests = draw_requests(Arguments(kinds=["plan"], answers_per_prompt=8))
    assert len(requests) == 800
    assert len({(row["request"], row["begin"], row["is_long"]) for row in requests}) > 780
    shares = [
        sum(test(row) for row in requests) / len(requests)
        for test in (
            lambda row: row["is_long"],
            lambda row: row["begin"].endswith("1."),
            lambda row: "!" in row["begin"],
        )
    ]
    assert shares == pytest.approx([0.5, 0.5, 0.5], abs=0.07)
    assert all(row["request"].startswith(row["prompt"]) for row in requests)
    assert requests == draw_requests(Arguments(kinds=["plan"], answers_per_prompt=8))


@pytest.mark.parametrize(
    "text, whole",
    [
        ("Use salt. Then rinse it with", "Use salt."),
        ("1. Use salt\n2. Rinse\n3. Dry the", "1. Use salt\n2. Rinse"),
        ("Ideas:\n\n1. Use 2.5 grams of salt.\n2.", "Ideas:\n\n1. Use 2.5 grams of salt."),
        ('He said "yes!" and then', 'He said "yes!"'),
        ("No end at all", ""),
        ("", ""),
        ("I’d  use   salt.  ", "I'd use salt."),
    ],
)
def test_an_answer_ends_with_its_last_whole_sentence_or_item(text, whole):
    assert end_whole(text) == whole


@pytest.mark.parametrize(
    "answer, what",
    [
        ("Put the candle wax in a freezer, then scrape it off.", None),
        ("Scrape it off.", "too short"),
        ("I think that a tablecloth is <b>clean</b> when you wash it.", "markup"),
        ("The wax of 1999 is 2000 and 2001 or 2002.", "digits"),
        ("The wax is the wax is the wax is the wax is the wax is the wax.", "repeats itself"),
        ("You should really try another method for this one.", "no word of the prompt"),
        ("First steps: 1. Freeze the wax. 2. Scrape it off.", "list in one line"),
        ("Here are some ideas:\n\n1. Freeze the wax until it breaks.", "list of one item"),
        ("In a warm and cheerful tone: freeze the wax and scrape it.", "speaks of the style asked for"),
    ],
)
def test_what_is_wrong_with_an_answer_is_named(answer, what):
    assert is_broken("How do I get candle wax out of a tablecloth?", answer) == what


def test_repeated_answers_are_dropped_and_counted():
    row = {"prompt": "Is wax soft?", "response": "Yes, most of the wax is soft in the sun."}
    kept, dropped = keep_whole([row, row, {**row, "prompt": "Is wax ever soft?"}])
    assert len(kept) == 2 and dropped == {"repeats another": 1}


def test_the_answers_of_the_package_pass_the_same_checks():
    for row in load_answers():
        assert is_broken(row["prompt"], row["response"]) is None, row
        assert row["prompt"] in read_prompts(row["kind"])


@pytest.mark.parametrize("fields", [{"kinds": ["poem"]}, {"answers_per_prompt": 0}, {"answers_per_prompt": 17}])
def test_arguments_are_checked(fields):
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}"):
        Arguments(**fields)


def test_a_model_writes_and_whole_answers_are_saved(tmp_path, monkeypatch):
    path = tiny_base(tmp_path / "base")
    chat_tokenizer().save_pretrained(path)
    monkeypatch.setattr(write_answers, "read_prompts", lambda kind: ["How do I fix the bike?"])
    # it writes no English, which is neither cut nor dropped here
    monkeypatch.setattr(write_answers, "end_whole", str.strip)
    monkeypatch.setattr(write_answers, "is_broken", lambda prompt, answer: None)
    arguments = Arguments(path, str(tmp_path / "answers.parquet"), kinds=["plan"], answers_per_prompt=4, batch_size=2)
    write_answers.main(arguments)
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert all(row["kind"] == "plan" and row["prompt"] == "How do I fix the bike?" for row in rows)
    assert len(rows) == 4
    begins = [row["begin"] for row in draw_requests(Arguments(path, kinds=["plan"], answers_per_prompt=4))]
    assert sorted(begins) == sorted(
        next(begin for begin in sorted(begins, key=len, reverse=True) if row["response"].startswith(begin))
        for row in rows
    )
