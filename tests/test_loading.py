import json
import logging
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from np_trl.data.embeddings import text_id
from np_trl.data.loading import (
    SPLITS,
    hash_split,
    load_preferences,
    save_splits,
    split_by_hash,
    with_roles,
)
from np_trl.data.validation import check_embeddings, check_preferences
from np_trl.scripts.preference_arguments import PreferenceArguments


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
    rows = [*ROWS, {"user_id": "ada", "chosen": "c", "rejected": "a", "split": "val", "fold": 3}]
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
    folder, name = Path(file).parent, Path(file).name
    with pytest.raises(ValueError, match="would be evaluated on the rows that it is trained on"):
        PreferenceArguments(dataset_name=file, eval_dataset_name=f"{folder}/../{folder.name}/{name}").load()


def test_a_share_of_the_users_of_one_file_is_held_out(tmp_path):
    path = str(tmp_path / "pairs.jsonl")
    rows = [{"user_id": f"user {u}", "chosen": f"a{u}{n}", "rejected": "b"} for n in range(3) for u in range(20)]
    Dataset.from_list(rows).to_json(path)
    train_dataset, eval_dataset = PreferenceArguments(dataset_name=path, eval_users=0.1).load()
    held_out = set(eval_dataset["user_id"][:])
    assert len(held_out) == 2 and len(eval_dataset) == 6
    assert set(train_dataset["user_id"][:]) == {row["user_id"] for row in rows} - held_out
    wider = PreferenceArguments(dataset_name=path, eval_users=0.5).load()[1]
    assert held_out < set(wider["user_id"][:]) and len(set(wider["user_id"][:])) == 10
    one = ["user_id=user 3"]
    with pytest.raises(ValueError, match="`eval_users=0.1` needs at least 2 users, and there is 1"):
        PreferenceArguments(dataset_name=path, where=one, eval_users=0.1).load()
    for share in (0, 1.0, -0.1, 7):
        with pytest.raises(ValueError, match=f"`eval_users={share}` must lie between 0 and 1"):
            PreferenceArguments(dataset_name=path, eval_users=share).load()
    with pytest.raises(ValueError, match=r"\['eval_where'\] name others"):
        PreferenceArguments(dataset_name=path, eval_users=0.1, eval_where=one).load()


LOOKS = ["007", "7", "1e3", "NA", "None", "123456789012345678", "123456789012345679", "2020-01-01", " x ", "nan"]


@pytest.mark.parametrize("extension", ["csv", "jsonl", "json", "parquet", "TSV", "csv.gz", "ndjson.xz", "json.zip"])
def test_names_and_texts_stay_what_they_are_in_the_file(tmp_path, extension):
    rows = [{"user_id": look, "chosen": look, "rejected": f"{look}.", "fold": look} for look in LOOKS]
    path = tmp_path / f"pairs.{extension}"
    if extension in ("TSV", "csv.gz"):
        pd.DataFrame(rows).to_csv(path, sep="\t" if extension == "TSV" else ",", index=False)
    elif extension in ("ndjson.xz", "json.zip"):
        pd.DataFrame(rows).to_json(path, orient="records", lines=extension == "ndjson.xz")
    elif extension == "csv":
        Dataset.from_list(rows).to_csv(path)
    elif extension == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text(json.dumps(rows) if extension == "json" else "\n".join(map(json.dumps, rows)))
    dataset = load_preferences(str(path))
    assert dataset.select_columns(list(rows[0])).to_list() == rows
    assert load_preferences(str(path), where=["fold=007"])["user_id"][:] == ["007"]
    check_preferences(dataset, "train")


def test_empty_fields_of_a_csv_file_are_empty_texts(tmp_path):
    (tmp_path / "pairs.csv").write_text("user_id,chosen,rejected\n,a,b\nada,c,d\n")
    dataset = load_preferences(str(tmp_path / "pairs.csv"))
    assert dataset["user_id"][:] == ["", "ada"]
    with pytest.raises(ValueError, match="`user_id` is blank in 1 of 2 rows"):
        check_preferences(dataset, "train")


def test_a_folder_of_csv_files_is_read_as_text_too(tmp_path):
    (tmp_path / "train.csv").write_text("user_id,chosen\n007,NA\n7,1\n")
    assert load_preferences(str(tmp_path)).to_list() == [
        {"user_id": "007", "chosen": "NA"},
        {"user_id": "7", "chosen": "1"},
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["7", "8"], [7, 8]),
        (['"2020-01-01"', '"2020-01-02"'], ["2020-01-01", "2020-01-02"]),
        (['"007"', "7"], ["007", "7"]),
        (["1e3", "1000"], ["1e3", "1000"]),
        (
            ["12345678901234567890123", "12345678901234567890124"],
            ["12345678901234567890123", "12345678901234567890124"],
        ),
        (["NaN", "2"], [None, "2"]),
    ],
)
def test_ids_of_json_lines_are_neither_merged_nor_rounded(tmp_path, values, expected):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(f'{{"user_id": {value}, "chosen": "a\\u2028"}}' for value in values))
    dataset = load_preferences(str(path))
    assert dataset["user_id"][:] == expected and dataset["chosen"][:] == ["a\u2028"] * 2


def test_a_number_and_a_text_of_one_look_are_no_one_user(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"user_id": 7, "chosen": "a", "rejected": "b"}\n{"user_id": "7", "chosen": "a", "rejected": "b"}')
    with pytest.raises(ValueError, match="`user_id` of the train dataset is .*, but must be .* alike in all rows"):
        check_preferences(load_preferences(str(path)), "train")


def test_what_is_not_there_meets_no_condition(tmp_path):
    rows = Dataset.from_dict({"user_id": [1, 2, 3], "group": ["None", None, "a"]})
    rows.with_format("torch").save_to_disk(tmp_path / "rows")
    assert load_preferences(str(tmp_path / "rows"), where=["group=None"])["user_id"][:] == [1]
    assert load_preferences(str(tmp_path / "rows"), where=["user_id=2"])["group"][:] == [None]


def test_rows_on_disk_have_the_split_that_is_asked_for(tmp_path):
    rows = Dataset.from_dict({"user_id": ["a"], "chosen": ["b"], "rejected": ["c"]})
    DatasetDict(train=rows).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"has no split 'test', only \['train'\]"):
        load_preferences(str(tmp_path / "splits"), "test")
    rows.save_to_disk(tmp_path / "rows")
    with pytest.raises(ValueError, match="would be evaluated on the rows that it is trained on"):
        PreferenceArguments(dataset_name=str(tmp_path / "rows")).load()
    with pytest.raises(ValueError, match="Name a file or dataset with `--dataset_name`"):
        PreferenceArguments().load()


def test_embeddings_of_a_csv_file_are_refused_with_the_mend(tmp_path):
    (tmp_path / "pairs.csv").write_text('user_id,chosen_embeds,rejected_embeds\na,"[0.1, 0.2]","[0.2, 0.1]"\n')
    with pytest.raises(ValueError, match="`chosen_embeds` of .* CSV files cannot hold lists, so save them as parquet"):
        check_embeddings(load_preferences(str(tmp_path / "pairs.csv")), "train")


def test_a_pair_that_a_user_is_known_by_the_other_way_round_is_no_target():
    contexts = Dataset.from_list([{"user_id": user, "chosen": "a", "rejected": "b"} for user in ("ada", "bob")])
    targets = Dataset.from_list(
        [
            {"user_id": "ada", "chosen": "b", "rejected": "a"},
            {"user_id": "ada", "chosen": "c", "rejected": "d"},
            {"user_id": "bob", "chosen": "c", "rejected": "d"},
        ]
    )
    joined = with_roles(contexts, targets)
    assert [(row["user_id"], row["chosen"]) for row in joined if row["role"] == "target"] == [
        ("ada", "c"),
        ("bob", "c"),
    ]


def test_users_of_contexts_and_targets_are_told_apart_alike():
    rows = {"chosen": ["a"], "rejected": ["b"]}
    numbers, texts = Dataset.from_dict({"user_id": [7], **rows}), Dataset.from_dict({"user_id": ["7"], **rows})
    with pytest.raises(
        ValueError, match="`user_id` is of the type .*int64.* in the contexts and .*string.* in the targets"
    ):
        with_roles(numbers, texts)
    with pytest.raises(ValueError, match="No user has both context and target pairs"):
        with_roles(texts, Dataset.from_dict({"user_id": ["8"], **rows}))


def test_users_who_are_not_known_fall_into_no_split():
    rows = Dataset.from_dict({"user_id": ["", *map(str, range(100))]})
    with pytest.raises(ValueError, match="`user_id` is blank in 1 of 101 rows"):
        split_by_hash(rows, "user_id")
