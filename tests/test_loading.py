import json
import logging

import pytest
from datasets import Dataset, DatasetDict

from np_trl.data.embeddings import text_id
from np_trl.data.loading import (
    SPLITS,
    PreferenceArguments,
    hash_split,
    load_preferences,
    save_splits,
    split_by_hash,
    with_roles,
)


ROWS = [
    {"user_id": "ada", "chosen": "a", "rejected": "b", "split": "train", "fold": 1},
    {"user_id": "bob", "chosen": "b", "rejected": "a", "split": "train", "fold": 2},
    {"user_id": "eve", "chosen": "a", "rejected": "b", "split": "val", "fold": 1},
]


@pytest.fixture
def file(tmp_path) -> str:
    path = str(tmp_path / "pairs.parquet")
    Dataset.from_list(ROWS).to_parquet(path)
    return path


def test_files_of_every_format_are_read(tmp_path, file):
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    Dataset.from_list(ROWS).to_csv(tmp_path / "pairs.csv")
    DatasetDict(test=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
    for name in (file, str(tmp_path / "pairs.jsonl"), str(tmp_path / "pairs.csv"), str(tmp_path / "saved")):
        assert load_preferences(name, "test")["user_id"][:] == ["ada", "bob", "eve"]


def test_conditions_on_rows_must_all_hold(file):
    assert load_preferences(file, where=["split=train"])["user_id"][:] == ["ada", "bob"]
    assert load_preferences(file, where=["split=train", "fold=2"])["user_id"][:] == ["bob"]


def test_bad_conditions_are_named(file):
    with pytest.raises(ValueError, match="must each be `column=value`"):
        load_preferences(file, where=["split"])
    with pytest.raises(ValueError, match="must each be `column=value`, of another column of"):
        load_preferences(file, where=["part=train"])
    with pytest.raises(ValueError, match="No row of .* meets the conditions"):
        load_preferences(file, where=["split=test"])


def test_embeddings_come_from_a_file_of_their_own(tmp_path, file):
    path = str(tmp_path / "embeddings.parquet")
    Dataset.from_list([{"text_id": text_id(text), "embedding": [ord(text)]} for text in "ab"]).to_parquet(path)
    dataset = load_preferences(file, where=["split=val"], embeddings=path)
    assert (dataset[0]["chosen_embeds"], dataset[0]["rejected_embeds"]) == ([97.0], [98.0])


def test_users_of_the_evaluation_may_be_known_by_their_training_rows(file):
    rows = [*ROWS, {"user_id": "ada", "chosen": "b", "rejected": "a", "split": "val", "fold": 3}]
    Dataset.from_list(rows).to_parquet(file)
    arguments = PreferenceArguments(
        dataset_name=file, where=["split=train"], eval_where=["split=val"], eval_context_where=["split=train"]
    )
    train_dataset, eval_dataset = arguments.load()
    assert train_dataset["user_id"][:] == ["ada", "bob"]
    # bob has nothing to predict, eve is known by nothing
    assert [(row["user_id"], row["fold"], row["role"]) for row in eval_dataset] == [
        ("ada", 1, "context"),
        ("ada", 3, "target"),
    ]


def test_a_tenth_of_the_prompts_is_for_test_and_a_tenth_for_validation():
    splits = [hash_split(f"prompt {n}") for n in range(10_000)]
    shares = [splits.count(split) / 10_000 for split in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    # the prompts that the paper's figures are evaluated on, examples/paper/modes.py
    assert all((split == "test") == (int(text_id(f"prompt {n}"), 16) % 10 == 0) for n, split in enumerate(splits))


def test_rows_of_one_prompt_stay_together_in_their_order():
    rows = [{"user_id": user, "prompt": f"prompt {n}", "row": 50 * user + n} for user in range(3) for n in range(50)]
    splits = split_by_hash(Dataset.from_list(rows), "prompt")
    for split, dataset in splits.items():
        assert {hash_split(prompt) for prompt in dataset["prompt"]} == {split}
        assert dataset["row"] == sorted(dataset["row"]) and len(dataset) == 3 * len(dataset.unique("prompt"))
    assert sum(map(len, splits.values())) == 150
    as_conversations = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    again = split_by_hash(Dataset.from_list(as_conversations), "prompt")
    assert all(again[split]["row"] == splits[split]["row"] for split in SPLITS)
    with pytest.raises(ValueError, match=r"None of the 150 rows falls into \[.*a tenth of the values of `user_id`"):
        split_by_hash(Dataset.from_list(rows), "user_id")


def test_splits_are_saved_as_files_with_their_numbers_in_the_log(tmp_path, caplog):
    dataset = Dataset.from_list(ROWS)
    with caplog.at_level(logging.INFO):
        save_splits({"train": dataset, "test": dataset.select([0])}, str(tmp_path / "new" / "folder"))
    assert load_preferences(str(tmp_path / "new" / "folder" / "train.parquet")).to_list() == ROWS
    assert "train.parquet: 3 pairs of 3 users" in caplog.text and "test.parquet: 1 pairs of 1 users" in caplog.text


def test_pairs_that_a_user_is_known_by_are_no_targets(caplog):
    contexts = Dataset.from_list([{"user_id": "ada", "chosen": "a", "rejected": "b"}])
    targets = Dataset.from_list([{"user_id": "ada", "chosen": c, "rejected": "b"} for c in "ac"])
    joined = with_roles(contexts, targets)
    assert [(row["chosen"], row["role"]) for row in joined] == [("a", "context"), ("c", "target")]
    assert "Left out 1 of 2 targets that are contexts too" in caplog.text


def test_roles_of_pairs_without_texts_go_by_their_embeddings():
    rows = [{"user_id": "ada", "chosen_embeds": [float(i)], "rejected_embeds": [0.5]} for i in range(3)]
    joined = with_roles(Dataset.from_list(rows[:2]), Dataset.from_list(rows[1:]))
    assert [(row["chosen_embeds"], row["role"]) for row in joined] == [
        ([0.0], "context"),
        ([1.0], "context"),
        ([2.0], "target"),
    ]


def test_a_file_is_not_evaluated_on_what_it_is_trained_on(file):
    with pytest.raises(ValueError, match="would be evaluated on the rows that it is trained on"):
        PreferenceArguments(dataset_name=file).load()
