import numpy as np
import pytest
from datasets import Dataset

from np_trl.data import PreferenceRows
from np_trl.data.embeddings import add_option_ids, join_embeddings, option_text, options_of, text_id


def pairs() -> Dataset:
    rows = [("ada", "Why?", "because", "no idea"), ("bob", "How?", "no idea", "because")]
    return Dataset.from_list(
        [dict(zip(("user_id", "prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
    )


def table(**kinds: list[str]) -> Dataset:
    """The n-th text of all has the embedding (n, -n)."""
    texts = [(kind, text) for kind, of_kind in kinds.items() for text in of_kind]
    return Dataset.from_list(
        [
            {"text_id": text_id(text), "kind": kind, "embedding": [float(n), float(-n)]}
            for n, (kind, text) in enumerate(texts)
        ]
    )


def test_the_key_of_a_text_is_the_start_of_its_sha256():
    assert text_id("abc") == "ba7816bf8f01cfea"  # FIPS 180-2, appendix B.1


def test_embeddings_are_joined_by_text():
    rows = PreferenceRows(join_embeddings(pairs(), table(response=["no idea", "because"])))
    expected = [[[1, -1], [0, 0]], [[0, 0], [1, -1]]]  # (pairs, chosen and rejected, E)
    np.testing.assert_array_equal(rows.embeds(np.arange(2)), expected)


def test_a_table_may_hold_several_kinds():
    texts = ["Why?\nbecause", "Why?\nno idea", "How?\nbecause", "How?\nno idea"]
    joined = join_embeddings(pairs(), table(response=["because"], prompt_response=texts), kind="prompt_response")
    rows = PreferenceRows(joined)
    np.testing.assert_array_equal(rows.embeds(np.arange(2))[..., 0], [[1, 2], [4, 3]])


def test_a_text_without_embedding_is_named():
    with pytest.raises(ValueError, match=rf"no response with `text_id` '{text_id('no idea')}' \('no idea'\)"):
        join_embeddings(pairs(), table(response=["because"]))


def test_bad_tables_are_named():
    with pytest.raises(ValueError, match="`kind='prompt'` is unknown. Choose one of"):
        join_embeddings(pairs(), table(response=["because"]), kind="prompt")
    with pytest.raises(ValueError, match=r"no \['text_id'\] column"):
        join_embeddings(pairs(), table(response=["because"]).remove_columns("text_id"))
    with pytest.raises(ValueError, match=r"The dataset has no \['prompt'\] column"):
        join_embeddings(pairs().remove_columns("prompt"), table(response=["because"]), kind="prompt_response")


def conversations() -> Dataset:
    def say(*texts: str) -> list[dict]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    answers = [[{"role": "assistant", "content": text}] for text in ("because", "no idea")]
    return Dataset.from_list(
        [{"user_id": "ada", "prompt": say("Hi", "Hello", "Why?"), "chosen": answers[0], "rejected": answers[1]}]
    )


def test_the_text_of_a_conversation_is_its_contents_line_by_line():
    texts = ["Hi\nHello\nWhy?\nbecause", "Hi\nHello\nWhy?\nno idea"]
    joined = join_embeddings(conversations(), table(prompt_response=texts), kind="prompt_response")
    assert joined[0]["chosen_embeds"] == [0, 0] and joined[0]["rejected_embeds"] == [1, -1]
    assert joined[0]["prompt"] == conversations()[0]["prompt"]
    joined = join_embeddings(conversations(), table(response=["no idea", "because"]))
    assert joined[0]["chosen_embeds"] == [1, -1]
    assert add_option_ids(conversations())[0]["chosen_option_id"] == text_id("because")


def test_options_are_the_two_sides_of_each_pair():
    assert [option_text(option, "response") for option in options_of(pairs(), "response")] == [
        "because", "no idea", "no idea", "because",
    ]  # fmt: skip
    assert list(options_of(pairs(), "prompt_response"))[2] == {"prompt": "How?", "completion": "no idea"}
