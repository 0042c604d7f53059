"""The scripts that make preference pairs of UltraFeedback and of datasets of many users."""

import logging
import re
import runpy
import shlex

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from test_personal_llm import row as personal_llm_row
from test_prism import utterance
from test_ultrafeedback_p import row as ultrafeedback_p_row
from tests.test_ultrafeedback import prompts, write_ultrafeedback
from tests.testing_utils import ROOT
from trl import TrlParser

from np_trl.data.loading import SPLITS, hash_split


MODES = ("helpfulness", "honesty", "truthfulness")


def load_script(name: str) -> dict:
    """The names of a script, which is not run."""
    return runpy.run_path(str(ROOT / "examples" / "datasets" / f"{name}.py"), run_name=name)


def run(script: dict, path, **arguments) -> dict[str, Dataset]:
    """Run a script and read the files that it makes."""
    script["main"](script["ScriptArguments"](output_dir=str(path), **arguments))
    assert sorted(file.name for file in path.glob("*")) == sorted(f"{split}.parquet" for split in SPLITS)
    return {
        split: load_dataset("parquet", data_files=str(path / f"{split}.parquet"), split="train") for split in SPLITS
    }


def test_ten_awkward_rows_make_three_files_with_counts_in_the_log(tmp_path, caplog):
    source = write_ultrafeedback(tmp_path, prompts(6, 2, 2), awkward=True)
    script = load_script("prepare_ultrafeedback")
    with caplog.at_level(logging.INFO):
        splits = run(script, tmp_path / "hh", dataset_name=source, num_eval_users=3, num_eval_pairs=5)
    # four prompts with all pairs, one with a pair, one with none, for each of two users
    assert len(splits["train"]) == 2 * (4 * 6 + 1) and len(splits["test"]) == 2 * 3 * 5
    columns = ["prompt", "chosen", "rejected", "group", "is_conflicting", "user_id"]
    for split, dataset in splits.items():
        assert sorted(dataset.column_names) == sorted(columns) and all(dataset["is_conflicting"])
        assert {hash_split(prompt) for prompt in dataset["prompt"]} == {split}
        for row in dataset:  # a later number is more helpful and less honest
            chosen, rejected = (int(row[side].split()[-1]) for side in ("chosen", "rejected"))
            assert (chosen > rejected) == (row["group"] == "helpfulness")
    assert "Left out 2 of 38 responses that lack a rating or are empty" in caplog.text
    assert "Left out 1 repeated responses, and 1 prompts with a single response" in caplog.text
    assert "train.parquet: 50 pairs of 2 users" in caplog.text


def test_users_with_more_pairs_than_there_are_are_refused(tmp_path):
    source = write_ultrafeedback(tmp_path, prompts(6, 2, 2))
    with pytest.raises(ValueError, match="User 0 has 12 conflicting pairs to choose from, but `pairs_per_user=30`"):
        run(load_script("prepare_ultrafeedback"), tmp_path / "hh", dataset_name=source)


@pytest.mark.parametrize("rate", [0.5, 0.75])
def test_three_modes_at_a_conflict_rate(tmp_path, rate):
    source = write_ultrafeedback(tmp_path, prompts(20, 10, 10))
    sizes = {"num_train_users": 2, "pairs_per_user": 16, "num_eval_users": 2, "num_eval_pairs": 8}
    script = load_script("prepare_ultrafeedback")
    # truthfulness is random and instruction following always rated 3
    modes = ["helpfulness", "truthfulness", "instruction_following"]
    splits = run(script, tmp_path / "hht", dataset_name=source, modes=modes[:2], conflict_rate=rate, **sizes)
    for dataset, size in zip(splits.values(), (16, 8, 8), strict=True):
        assert len(dataset) == 4 * size and len(dataset.unique("user_id")) == 4
        assert np.mean(dataset["is_conflicting"]) == rate and set(dataset["group"]) == set(modes[:2])
    splits = run(script, tmp_path / "hht", dataset_name=source, modes=list(MODES), **sizes)
    assert all(set(dataset["group"]) == set(MODES) for dataset in splits.values())


@pytest.mark.parametrize("num_modes", [2, 3])
def test_a_mixture_draws_weights_for_every_user(tmp_path, num_modes):
    source = write_ultrafeedback(tmp_path, prompts(20, 10, 10))
    script = load_script("prepare_ultrafeedback")
    sizes = {"num_users": 7, "num_eval_users": 5, "num_eval_pairs": 8}
    arguments = {"modes": list(MODES[:num_modes]), "mixture": "dirichlet", "concentration": 1.0, **sizes}
    splits = run(script, tmp_path / "mixture", dataset_name=source, **arguments)
    for dataset, num_users, num_pairs in zip(splits.values(), (7, 5, 5), (40, 8, 8), strict=True):
        weights = np.unique(dataset["weights"][:], axis=0)
        assert weights.shape == (num_users, num_modes) and np.allclose(weights.sum(axis=1), 1)
        assert len(dataset) == num_users * num_pairs and set(dataset["group"]) == {"mixture"}
    with pytest.raises(ValueError, match="`mixture='normal'` is unknown"):
        script["ScriptArguments"](output_dir="out", mixture="normal")


def test_prism_is_split_by_user(tmp_path):
    rows = [
        utterance(f"conversation {n} {turn}", 0, text, chosen=text == "a", user_id=f"user{n}")
        for n in range(60)
        for turn in range(2)
        for text in "abc"
    ]
    Dataset.from_list(rows).to_json(tmp_path / "utterances.jsonl")
    names = [str(tmp_path / "utterances.jsonl")]
    script = load_script("prepare_preferences")
    for opening_turns_only in (True, False):
        arguments = {"dataset_name": names, "opening_turns_only": opening_turns_only}
        splits = run(script, tmp_path / "prism", source="prism", **arguments)
        assert sum(map(len, splits.values())) == 60 * 2 * 2
        for split, dataset in splits.items():
            assert {hash_split(user) for user in dataset["user_id"]} == {split}
            assert isinstance(dataset[0]["prompt"], str) == opening_turns_only


def test_personal_llm_makes_users_who_weigh_its_reward_models(tmp_path):
    Dataset.from_list([personal_llm_row(prompt) for prompt in prompts(8, 4, 4)]).to_json(tmp_path / "rows.jsonl")
    sizes = {"num_users": 6, "pairs_per_user": 5, "num_eval_users": 2, "num_eval_pairs": 3}
    script = load_script("prepare_preferences")
    names = [str(tmp_path / "rows.jsonl")]
    splits = run(script, tmp_path / "out", source="personal_llm", dataset_name=names, **sizes)
    assert [len(dataset) for dataset in splits.values()] == [6 * 5, 2 * 3, 2 * 3]
    for split, dataset in splits.items():
        assert {hash_split(prompt) for prompt in dataset["prompt"]} == {split}
        for row in dataset:  # the first response pleases the first reward model
            assert row["chosen"].endswith(" 1" if row["weights"][0] > row["weights"][1] else " 2")


def test_ultrafeedback_p_is_split_by_prompt(tmp_path):
    given = prompts(6, 2, 2)
    for name, part in (("train", given[:5]), ("test", given[5:])):
        rows = [ultrafeedback_p_row(prompt, data_subset=kind) for prompt in part for kind in "84"]
        Dataset.from_list(rows).to_json(tmp_path / f"{name}.jsonl")
    names = [str(tmp_path / f"{name}.jsonl") for name in ("train", "test")]
    script = load_script("prepare_preferences")
    splits = run(script, tmp_path / "out", source="ultrafeedback_p", dataset_name=names)
    assert [len(dataset) for dataset in splits.values()] == [12, 4, 4]
    assert all(set(dataset["user_id"]) == {"8", "4"} for dataset in splits.values())


def test_sources_are_named():
    script = load_script("prepare_preferences")
    with pytest.raises(ValueError, match="`source='hh'` is unknown. Choose one of"):
        script["main"](script["ScriptArguments"](source="hh", output_dir="out"))
    with pytest.raises(ValueError, match="`source='ultrafeedback_p'` has no name on the Hub. Set `dataset_name`"):
        script["main"](script["ScriptArguments"](source="ultrafeedback_p", output_dir="out"))


@pytest.mark.parametrize("name", ["prepare_ultrafeedback", "prepare_preferences"])
def test_the_commands_of_a_script_are_understood(name):
    script = load_script(name)
    commands = re.findall(r"```sh\n(.*?)```", script["__doc__"], re.S)
    assert commands
    for command in commands:
        python, path, *arguments = shlex.split(command.replace("\\\n", " "))
        assert (python, path) == ("python", f"examples/{name}.py")
        TrlParser(script["ScriptArguments"]).parse_args_and_config(arguments)
