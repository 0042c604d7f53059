"""Checkpoints that are whole, and those that are not."""

import json
import shutil
from pathlib import Path

import pytest

from np_trl import NPRewardTrainer
from np_trl.trainer.checkpoints import SEAL, damaged_files, is_sealed, last_whole_checkpoint

from .testing_utils import embedded_rows, losses, reward_config, tiny_reward_model


def build(tmp_path, **kwargs) -> NPRewardTrainer:
    defaults = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    return NPRewardTrainer(
        tiny_reward_model(),
        args=reward_config(tmp_path, **{**defaults, **kwargs}),
        train_dataset=embedded_rows(num_users=16),
    )


@pytest.fixture
def run(tmp_path) -> tuple[Path, list[float]]:
    trainer = build(tmp_path)
    trainer.train()
    return tmp_path, losses(trainer)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_every_checkpoint_lists_its_files(run):
    folder, _ = run
    for step in range(1, 5):
        checkpoint = folder / f"checkpoint-{step}"
        listed = json.loads((checkpoint / SEAL).read_text())
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

    def killed(folder):
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
    assert losses(resumed) == expected and "cannot be told whether it is whole" in caplog.text
