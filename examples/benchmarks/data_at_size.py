"""
What ten million pairs of a million users cost: the time until the first training step, the memory that it takes, and
tasks a second against a thousand users. And the same where one user has a million pairs and many have seven.

Pairs are options of 32 numbers on disk. Every figure of memory and time is of a process of its own.

```sh
python examples/benchmarks/data_at_size.py --output_dir runs/data_at_size
```
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from datasets import Dataset, load_from_disk
from report import report

from np_trl import NPRewardConfig, NPRewardModel, NPRewardModelConfig, NPRewardTrainer


EMBED, TASKS = 32, 64


def write_rows(counts: np.ndarray, path: Path) -> None:
    """Write pairs of users, in random order; `counts` are those of each user."""
    rng = np.random.default_rng(0)
    users = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    embeds = [
        pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(len(users) * EMBED, np.float32)), EMBED)
        for _ in range(2)
    ]
    table = pa.table({"user_id": users, "chosen_embeds": embeds[0], "rejected_embeds": embeds[1]})
    Dataset(table).save_to_disk(path)


def build_trainer(path: str) -> NPRewardTrainer:
    context_config = {"hidden_size": 64, "latent_size": 64, "memory_size": 32}
    model = NPRewardModel(NPRewardModelConfig(embed_size=EMBED, hidden_size=64, context_config=context_config))
    args = NPRewardConfig(
        f"{path}_out",
        max_steps=1,
        num_targets=7,
        max_context=7,
        per_device_train_batch_size=TASKS,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
    )
    return NPRewardTrainer(model, args=args, train_dataset=load_from_disk(path))


def measure(path: str) -> None:
    """
    Print the seconds from nothing to the end of the first step, and by how much the memory grew, in MB: the process's own,
    and with the pages of the file that the system keeps mapped for as long as it has room.
    """
    process = psutil.Process()
    before, start = process.memory_info(), time.perf_counter()
    build_trainer(path).train()
    seconds, after = time.perf_counter() - start, process.memory_info()
    mapped, resident = after.shared - before.shared, after.rss - before.rss
    print(json.dumps({"seconds": seconds, "own": (resident - mapped) / 1e6, "resident": resident / 1e6}))


def measure_alone(path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def tasks_per_second(
    trainers: dict[str, NPRewardTrainer], rounds: int, train: bool, batches: int = 20
) -> dict[str, list[float]]:
    """Draw and collate batches of each trainer in turn, and take a training step with each if `train`."""
    speeds = {name: [] for name in trainers}
    tasks = {name: trainer.get_train_dataloader().dataset for name, trainer in trainers.items()}
    for number in range(rounds):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            for first in range(number * batches * TASKS, (number + 1) * batches * TASKS, TASKS):
                items = [tasks[name][position % len(tasks[name])] for position in range(first, first + TASKS)]
                batch = trainer.data_collator(items)
                if train:
                    trainer.compute_loss(trainer.model, batch).backward()
                    trainer.optimizer.step()
                    trainer.optimizer.zero_grad()
            speeds[name].append(batches * TASKS / (time.perf_counter() - start))
    return speeds


def main(output_dir: Path, num_users: int, num_rounds: int) -> None:
    populations = {
        "thousand": np.full(1000, 10),
        "million": np.full(num_users, 10),
        "uneven": np.concatenate([[num_users], np.full(num_users // 7, 7)]),
    }
    figures, trainers = {"pairs, million users": float(populations["million"].sum())}, {}
    for name, counts in populations.items():
        path = output_dir / name
        if not path.exists():
            write_rows(counts, path)
        for index in path.glob("user-index-*"):
            for file in index.iterdir():
                file.unlink()
            index.rmdir()
        first, again = measure_alone(path), measure_alone(path)
        figures[f"first start, {name}, s"], figures[f"start with the index, {name}, s"] = (
            first["seconds"],
            again["seconds"],
        )
        figures[f"memory growth, {name}, MB"] = again["own"]
        figures[f"with pages of the file, {name}, MB"] = again["resident"]
        trainers[name] = build_trainer(str(path))
        trainers[name].create_optimizer()
    for kind, train in (("drawn", False), ("trained on", True)):
        speeds = tasks_per_second(trainers, num_rounds, train)
        for name, values in speeds.items():
            figures[f"tasks a second {kind}, {name}"] = statistics.median(values)
        for name in ("million", "uneven"):
            ratios = [large / small for large, small in zip(speeds[name], speeds["thousand"], strict=True)]
            figures[f"tasks {kind}, {name} to thousand"] = statistics.median(ratios)
    report("data_at_size", figures, seed=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/data_at_size"))
    parser.add_argument("--num_users", type=int, default=1_000_000)
    parser.add_argument("--num_rounds", type=int, default=20)
    parser.add_argument("--measure", help="A folder with pairs, to measure in this process alone.")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(arguments.measure)
    else:
        main(arguments.output_dir, arguments.num_users, arguments.num_rounds)
