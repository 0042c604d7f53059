"""
Let training runs fail, and resume from their newest whole checkpoint.

Called with a folder and the name of a case (`reward` or `lora`), it kills a run again and again, at random moments; the run
then meets a full disk, and Ctrl-C. Called with a folder alone, it has one run read a stream with a pair that is not finite,
and of another, in two processes, it kills one process. Prints a JSON line: what was said, whether anything was lost beyond
the last checkpoint, and whether the run that came through equals one that nobody touched.
"""

import json
import math
import os
import random
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from np_trl import NPDPOTrainer, NPRewardTrainer
from np_trl.models.layers import Standardizer
from np_trl.trainer.checkpoints import is_sealed, last_whole_checkpoint
from tests.testing_utils import (
    dpo_config,
    embedded_rows,
    losses,
    reward_config,
    style_rows,
    task_rows,
    tiny_base,
    tiny_reward_model,
    tiny_tokenizer,
)


STEPS, SAVE_STEPS, KILLS = 60, 2, 20
BAD_TASK = 25  # in batches of 4, the 7th


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
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            signal.raise_signal(signal.SIGINT)  # to this thread, so that it is raised here


class Die(TrainerCallback):
    """Kill this process at a step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def stream(is_finite: bool):
    rows = embedded_rows(num_users=4 * STEPS, pairs_per_user=4).to_dict()
    if not is_finite:
        rows["chosen_embeds"][4 * BAD_TASK][0] = math.nan
    return task_rows(Dataset.from_dict(rows))


def reward_model():
    """A model with statistics of embeddings: a trainer would read the whole stream for them, the broken pair among it."""
    model = tiny_reward_model()
    for module in model.modules():
        if isinstance(module, Standardizer):
            module.fit([torch.tensor(embedded_rows()["chosen_embeds"][:])])
    return model


def build(case: str, folder: Path, max_steps: int, callbacks=()):
    torch.manual_seed(0)
    options = {"max_steps": max_steps, "save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": 2}
    if case != "lora":
        if "RANK" in os.environ:
            options["ddp_backend"] = "gloo"
        is_finite = case != "not_finite"
        return NPRewardTrainer(
            reward_model(),
            args=reward_config(folder, **options),
            train_dataset=embedded_rows(num_users=16) if case == "reward" else stream(is_finite),
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


def train(case: str, folder: Path, callbacks=(), rank: int = 0, num_processes: int = 1, port: int = 0) -> None:
    if num_processes > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
        os.environ |= {key: str(value) for key, value in ranks.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trainer = build(case, folder, STEPS, [TellSaved(folder / "told"), *callbacks])
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    trainer.save_model()
    (folder / "losses.json").write_text(json.dumps(losses(trainer)))
    if num_processes > 1:
        torch.distributed.barrier()


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


def launch(case: str, folder: Path, callbacks=(), num_processes: int = 1) -> list[int]:
    """Start the processes of a run. Callbacks are for the last of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [
        in_a_child(train, case, folder, callbacks if rank == num_processes - 1 else (), rank, num_processes, port)
        for rank in range(num_processes)
    ]


def newest(folder: Path) -> int:
    checkpoint = last_whole_checkpoint(folder)
    return 0 if checkpoint is None else int(checkpoint.split("-")[-1])


def told(folder: Path) -> int:
    path = folder / "told"
    return int(path.read_text() or 0) if path.exists() else 0


def finish(case: str, folder: Path, num_processes: int = 1) -> dict:
    statuses = [os.waitpid(pid, 0)[1] for pid in launch(case, folder, num_processes=num_processes)]
    assert not any(statuses), (folder / "error").read_text()
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
        (pid,) = launch(case, folder)
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


def fail(case: str, folder: Path, callbacks=(), num_processes: int = 1) -> dict:
    """Let a run fail, in several processes by a callback of the last one. Tells how long the first outlives the last."""
    first, *_, last = 2 * launch(case, folder, callbacks, num_processes)
    if num_processes > 1:
        os.waitpid(last, 0)
    start = time.perf_counter()
    _, status = os.waitpid(first, 0)
    return {
        "seconds": time.perf_counter() - start,
        "failed": status != 0,
        "error": (folder / "error").read_text(),
        "newest": newest(folder),
        "told": told(folder),
    }


def survive(root: Path, case: str) -> dict:
    """Kill a run at random, let the disk be full, press Ctrl-C; each time the run that is resumed is compared with a whole one."""
    folders = {name: root / name for name in ("whole", "killed", "full_disk", "interrupted")}
    for folder in folders.values():
        folder.mkdir()
    start = time.perf_counter()
    expected = finish(case, folders["whole"])
    results = {"killed": kill_at_random(case, folders["killed"], time.perf_counter() - start)}
    results["full_disk"] = fail(case, folders["full_disk"], [LimitFiles()])
    results["interrupted"] = fail(case, folders["interrupted"], [Interrupt()])
    for name, result in results.items():
        result["equal"] = finish(case, folders[name]) == expected
    return results


def fail_once(root: Path) -> dict:
    """Let a stream hold a pair that is not finite, and let one of two processes be killed."""
    for folder in (root / name for name in ("streamed", "not_finite", "two", "one_dies")):
        folder.mkdir()
    results = {"not_finite": fail("not_finite", root / "not_finite")}
    results["not_finite"]["equal"] = finish("streamed", root / "not_finite") == finish("streamed", root / "streamed")
    results["one_dies"] = fail("reward", root / "one_dies", [Die()], num_processes=2)
    results["one_dies"]["equal"] = finish("reward", root / "one_dies", 2) == finish("reward", root / "two", 2)
    return results


def main(root: Path, case: str | None = None) -> None:
    torch.set_num_threads(1)  # a process that forks has no others
    tiny_base(root / "base")
    print(json.dumps(fail_once(root) if case is None else survive(root, case)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
