"""
What an NP-BTL training step at the paper's size spends its time on, and whether the collator keeps up.

64 tasks, N_T = 20, N_C <= 10 inside the targets, embeddings of size 4,096 in float16 on disk, hidden size 256. The bare
products are those of one step, forward and backward, on operands prepared in advance, and nothing else; they alternate with
the steps.

```sh
python examples/benchmarks/reward_step.py
```
"""

import argparse
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, load_from_disk
from report import report
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from np_trl import NPRewardConfig, NPRewardModel, NPRewardModelConfig, NPRewardTrainer


EMBED, USERS, PAIRS = 4096, 100, 4000
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


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


class ProductRecorder(TorchDispatchMode):
    """Records every matrix product, with operands of the same shapes and strides."""

    def __init__(self):
        super().__init__()
        self.products = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            self.products.append((function, [torch.empty_like(operand).normal_() for operand in args]))
        return function(*args, **(kwargs or {}))

    @torch.no_grad()
    def repeat(self) -> None:
        for function, operands in self.products:
            function(*operands)


def rows_embedded(trainer: NPRewardTrainer, module: nn.Linear, batch: dict) -> int:
    """Count the options that a linear map is given in a step."""
    counts = []
    hook = module.register_forward_hook(lambda _, args, output: counts.append(args[0].shape[:-1].numel()))
    trainer.compute_loss(trainer.model, dict(batch))
    hook.remove()
    return sum(counts)


def seconds(function, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def share_of_products(trainer: NPRewardTrainer, batch: dict, num_steps: int) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(num_steps):
            step(trainer, batch)
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(times.get(product.name(), 0) for product in PRODUCTS) / sum(times.values())


def time_steps(trainer: NPRewardTrainer, num_steps: int) -> dict[str, float]:
    loader = trainer.get_train_dataloader()
    batch = next(iter(loader))
    num_tasks = len(batch["context_mask"])
    step(trainer, batch)
    with ProductRecorder() as bare:
        step(trainer, batch)
    times = []
    for index in range(num_steps):
        tasks = [loader.dataset[num_tasks * index + position] for position in range(num_tasks)]
        calls = [(step, trainer, batch), (bare.repeat,), (trainer.data_collator, tasks)]
        times.append([seconds(*call) for call in calls])
    times = np.array(times)
    step_time, bare_time, collator_time = np.median(times, axis=0)
    target_rows = rows_embedded(trainer, trainer.model.option_encoder.input, batch)
    context_rows = rows_embedded(trainer, trainer.model.context_encoder.option_encoder.input, batch)
    return {
        "step, median s": step_time,
        "tasks a second": num_tasks / step_time,
        "bare products, median s": bare_time,
        "step to bare products, median of pairs": np.median(times[:, 0] / times[:, 1]),
        "share of matrix products in a step": share_of_products(trainer, batch, num_steps),
        "collator, median s": collator_time,
        "collator to step, median of pairs": np.median(times[:, 2] / times[:, 0]),
        "encodings of a target option": target_rows / len(batch["option_embeds"]),
        "encodings of a context option by the context encoder": context_rows / (2 * int(batch["context_mask"].sum())),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_steps", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        figures = time_steps(build_trainer(path), arguments.num_steps)
    report("reward_step", {name: float(value) for name, value in figures.items()}, seed=0)
