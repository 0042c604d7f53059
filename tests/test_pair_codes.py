"""Pairs are known by what the model sees of them."""

import numpy as np
import pytest
from datasets import Dataset

from np_trl.data.pair_codes import is_same_pair, option_text_codes, pair_codes


def same(rows: list[dict]) -> list[int]:
    """For each row the first one that is the same pair."""
    codes = pair_codes(Dataset.from_list(rows)).tolist()
    return [codes.index(code) for code in codes]


def say(text: str | list, **fields) -> list[dict]:
    return [{"role": "assistant", "content": text, **fields}]


def test_a_pair_is_its_prompt_and_its_options_in_either_order():
    pairs = [("p", "a", "b"), ("p", "b", "a"), ("q", "a", "b"), ("p", "a", "c"), ("p", "a", "b"), ("p", "ab", "")]
    rows = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs]
    assert same(rows) == [0, 0, 2, 3, 0, 5]
    assert same([{key: row[key] for key in ("chosen", "rejected")} for row in rows]) == [0, 0, 0, 3, 0, 5]


def test_conversations_are_known_by_their_messages():
    rows = [
        {"prompt": say("p"), "chosen": say("a"), "rejected": say("b")},
        {"prompt": say("p", name=None), "chosen": say("b"), "rejected": say("a")},
        {"prompt": say("p", name="Ada"), "chosen": say("a"), "rejected": say("b")},
    ]
    assert same(rows) == [0, 0, 2]


def test_tools_are_a_part_of_the_prompt():
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "tools": tools}
        for tools in ("[]", None, '[{"name": "x"}]', "[]")
    ]
    assert same(rows) == [0, 1, 2, 0]


def test_texts_of_the_same_tokens_are_the_same():
    tokens = [([1], [2], [3]), ([1], [3], [2]), ([1, 2], [], [3]), ([1], [2], [4])]
    rows = [
        {"prompt_ids": p, "chosen_ids": c, "rejected_ids": r, "chosen": f"a{i}", "rejected": f"b{i}"}
        for i, (p, c, r) in enumerate(tokens)
    ]
    assert same(rows) == [0, 0, 2, 3]


@pytest.mark.parametrize(("truncation", "expected"), [("keep_start", [0, 0, 2]), ("keep_end", [0, 1, 0])])
def test_what_is_cut_off_tells_no_pairs_apart(truncation, expected):
    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5, 6]},
        {"prompt_ids": [1, 2], "chosen_ids": [5, 7], "rejected_ids": [3, 8]},  # another end
        {"prompt_ids": [9, 2], "chosen_ids": [3, 4], "rejected_ids": [5, 6]},  # another start
    ]
    codes = pair_codes(Dataset.from_list(rows), max_length=3, truncation=truncation).tolist()
    assert [codes.index(code) for code in codes] == expected
    assert same(rows) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_embeddings_are_known_by_their_values(dtype):
    values = np.arange(8).astype(dtype).reshape(4, 2)
    chosen, rejected = values[[0, 1, 2, 0]], values[[1, 0, 1, 1]]
    rows = Dataset.from_dict({"chosen_embeds": chosen, "rejected_embeds": rejected})
    codes = pair_codes(rows)
    assert codes[0] == codes[1] == codes[3] != codes[2]
    if dtype != np.int64:  # of which there is one zero
        zeros = Dataset.from_dict(
            {"chosen_embeds": np.array([[0.0], [-0.0]], dtype), "rejected_embeds": np.ones((2, 1), dtype)}
        )
        assert len(set(pair_codes(zeros))) == 1


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_embeddings_of_a_user_that_differ_by_rounding_are_the_same(offset):
    rng = np.random.default_rng(0)
    embeds = rng.normal(size=(50, 2, 8)) + offset
    again = embeds[:, ::-1] + 1e-4 * rng.normal(size=embeds.shape)  # the other way round
    columns = np.concatenate([embeds, again])

    def rows(**users) -> Dataset:
        return Dataset.from_dict({"chosen_embeds": columns[:, 0], "rejected_embeds": columns[:, 1], **users})

    codes = pair_codes(rows(user_id=[0] * 100))
    assert (codes[:50] == codes[50:]).all() and len(set(codes)) == 50
    assert is_same_pair(embeds, again).all() and not is_same_pair(embeds[1:], embeds[:-1]).any()
    assert len(set(pair_codes(rows(user_id=[*range(100)])))) == 100  # of other users they are others


def test_rows_that_agree_in_texts_or_in_embeddings_are_the_same():
    rows = [
        {"chosen": chosen, "rejected": "z", "chosen_embeds": [embed], "rejected_embeds": [9.0]}
        for chosen, embed in (("a", 0.0), ("b", 1.0), ("b", 2.0), ("c", 0.0), ("c", 1.0), ("d", 3.0))
    ]
    assert same(rows) == [
        0,
        0,
        0,
        0,
        0,
        5,
    ]  # 0 and 3 by embedding, 3 and 4 by text, 4 and 1 by embedding, 1 and 2 by text


def test_the_same_completion_to_another_prompt_is_another_option():
    rows = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in "ppq"]
    codes = option_text_codes(Dataset.from_list(rows))
    assert codes.shape == (3, 2) and (codes[0] == codes[1]).all() and len(np.unique(codes)) == 4
