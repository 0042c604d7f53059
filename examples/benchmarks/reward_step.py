"""
What an NP-BTL training step at the paper's size spends its time on, and whether the collator keeps up.

64 tasks, N_T = 20, N_C <= 10 inside the targets, embeddings of size 4,096 in float16 on disk, hidden size 256.

```sh
python examples/benchmarks/reward_step.py
```
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, load_from_disk
from report import report
from torch.profiler import ProfilerActivity, profile

from np_trl import NPRewardConfig, NPRewardModel, NPRewardModelConfig, NPRewardTrainer


EMBED, USERS, PAIRS = 4096, 100, 4000
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm"}


def write_rows(path: str, num_pairs: int = PAIRS) -> Dataset:
    embeds = List(Value("float16"), length=EMBED)
    features = Features({"user_id": Value("int64"), "chosen_embeds": embeds, "rejected_embeds": embeds})

    def rows():
        rng = np.random.default_rng(0)
        for index in range(num_pairs):
            chosen, rejected = rng.standard_normal((2, EMBED)).astype(np.float16)
            yield {"user_id": index % USERS, "chosen_embeds": chosen, "rejected_embeds": rejected}

    Dataset.from_generator(rows, features=features, cache_dir=f"{path}/cache").save_to_disk(f"{path}/rows")
    return load_from_disk(f"{path}/rows")


def build_model() -> NPRewardModel:
    context_config = {"hidden_size": 256, "latent_size": 256, "memory_size": 128}
    return NPRewardModel(NPRewardModelConfig(embed_size=EMBED, hidden_size=256, context_config=context_config))


def build_trainer(path: str) -> NPRewardTrainer:
    args = NPRewardConfig(path, report_to="none", use_cpu=not torch.cuda.is_available())
    trainer = NPRewardTrainer(build_model(), args=args, train_dataset=write_rows(path))
    trainer.create_optimizer()
    trainer.model.train()
    return trainer


def step(trainer: NPRewardTrainer, batch: dict) -> None:
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def seconds(function, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def share_of_products(trainer: NPRewardTrainer, batch: dict, num_steps: int) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(num_steps):
            step(trainer, batch)
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(times.get(name, 0) for name in PRODUCTS) / sum(times.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_steps", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        trainer = build_trainer(path)
        loader = trainer.get_train_dataloader()
        batch = next(iter(loader))
        step(trainer, batch)
        times = []
        for index in range(arguments.num_steps):
            tasks = [loader.dataset[64 * index + position] for position in range(64)]
            times.append((seconds(step, trainer, batch), seconds(trainer.data_collator, tasks)))
        figures = {
            "step, median s": statistics.median(step_time for step_time, _ in times),
            "collator, median s": statistics.median(collator_time for _, collator_time in times),
            "collator to step, median of pairs": statistics.median(c / s for s, c in times),
            "share of matrix products in a step": share_of_products(trainer, batch, arguments.num_steps),
        }
    report("reward_step", figures, seed=0)
