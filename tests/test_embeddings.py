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


@pytest.mark.parametrize(("noise", "is_error"), [(1e-3, False), (0.5, True)])
def test_a_text_with_two_embeddings_in_the_table_is_refused(noise, is_error):
    rows = table(response=["no idea", "because"]).to_list()
    rows = Dataset.from_list([*rows, {**rows[1], "embedding": [1.0, -1.0 + noise]}])
    if not is_error:  # as from another batch
        assert join_embeddings(pairs(), rows)[0]["chosen_embeds"] == pytest.approx([1, -1], abs=2e-3)
        return
    with pytest.raises(ValueError, match=rf"two for the text with `text_id` '{text_id('because')}', in rows 1 and 2"):
        join_embeddings(pairs(), rows)


@pytest.mark.parametrize(("scale", "offset"), [(1e-9, 0), (1e5, 0), (0.1, 1000)])
def test_embeddings_that_float16_would_round_away_are_kept(scale, offset):
    rows = [
        {**row, "embedding": [scale * value + offset for value in row["embedding"]]}
        for row in table(response=["no idea", "because"])
    ]
    joined = join_embeddings(pairs(), Dataset.from_list(rows))
    assert joined[0]["chosen_embeds"] == pytest.approx([scale + offset, -scale + offset], rel=1e-6)


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (None, "`embedding` of row 1 of the table of embeddings is null"),
        ([1.0], r"The table of embeddings holds embeddings of sizes \[1, 2\]"),
        ([float("nan"), 1.0], "`embedding` of row 1 of the table of embeddings holds NaN"),
    ],
)
def test_bad_embeddings_of_a_table_are_named(embedding, message):
    rows = table(response=["no idea", "because"]).to_list()
    rows[1]["embedding"] = embedding
    with pytest.raises(ValueError, match=message):
        join_embeddings(pairs(), Dataset.from_list(rows))


@pytest.mark.parametrize("identify", [add_option_ids, lambda rows: join_embeddings(rows, table(response=["because"]))])
def test_a_row_without_a_text_is_named(identify):
    rows = pairs().to_list()
    rows[1]["rejected"] = None
    with pytest.raises(ValueError, match="`rejected` of row 1 of the dataset is empty"):
        identify(Dataset.from_list(rows))


def test_texts_among_parts_and_calls_of_tools_are_embedded_as_training_reads_them():
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "cause"}]}]
    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}]
    rows = Dataset.from_list([{"user_id": "ada", "chosen": parts, "rejected": parts}])
    assert add_option_ids(rows)[0]["chosen_option_id"] == text_id("be\ncause")
    rows = Dataset.from_list([{"user_id": "ada", "chosen": call, "rejected": call}])
    assert add_option_ids(rows)[0]["chosen_option_id"] == text_id('{"name": "look"}')
