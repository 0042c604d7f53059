"""Checkpoints that are whole, and those that are not."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, concatenate_datasets
from peft import LoraConfig

from np_trl import NPDPOTrainer, NPRewardTrainer
from np_trl.trainer.checkpoints import SEAL, damaged_files, is_sealed, last_whole_checkpoint, open_checkpoint, read_run
from np_trl.trainer.run_facts import hash_rows

from .testing_utils import (
    CONTEXT_CONFIG,
    dpo_config,
    embedded_rows,
    losses,
    reward_config,
    style_rows,
    tiny_base,
    tiny_reward_model,
    tiny_tokenizer,
)


def build(tmp_path, data=None, model=None, **kwargs) -> NPRewardTrainer:
    defaults = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    return NPRewardTrainer(
        tiny_reward_model() if model is None else model,
        args=reward_config(tmp_path, **{**defaults, **kwargs}),
        train_dataset=embedded_rows(num_users=16) if data is None else data,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("finished")
    trainer = build(folder)
    trainer.train()
    return folder, losses(trainer)


@pytest.fixture
def run(finished, tmp_path) -> tuple[Path, list[float]]:
    """A copy of a run that is finished: its folder and its losses."""
    folder, expected = finished
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", expected


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_every_checkpoint_lists_its_files(run):
    folder, _ = run
    for step in range(1, 5):
        checkpoint = folder / f"checkpoint-{step}"
        listed = json.loads((checkpoint / SEAL).read_text())["files"]
        assert {
            "model.safetensors",
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
            "trainer_state.json",
        } <= listed.keys()
        assert listed["optimizer.pt"]["bytes"] == (checkpoint / "optimizer.pt").stat().st_size
        assert damaged_files(checkpoint) == []
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-4")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["flip a bit", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_and_refused_by_name(run, name, damage):
    folder, expected = run
    path = folder / "checkpoint-4" / name
    if damage == "flip a bit":
        flip_a_bit(path)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        path.unlink()
    assert damaged_files(folder / "checkpoint-4") == [name]
    with pytest.raises(ValueError, match=rf"checkpoint-4' is damaged: \['{name}'\]"):
        build(folder).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    resumed = build(folder)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == expected and resumed.state.global_step == 4
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-4")  # written again, whole


@pytest.mark.parametrize("kept", [0, 1, 3, 6])
def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(run, kept):
    folder, expected = run
    files = sorted((folder / "checkpoint-4").iterdir(), key=lambda path: path.stat().st_mtime)
    for path in files[kept:]:
        path.unlink()
    assert not is_sealed(folder / "checkpoint-4")
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-3")
    resumed = build(folder)
    resumed.train(resume_from_checkpoint="true")  # as a command line has it
    assert losses(resumed) == expected


def test_the_last_whole_checkpoint_outlives_the_writing_of_the_next(tmp_path, monkeypatch):
    module = "np_trl.trainer.resumable_trainer.seal_checkpoint"
    trainer = build(tmp_path, save_total_limit=1, max_steps=2)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, killed)
    again = build(tmp_path, save_total_limit=1, max_steps=4)
    with pytest.raises(KeyboardInterrupt):
        again.train(resume_from_checkpoint=True)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    build(tmp_path, save_total_limit=1, max_steps=4).train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(run, tmp_path_factory):
    folder, _ = run
    with pytest.raises(ValueError, match="There is no whole checkpoint in"):
        build(tmp_path_factory.mktemp("empty")).train(resume_from_checkpoint=True)
    for path in folder.glob(f"checkpoint-*/{SEAL}"):
        path.unlink()
    with pytest.raises(ValueError, match="none, or none that was written to its end"):
        build(folder).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_trainer_may_be_named(run, caplog):
    folder, expected = run
    (folder / "checkpoint-2" / SEAL).unlink()
    shutil.rmtree(folder / "checkpoint-3")
    resumed = build(folder)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert losses(resumed) == expected and "cannot be checked whether it is whole" in caplog.text


SEALS = {
    "empty": b"",
    "zeros": bytes(300),
    "a list": b"[]",
    "null": b"null",
    "text": b'"x"',
    "not UTF-8": b"\xff\xfe",
    "nothing": b"{}",
    "nested": b"[" * 100_000,
    "a huge number": b'{"model.safetensors": ' + b"9" * 5000 + b"}",
    "files of another type": b'{"model.safetensors": [1]}',
    "a name outside": b'{"../checkpoint-1/config.json": {}}',
    "an absolute name": b'{"/etc/passwd": {}}',
    "NUL": b'{"\\u0000": {}}',
    "a name too long": json.dumps({"x" * 5000: {}}).encode(),
}


def test_damaged_seals_are_passed_over_and_refused_by_name(run):
    folder, expected = run
    checkpoint, seal = folder / "checkpoint-4", folder / "checkpoint-4" / SEAL
    whole = seal.read_bytes()
    contents = {**SEALS, "cut": whole[:200], "flipped": whole.replace(b'"seed": 42', b'"seed": 43')}
    assert contents["flipped"] != whole
    for name, content in contents.items():
        seal.write_bytes(content)
        assert damaged_files(checkpoint), name
        assert last_whole_checkpoint(folder) == str(folder / "checkpoint-3"), name
    with pytest.raises(ValueError, match=rf"checkpoint-4' is damaged: \['{SEAL}'\]"):
        build(folder).train(resume_from_checkpoint=str(checkpoint))
    seal.unlink()
    seal.mkdir()
    resumed = build(folder)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == expected and damaged_files(checkpoint) == []


def test_state_that_is_not_listed_is_doubted_and_notes_are_not(run):
    checkpoint = run[0] / "checkpoint-4"
    for name in ("README.md", "notes.txt", "curve.png", ".DS_Store", "metrics.json"):
        (checkpoint / name).write_text("changed")
    assert damaged_files(checkpoint) == []
    (checkpoint / "global_step4").mkdir()
    names = ["adapter_model.safetensors", "global_step4/states.pt", "pytorch_model.bin", "rng_state_1.pth"]
    for name in names:
        (checkpoint / name).write_bytes(b"")
    assert damaged_files(checkpoint) == names


def test_names_that_are_no_steps_are_passed_over(run):
    folder, _ = run
    for name in (
        "checkpoint-²",
        "checkpoint-٣",
        "checkpoint-05",
        "checkpoint-" + "9" * 200,
        "checkpoint--1",
        "checkpoint-1e3",
    ):
        (folder / name).mkdir()
        shutil.copytree(folder / "checkpoint-1", folder / name, dirs_exist_ok=True)
    (folder / "checkpoint-99").write_text("a file")
    assert last_whole_checkpoint(folder) == str(folder / "checkpoint-4")


OTHERS = {
    "data.contents": {"data": embedded_rows(num_users=16, seed=9)},
    "data.pairs was 192 and is 96; data.users was 16 and is 8": {"data": embedded_rows(num_users=8)},
    "tasks.seed was 42 and is 5": {"seed": 5},
    "tasks.data_seed was None and is 5": {"data_seed": 5},
    "tasks.num_targets was 6 and is 4": {"num_targets": 4, "max_context": 4},
    "tasks.context_in_target": {"context_in_target": False},
    "tasks.tasks per update was 4 and is 2": {"per_device_train_batch_size": 2},
    "model.config.context_config.pooling was 'sum' and is 'mean'": {"context": {"pooling": "mean"}},
    "model.config.head": {"head": "mean_variance"},
}


@pytest.mark.parametrize("difference", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(run, difference):
    folder, _ = run
    changes = dict(OTHERS[difference])
    fields = {"context_config": {**CONTEXT_CONFIG, **changes.pop("context", {})}}
    if "head" in changes:
        fields["head"] = changes.pop("head")
    for asked in (True, str(folder / "checkpoint-2")):
        with pytest.raises(
            ValueError, match=rf"checkpoint-\d' is of another run: .*{difference}.*without `resume_from"
        ):
            build(folder, model=tiny_reward_model(**fields), **changes).train(resume_from_checkpoint=asked)


def test_the_same_run_may_be_elsewhere_longer_and_in_other_batches(run, tmp_path, caplog):
    folder, expected = run
    shutil.rmtree(folder / "checkpoint-4")
    data = embedded_rows(num_users=16)
    data.save_to_disk(tmp_path / "data")
    shutil.move(folder, tmp_path / "moved")
    resumed = build(
        tmp_path / "moved",
        Dataset.load_from_disk(tmp_path / "data"),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=3,
    )
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed)[:3] == expected[:3] and len(losses(resumed)) == 6
    assert [record.message for record in caplog.records if record.name == "np_trl.trainer.resumable_trainer"] == [
        f"Going on from {str(tmp_path / 'moved' / 'checkpoint-3')!r}."
    ]


def test_another_learning_rate_is_warned_of(run, caplog):
    folder, _ = run
    build(folder, learning_rate=1e-2).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert "learned otherwise: learning.learning_rate was 0.002 and is 0.01. Learning rate" in caplog.text


def test_data_are_known_by_what_they_hold():
    rows = embedded_rows(num_users=4)
    columns = rows.column_names
    expected = hash_rows(rows, columns)
    wide = Features({"user_id": Value("int32"), **dict.fromkeys(columns[1:], List(Value("float64")))})
    fixed = Features({"user_id": Value("string"), **dict.fromkeys(columns[1:], List(Value("float32"), length=6))})
    assert hash_rows(rows.cast(wide), columns) == hash_rows(rows.cast(fixed), columns) == expected
    assert hash_rows(concatenate_datasets([rows.select(range(10)), rows.select(range(10, 48))]), columns) == expected
    others = rows.to_dict()
    others["rejected_embeds"][47][5] += 1e-3
    assert hash_rows(Dataset.from_dict(others), columns) != expected
    assert hash_rows(rows.select(np.roll(range(48), 1)), columns) != expected
    assert hash_rows(rows.map(lambda row: {"user_id": row["user_id"] + 1}), columns) != expected


def test_of_two_runs_in_a_folder_the_later_one_is_gone_on_with(run):
    folder, _ = run
    later = build(folder, model=tiny_reward_model(hidden_size=24), max_steps=2)
    later.train()
    assert steps(folder) == [1, 2, 3, 4] and last_whole_checkpoint(folder) == str(folder / "checkpoint-2")
    assert read_run(folder / "checkpoint-2")["id"] != read_run(folder / "checkpoint-3")["id"]
    resumed = build(folder, model=tiny_reward_model(hidden_size=24), max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(later)
    resumed = build(folder)  # and the first one by itself, which the later one is passed over for
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4 and len(losses(resumed)) == 4


def test_clocks_delete_nothing_and_neither_does_another_run(run):
    folder, _ = run
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "mine.txt").write_text("of a person")
    for step, path in enumerate(sorted(folder.glob("checkpoint-*"))):
        os.utime(
            path, (4e9 - step, 4e9 - step)
        )  # the oldest step is the newest by the clock, and all are in the future
    longer = build(folder, max_steps=5, save_total_limit=2)
    longer.train(resume_from_checkpoint=True)
    assert steps(folder) == [4, 5, 7] and last_whole_checkpoint(folder) == str(folder / "checkpoint-5")
    build(folder, seed=1, max_steps=2, save_total_limit=1).train()
    assert steps(folder) == [2, 4, 5, 7]


def test_a_step_that_is_saved_again_holds_nothing_of_before(run):
    folder, _ = run
    stale = folder / "checkpoint-2" / "adapter_model.safetensors"
    seal = json.loads((folder / "checkpoint-2" / SEAL).read_text())
    shutil.copy(folder / "checkpoint-2" / "model.safetensors", stale)
    flat = {**seal["files"], stale.name: seal["files"]["model.safetensors"]}  # as np_trl 0.1.0 wrote a seal
    (folder / "checkpoint-2" / SEAL).write_text(json.dumps(flat))
    assert damaged_files(folder / "checkpoint-2") == []
    build(folder, max_steps=2).train()
    assert damaged_files(folder / "checkpoint-2") == [] and not stale.exists()


def test_a_checkpoint_that_says_nothing_of_its_run_is_warned_of(run, caplog):
    folder, expected = run
    for path in folder.glob(f"checkpoint-*/{SEAL}"):  # as np_trl 0.1.0 wrote them
        path.write_text(json.dumps(json.loads(path.read_text())["files"]))
    shutil.rmtree(folder / "checkpoint-4")
    resumed = build(folder)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == expected
    assert caplog.text.count("does not say what it was trained on") == 1


def test_the_best_checkpoint_is_one_of_this_run(run, caplog):
    folder, _ = run
    evaluated = {
        "eval_strategy": "steps", "eval_steps": 1, "save_steps": 2, "load_best_model_at_end": True, "greater_is_better": False,
        "metric_for_best_model": "eval_loss", "max_steps": 2,
    }  # fmt: skip
    trainer = NPRewardTrainer(
        tiny_reward_model(hidden_size=24),
        args=reward_config(folder, **{"save_strategy": "steps", **evaluated, "learning_rate": 1.0}),
        train_dataset=embedded_rows(num_users=16),
        eval_dataset=embedded_rows(num_users=7, seed=1),
    )
    trainer.train()  # its best step, the first, was not saved; but the earlier run's first step is there
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-1")
    assert "was saved by another run" in caplog.text and trainer.model.config.hidden_size == 24


def test_an_adapter_goes_on_upon_its_own_base_alone(tmp_path):
    def adapter(base, **kwargs) -> NPDPOTrainer:
        return NPDPOTrainer(
            base,
            args=dpo_config(tmp_path / "run", **{"save_strategy": "steps", "save_steps": 1, **kwargs}),
            train_dataset=style_rows(),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1, 2]),
        )

    base = tiny_base(tmp_path / "base")
    trainer = adapter(base)
    trainer.train()
    shutil.move(base, tmp_path / "moved")
    resumed = adapter(str(tmp_path / "moved"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert losses(resumed) == losses(trainer)
    other = tiny_base(tmp_path / "other", hidden_act="relu")
    with pytest.raises(ValueError, match="model.config.hidden_act was 'gelu_pytorch_tanh' and is 'relu'"):
        adapter(other).train(resume_from_checkpoint=True)
    film = {"context_config": CONTEXT_CONFIG, "film_site": "attention"}
    with pytest.raises(ValueError, match="model.config.film_site was 'block' and is 'attention'"):
        adapter(str(tmp_path / "moved"), film_kwargs=film).train(resume_from_checkpoint=True)


def test_what_a_stopped_save_left_behind_is_not_loaded(tmp_path):
    """Transformers loads every folder in a checkpoint that holds an adapter."""

    def adapter() -> NPDPOTrainer:
        return NPDPOTrainer(
            tiny_base(tmp_path / "base"),
            args=dpo_config(tmp_path / "run", save_strategy="steps", save_steps=1),
            train_dataset=style_rows(),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1, 2]),
        )

    trainer = adapter()
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    shutil.rmtree(checkpoint)
    open_checkpoint(str(checkpoint), None)  # of a run that is killed while an adapter and its reference are written
    for name in ("ref", ".np_trl_x1"):
        shutil.copytree(tmp_path / "run" / "checkpoint-2", checkpoint / name)
    (checkpoint / "notes.txt").write_text("of a person")
    adapter().train()
    assert damaged_files(checkpoint) == [] and (checkpoint / "notes.txt").exists()
    resumed = adapter()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert list(resumed.model.peft_config) == ["default"] and losses(resumed) == losses(trainer)


def test_two_runs_in_one_folder_do_not_seal_files_of_each_other(tmp_path, caplog):
    runs = [build(tmp_path, max_steps=2, seed=seed) for seed in range(2)]
    save = type(runs[0])._save

    def save_after_the_other_run(output_dir=None, state_dict=None):
        runs[0]._save = lambda *args: save(runs[0], *args)
        runs[1].train()  # all of it, while the first run writes its first checkpoint
        save(runs[0], output_dir, state_dict)

    runs[0]._save = save_after_the_other_run
    runs[0].train()
    own = {run._run["id"] for run in runs}
    assert len(own) == 2 and "Another run saves in" in caplog.text
    assert not is_sealed(tmp_path / "checkpoint-1") or damaged_files(tmp_path / "checkpoint-1")
    assert read_run(last_whole_checkpoint(tmp_path))["id"] == runs[0]._run["id"]
