"""Bad data: each error names the value, the limit and the fix."""

import logging

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, List, Value

from np_trl.data import PreferenceRows
from np_trl.data.embedding_columns import EMBED_COLUMNS
from np_trl.data.ties import drop_ties, leave_out_embedding_ties
from np_trl.data.validation import (
    check_embeddings,
    check_option_embeddings,
    check_preferences,
    drop_foreign_columns,
    read_embeddings,
    select_users,
)
from np_trl.models.texts import SIDES, check_pair

from .testing_utils import embedded_rows, style_rows


def changed(dataset: Dataset, row: int, **values) -> Dataset:
    rows = dataset.to_list()
    rows[row].update(values)
    return Dataset.from_list(rows)


def test_a_missing_user_id():
    with pytest.raises(ValueError, match="The train dataset has no `user_id` column, only .*Add one"):
        check_preferences(style_rows().remove_columns("user_id"), "train")


def test_a_null_user_id():
    with pytest.raises(ValueError, match="`user_id` is null in 1 of 192 rows"):
        check_preferences(changed(style_rows(), 3, user_id=None), "train")


def test_ties():
    with pytest.raises(ValueError, match="`chosen` and `rejected` of row 5 .* are the same .*drop it"):
        check_preferences(changed(style_rows(), 5, chosen=" same", rejected=" same"), "train")


def test_ties_are_left_out_with_a_logged_count(caplog):
    rows = changed(style_rows(), 5, chosen=" same", rejected=" same")
    with caplog.at_level(logging.WARNING):
        kept = drop_ties(rows, "train")
    assert len(kept) == len(rows) - 1 and "Dropped 1 of 192 ties of the train dataset" in caplog.text
    check_preferences(kept, "train")
    assert len(drop_ties(embedded_rows(), "train")) == len(embedded_rows())


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("value", ["", "  ", None])
def test_empty_texts(column, value):
    with pytest.raises(ValueError, match=f"`{column}` of row 2 of the eval dataset is empty"):
        check_preferences(changed(style_rows(), 2, **{column: value}), "eval")


def test_an_empty_conversational_completion():
    prompt = [{"role": "user", "content": "How?"}]
    rows = [
        {"user_id": "a", "prompt": prompt, "chosen": [{"role": "assistant", "content": c}], "rejected": prompt}
        for c in ("so", "")
    ]
    with pytest.raises(ValueError, match="`chosen` of row 1 of the train dataset is empty"):
        check_preferences(Dataset.from_list(rows), "train")


@pytest.mark.parametrize("missing", [["chosen_embeds"], ["chosen_embeds", "rejected_embeds"]])
def test_absent_embedding_columns(missing):
    with pytest.raises(ValueError, match=rf"has no \['{missing[0]}'"):
        check_embeddings(embedded_rows().remove_columns(missing), "train")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite(value):
    with pytest.raises(ValueError, match="`rejected_embeds` of row 7 of the train dataset holds NaN or infinite"):
        check_embeddings(changed(embedded_rows(), 7, rejected_embeds=[0.0, value, 0.0, 0.0, 0.0, 0.0]), "train")


def test_embeddings_of_two_sizes():
    with pytest.raises(ValueError, match=r"holds embeddings of sizes \[5, 6\]"):
        check_embeddings(changed(embedded_rows(), 7, chosen_embeds=[0.0] * 5), "train")


def test_embeddings_of_another_size_than_the_models():
    assert check_embeddings(embedded_rows(), "train", embed_size=6) == 6
    with pytest.raises(ValueError, match="holds embeddings of size 6, but the model takes `embed_size=8`"):
        check_embeddings(embedded_rows(), "train", embed_size=8)


def short_and_long() -> Dataset:
    return Dataset.from_list(style_rows(16, 12).to_list() + style_rows(2, 5, seed=1).to_list())


def test_users_with_too_few_pairs_are_named():
    with pytest.raises(
        ValueError, match=r"2 of 18 users .* fewer than the 8 pairs.*user '1-0' has 5.*drop_short_users"
    ):
        select_users(short_and_long(), "train", required_pairs=8, drop=False)


def test_users_with_too_few_pairs_are_dropped_with_a_count(caplog):
    with caplog.at_level(logging.WARNING):
        kept = select_users(short_and_long(), "train", required_pairs=8, drop=True)
    assert kept.to_list() == style_rows(16, 12).to_list()
    assert "Dropped 2 of 18 users" in caplog.text


def test_nobody_left_is_an_error():
    with pytest.raises(ValueError, match="16 of 16 users"):
        select_users(style_rows(16, 4), "train", required_pairs=8, drop=True)


def changed_column(dataset: Dataset, **columns) -> Dataset:
    return Dataset.from_dict({**dataset.to_dict(), **columns})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (lambda n: np.where(np.arange(n) < 24, np.nan, np.arange(n)), "is NaN or infinite in 24 of 96 rows"),
        (lambda n: [""] * 3 + ["a"] * (n - 3), "is blank in 3 of 96 rows"),
        (lambda n: [" \u00a0\t"] * 4 + ["a"] * (n - 4), "is blank in 4 of 96 rows"),
        (lambda n: [None] * n, "is null in 96 of 96 rows"),
        (lambda n: [[1]] * n, r"is of the type list<.*>, such as \[1\], but must be text or a whole number"),
        (lambda n: [{"a": 1}] * n, "is of the type struct<"),
        (lambda n: np.array(["2020-01-01"] * n, dtype="datetime64[s]"), "is of the type timestamp"),
        (lambda n: np.full(n, 123456789012345678.0), "holds 123456789012345680 as a float, which rounds"),
        (lambda n: np.full(n, 16777217, dtype=np.float32), "holds 16777216 as a float, which rounds"),
        (lambda n: [b"ada"] * n, "is of the type binary, such as b'ada', but must be text"),
        (lambda n: pa.array([" "] * n, pa.string_view()), "is blank in 96 of 96 rows"),
    ],
)
def test_ids_that_do_not_say_who_chose(ids, message):
    rows = embedded_rows()
    rows = rows.remove_columns("user_id").add_column("user_id", ids(len(rows)))
    with pytest.raises(ValueError, match=f"`user_id`.* {message}"):
        check_preferences(rows, "train")


@pytest.mark.parametrize(
    "ids",
    [[True, False], [1.0, 2.0], [123456789012345678, 123456789012345679], ["\x00\n", "\U0001f600"], ["NA", "None"]],
)
def test_ids_of_every_kind_are_told_apart(ids):
    rows = Dataset.from_dict({"user_id": ids, "chosen_embeds": [[1.0]] * 2, "rejected_embeds": [[2.0]] * 2})
    check_preferences(rows, "train")
    assert len(PreferenceRows(rows)) == 2


def test_datasets_without_rows_or_without_pairs():
    with pytest.raises(ValueError, match="The eval dataset has no rows"):
        check_preferences(embedded_rows().select([]), "eval")
    with pytest.raises(ValueError, match="The train dataset has no rows"):
        check_embeddings(embedded_rows().select([]), "train")
    with pytest.raises(ValueError, match="has no `user_id` column"):
        check_preferences(Dataset.from_dict({}), "train")
    with pytest.raises(ValueError, match=r"has no \['chosen', 'rejected'\] column, only .*or of their embeddings"):
        check_preferences(style_rows().select_columns(["user_id", "prompt"]), "train")
    with pytest.raises(ValueError, match=r"has no \['chosen', 'rejected'\] column"):
        check_preferences(embedded_rows(), "train", required=("chosen", "rejected"))


def say(content, role: str = "assistant", **fields) -> list[dict]:
    return [{"role": role, "content": content, **fields}]


PARTS = [{"type": "text", "text": "so"}]
CALL = [{"type": "function", "function": {"name": "look", "arguments": {"where": "here"}}}]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"prompt": "How?", "chosen": say("so"), "rejected": say("no")}, "are conversations, but .* are text"),
        ({"prompt": "How?", "chosen": ["so"], "rejected": ["no"]}, "must be text, or a list of messages"),
        (
            {"prompt": "How?", "chosen": 1, "rejected": 2},
            "`chosen` of row 0 of the train dataset is '1' .int., but must be",
        ),
        ({"chosen": [0.5], "rejected": [0.7]}, "must be text, or a list of messages"),
        ({"chosen": say([{"type": "image"}]), "rejected": say("no")}, "np_trl reads text alone"),
        ({"prompt": say("How?"), "chosen": say(PARTS), "rejected": say(PARTS)}, "are the same"),
        (
            {"prompt": "How?", "chosen": "so", "rejected": "no", "tools": "[look"},
            "`tools` of row 0 .* is text, but no JSON",
        ),
    ],
)
def test_pairs_that_are_no_texts_are_refused_in_the_words_of_use(pair, message):
    with pytest.raises(ValueError, match=message) as use:
        check_pair(pair, "row 0 of the train dataset", required=SIDES)
    with pytest.raises(ValueError) as training:
        check_preferences(Dataset.from_list([{"user_id": "a", **pair}]), "train")
    assert str(training.value) == str(use.value)


@pytest.mark.parametrize(
    "pair",
    [
        {"chosen": "How? so", "rejected": "How? no"},
        {"prompt": say("How?", "user"), "chosen": say(PARTS), "rejected": say(PARTS + PARTS)},
        {"prompt": say("How?", "user"), "chosen": say(None, tool_calls=CALL), "rejected": say("no", tool_calls=None)},
        {"prompt": "How?", "chosen": "so", "rejected": "no", "tools": '[{"name": "look"}]'},
    ],
)
def test_all_formats_that_trl_trains_on_are_taken(pair):
    check_preferences(Dataset.from_list([{"user_id": "a", **pair}]), "train")


def test_columns_named_like_computed_ones_are_left_out(caplog):
    rows = style_rows().add_column("ref_chosen_logps", [-1.0] * 192).add_column("prompt_ids", [[1]] * 192)
    rows = rows.add_column("messages", [say("hi")] * 192)  # by which TRL would take the texts for conversations
    assert drop_foreign_columns(rows, "train").column_names == style_rows().column_names
    assert (
        "The columns ['prompt_ids', 'ref_chosen_logps', 'messages'] of the train dataset are left out" in caplog.text
    )


FIXED = Features({"user_id": Value("int64"), **{name: List(Value("float32"), length=6) for name in EMBED_COLUMNS}})


def bad(value, row: int = 5, features: Features | None = None) -> Dataset:
    rows = embedded_rows().to_dict()
    rows["chosen_embeds"][row] = value
    return Dataset.from_dict(rows, features=features)


def all_of(change) -> Dataset:
    rows = embedded_rows().to_dict()
    return Dataset.from_dict({**rows, **{name: [change(value) for value in rows[name]] for name in EMBED_COLUMNS}})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: bad(None), "`chosen_embeds` of row 5 of the train dataset is null"),
        (lambda: bad(None, features=FIXED), "`chosen_embeds` of row 5 of the train dataset is null"),
        (lambda: bad(None, row=70, features=FIXED).select(range(60, 80)), "`chosen_embeds` of row 10 of .* is null"),
        (lambda: bad([0.0, None, 0.0, 0.0, 0.0, 0.0]), "of row 5 of the train dataset holds None in a list"),
        (
            lambda: bad([1e38] * 6),
            r"of row 5 .* holds a value of size 1e\+38, but float32 .* Scale the embeddings down",
        ),
        (lambda: bad([1e300] * 6), "of row 5 of the train dataset holds NaN or infinite values"),
        (lambda: bad([]), r"sizes \[0, 6\]"),
        (lambda: all_of(lambda value: []), "holds embeddings of size 0"),
        (
            lambda: all_of(lambda value: list(map(str, value))),
            "is of the type list<.*string>, but each row must be one list",
        ),
        (lambda: all_of(lambda value: str(value)), "is of the type string, .* CSV files cannot hold lists"),
        (lambda: all_of(lambda value: [value[:3], value[3:]]), "is of the type list<.*list<"),
        (lambda: all_of(lambda value: value[0]), "is of the type double, but each row must be one list of numbers"),
    ],
)
def test_embeddings_that_are_no_lists_of_finite_numbers(rows, message):
    with pytest.raises(ValueError, match=message):
        check_embeddings(rows(), "train")


@pytest.mark.parametrize("change", [lambda value: [int(9 * x) for x in value], lambda value: [x > 0 for x in value]])
def test_whole_numbers_are_embeddings_too(change):
    assert check_embeddings(all_of(change), "train") == 6


def test_options_that_are_embedded_alike_are_ties(caplog):
    rows = embedded_rows()
    columns = rows.to_dict()
    columns["rejected_embeds"][7] = columns["chosen_embeds"][7]
    tied = Dataset.from_dict(columns)
    _, ties = read_embeddings(tied, "train")
    assert np.flatnonzero(ties).tolist() == [7]
    with pytest.raises(ValueError, match="of row 7 of the train dataset are embedded alike .*drop it"):
        leave_out_embedding_ties(tied, ties, "train", drop=False)
    kept = leave_out_embedding_ties(tied, ties, "train", drop=True)
    assert len(kept) == 95 and "Dropped 1 of 96 ties of the train dataset" in caplog.text
    with pytest.raises(ValueError, match="All 96 pairs of the train dataset are ties"):
        leave_out_embedding_ties(tied, np.ones(96, dtype=bool), "train", drop=True)
    with pytest.raises(ValueError, match="All 2 pairs of the eval dataset are ties"):
        drop_ties(Dataset.from_dict({"chosen": ["a", "b"], "rejected": ["a", "b"]}), "eval")


@pytest.mark.parametrize(("noise", "warns"), [(0.001, False), (0.5, True)])
def test_a_text_with_two_embeddings_is_told(noise, warns, caplog):
    """Batches and float16 change an embedding a little, another embedder changes it as a whole."""
    rng = np.random.default_rng(0)
    embeds = {name: rng.normal(size=(4, 64)) for name in EMBED_COLUMNS}
    embeds["rejected_embeds"][3] = embeds["chosen_embeds"][1] + noise * rng.normal(size=64)
    texts = {"prompt": ["p", "p", "q", "p"], "chosen": ["a", "b", "b", "c"], "rejected": ["d", "e", "f", "b"]}
    dataset = Dataset.from_dict({"user_id": [0] * 4, **texts, **embeds})
    check_option_embeddings(dataset, "train", has_texts=True)
    assert ("1 options of the train dataset" in caplog.text) == warns
    assert ("the rejected one of row 3, which row 1 has too" in caplog.text) == warns  # row 2: another prompt
    check_option_embeddings(dataset.remove_columns("prompt"), "train", has_texts=False)  # which may have been embedded
    if warns:
        with pytest.raises(ValueError, match="1 options of the train dataset have another embedding"):
            check_option_embeddings(dataset, "train", has_texts=False)
    else:
        check_option_embeddings(dataset, "train", has_texts=False)
