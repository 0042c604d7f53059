"""Bad data: each error names the value, the limit and the mend."""

import logging

import numpy as np
import pytest
from datasets import Dataset

from np_trl.data.validation import check_embeddings, check_preferences, drop_ties, select_users

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
