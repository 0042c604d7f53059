"""
Kill a training run again and again, at random moments, and let it go on from its newest whole checkpoint each time.

Prints a JSON line: how often it was killed and how often a checkpoint was being written then, whether anything was lost
beyond the last checkpoint, and whether the run that came through equals one that nobody touched.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from np_trl import NPDPOTrainer, NPRewardTrainer
from np_trl.trainer.checkpoints import is_sealed, last_whole_checkpoint
from tests.testing_utils import (
    dpo_config,
    embedded_rows,
    losses,
    reward_config,
    style_rows,
    tiny_base,
    tiny_reward_model,
    tiny_tokenizer,
)


STEPS, SAVE_STEPS, KILLS = 60, 2, 20


class TellSaved(TrainerCallback):
    """Write down the last step whose checkpoint the trainer holds for saved."""

    def __init__(self, path: Path):
        self.path = path

    def on_save(self, args, state, control, **kwargs):
        self.path.write_text(str(state.global_step))


class LimitFiles(TrainerCallback):
    """From a step on, let no file grow beyond a size, as on a disk that is full."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


class Interrupt(TrainerCallback):
    """Press Ctrl-C at a step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            signal.raise_signal(signal.SIGINT)  # to this thread, so that it is raised here


def build(case: str, folder: Path, max_steps: int, callbacks=()):
    torch.manual_seed(0)
    options = {"max_steps": max_steps, "save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": 2}
    if case == "reward":
        return NPRewardTrainer(
            tiny_reward_model(),
            args=reward_config(folder, **options),
            train_dataset=embedded_rows(num_users=16),
            callbacks=list(callbacks),
        )
    return NPDPOTrainer(
        str(folder.parent / "base"),
        args=dpo_config(folder, **options),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1, 2]),
        callbacks=list(callbacks),
    )


def train(case: str, folder: Path, callbacks=()) -> None:
    trainer = build(case, folder, STEPS, [TellSaved(folder / "told"), *callbacks])
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    trainer.save_model()
    (folder / "losses.json").write_text(json.dumps(losses(trainer)))


def in_a_child(function, *args) -> int:
    """Start a process that calls a function; it needs no imports of its own."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            function(*args)
        except BaseException as error:
            (args[1] / "error").write_text(f"{type(error).__name__}: {error}")
            os._exit(1)
        os._exit(0)
    return pid


def newest(folder: Path) -> int:
    checkpoint = last_whole_checkpoint(folder)
    return 0 if checkpoint is None else int(checkpoint.split("-")[-1])


def told(folder: Path) -> int:
    path = folder / "told"
    return int(path.read_text() or 0) if path.exists() else 0


def finish(case: str, folder: Path) -> dict:
    _, status = os.waitpid(in_a_child(train, case, folder), 0)
    assert status == 0, (folder / "error").read_text()
    return {
        "losses": json.loads((folder / "losses.json").read_text()),
        "weights": next(folder.glob("*.safetensors")).read_bytes().hex(),
    }


def kill_at_random(case: str, folder: Path, seconds: float) -> dict:
    """Kill the run `KILLS` times, each time within the first third of what it lasts."""
    rng = random.Random(0)
    survived = while_writing = 0
    for _ in range(KILLS):
        before = newest(folder)
        pid = in_a_child(train, case, folder)
        time.sleep(rng.uniform(0, 0.3 * seconds))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        unsealed = [path for path in folder.glob("checkpoint-*") if not is_sealed(path)]
        while_writing += bool(unsealed)
        survived += newest(folder) >= max(before, told(folder))
    return {
        "kills": KILLS,
        "survived": survived,
        "while a checkpoint was written": while_writing,
        "reached": newest(folder),
    }


def fail(case: str, folder: Path, callback: TrainerCallback) -> dict:
    """Let a run fail by a callback."""
    _, status = os.waitpid(in_a_child(train, case, folder, [callback]), 0)
    return {
        "failed": status != 0,
        "error": (folder / "error").read_text(),
        "newest": newest(folder),
        "told": told(folder),
    }


def main(root: Path) -> None:
    torch.set_num_threads(1)  # a process that forks has no others
    tiny_base(root / "base")
    report = {}
    for case in ("reward", "lora"):
        folders = {name: root / f"{case}_{name}" for name in ("whole", "killed", "full_disk", "interrupted")}
        for folder in folders.values():
            folder.mkdir()
        start = time.perf_counter()
        expected = finish(case, folders["whole"])
        results = {"killed": kill_at_random(case, folders["killed"], time.perf_counter() - start)}
        results["full_disk"] = fail(case, folders["full_disk"], LimitFiles())
        results["interrupted"] = fail(case, folders["interrupted"], Interrupt())
        for name, result in results.items():
            actual = finish(case, folders[name])
            result["equal"] = actual == expected
        report[case] = results
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
