"""
How the time of a training step grows with users, context pairs N_C, target pairs N_T and sequence length, which the paper
says is linear (App. B).

Small NP-BTL and NP-DPO models take steps with synthetic batches of doubling sizes, in turn, in one process; times are those
of the processor, of one thread, so that other processes do not count. A line `a + b x` is fitted to the medians. A linear
cost takes at most twice the time at the largest size as at half of it, and has a slope of at most 1 on logarithmic axes,
which is fitted to the upper half of the sizes.

```sh
python examples/benchmarks/growth.py
```
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from report import report
from transformers import AutoTokenizer

from np_trl import NPDPOConfig, NPDPOTrainer, NPRewardConfig, NPRewardModel, NPRewardModelConfig, NPRewardTrainer
from np_trl.models import FiLMGemmaForCausalLM
from np_trl.models.memory import posterior_weights


EMBED, VOCABULARY = 384, 512
BASE = Path(__file__).parents[1] / "style_gemma"
ARGUMENTS = {"report_to": "none", "use_cpu": True, "num_targets": 1, "max_context": 0, "eval_num_contexts": [0]}
DOUBLING = [8, 16, 32, 64, 128]
SERIES = {
    "NP-BTL, users": ("gate", "users", DOUBLING),
    "NP-BTL, N_T": ("gate", "targets", DOUBLING),
    "NP-BTL, N_C, gated memory": ("gate", "contexts", [0, 16, 32, 64, 128, 256]),
    "NP-BTL, N_C, posterior memory": ("posterior", "contexts", [0, 16, 32, 64, 128, 256]),
    "posterior memory alone, N_C": ("memory", "contexts", [64, 128, 256, 512]),
    "NP-DPO, users": ("policy", "users", DOUBLING),
    "NP-DPO, N_T": ("policy", "targets", DOUBLING),
    "NP-DPO, N_C": ("policy", "contexts", [0, 16, 32, 64, 128, 256]),
    "NP-DPO, sequence length": ("policy", "length", [64, 128, 256, 512]),
}


def build_rows() -> Dataset:
    embeds = {f"{option}_embeds": torch.randn(EMBED).tolist() for option in ("chosen", "rejected")}
    return Dataset.from_list([{"user_id": "a", "prompt": "hi", "chosen": " yes", "rejected": " no", **embeds}] * 2)


def build_trainers(path: str) -> dict[str, NPRewardTrainer | NPDPOTrainer]:
    torch.manual_seed(0)
    rows, trainers = build_rows(), {}
    for weights in ("gate", "posterior"):
        model = NPRewardModel(NPRewardModelConfig(embed_size=EMBED, context_config={"memory_weights": weights}))
        trainers[weights] = NPRewardTrainer(model, args=NPRewardConfig(path, **ARGUMENTS), train_dataset=rows)
    policy = FiLMGemmaForCausalLM.from_pretrained(BASE, context_config={"embed_size": EMBED, "memory_size": 0})
    args = NPDPOConfig(path, **ARGUMENTS, bf16=False, gradient_checkpointing=False, precompute_ref_log_probs=True)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    trainers["policy"] = NPDPOTrainer(policy, args=args, train_dataset=rows, processing_class=tokenizer)
    for trainer in trainers.values():
        trainer.create_optimizer()
        trainer.model.train()
    return trainers


def build_context(users: int, contexts: int, targets: int) -> dict[str, torch.Tensor]:
    width = max(1, contexts)
    return {
        "context_embeds": torch.randn(users, width, 2, EMBED),
        "context_mask": torch.arange(width).expand(users, width) < contexts,
        "context_index": torch.arange(users).repeat_interleave(targets).repeat(2),
    }


def build_reward_batch(users: int = 16, contexts: int = 8, targets: int = 16) -> dict[str, torch.Tensor]:
    rows = 2 * users * targets
    options = {"option_embeds": torch.randn(rows, EMBED), "attention_mask": torch.ones(rows, 1, dtype=torch.long)}
    return {**options, **build_context(users, contexts, targets)}


def build_policy_batch(
    users: int = 1, contexts: int = 8, targets: int = 1, length: int = 64
) -> dict[str, torch.Tensor]:
    rows = 2 * users * targets
    mask = torch.ones(rows, length, dtype=torch.long)
    return {
        "input_ids": torch.randint(3, VOCABULARY, (rows, length)),
        "attention_mask": mask,
        "completion_mask": mask,
        "ref_chosen_logps": torch.zeros(rows // 2),
        "ref_rejected_logps": torch.zeros(rows // 2),
        **build_context(users, contexts, targets),
    }


def build_differences(contexts: int, users: int = 16, size: int = 128) -> torch.Tensor:
    """Coded differences of the options of context pairs, `(users, contexts, size)`."""
    return torch.randn(users, contexts, size, requires_grad=True)


def weigh(differences: torch.Tensor) -> None:
    """What the posterior memory does for its weights, forward and backward."""
    kernel = differences @ differences.transpose(1, 2) / differences.shape[-1]  # (U, C, C)
    no_margins = differences.new_zeros(differences.shape[:2])
    posterior_weights(no_margins, kernel, torch.ones_like(no_margins)).square().sum().backward()


def train(trainer: NPRewardTrainer | NPDPOTrainer, batch: dict[str, torch.Tensor]) -> None:
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def seconds(function: Callable, batch) -> float:
    start = time.process_time()
    function(batch)
    return time.process_time() - start


def measure(num_rounds: int) -> dict[str, np.ndarray]:
    """Time a step of every size of every series: `(rounds, sizes)` for each series."""
    with tempfile.TemporaryDirectory() as path:
        trainers = build_trainers(path)
    steps = {kind: partial(train, trainer) for kind, trainer in trainers.items()} | {"memory": weigh}
    build = {
        "gate": build_reward_batch,
        "posterior": build_reward_batch,
        "memory": build_differences,
        "policy": build_policy_batch,
    }
    batches = {
        name: [build[kind](**{size: value}) for value in values] for name, (kind, size, values) in SERIES.items()
    }
    rounds = []
    for _ in range(num_rounds + 1):
        rounds.append({})
        for name, (kind, _, _) in SERIES.items():
            steps[kind](batches[name][0])  # not timed: it pays for the memory that the last series gave back
            rounds[-1][name] = [seconds(steps[kind], batch) for batch in batches[name]]
    del rounds[0]  # a warm-up
    return {name: np.array([times[name] for times in rounds]) for name in SERIES}


def describe(values: list[int], rounds: np.ndarray) -> dict[str, float]:
    medians = np.median(rounds, axis=0)
    slope, start = np.polyfit(values, medians, 1)
    upper = slice(len(values) // 2, None)
    exponent, _ = np.polyfit(np.log(values[upper]), np.log(medians[upper]), 1)
    return {
        "a, ms": 1e3 * start,
        "b, ms": 1e3 * slope,
        f"time at {values[-1]} to {values[-2]}": np.median(rounds[:, -1] / rounds[:, -2]),
        "exponent": exponent,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_rounds", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures, medians = {}, {}
    for name, times in measure(arguments.num_rounds).items():
        values = SERIES[name][2]
        medians[name] = dict(zip(map(str, values), (1e3 * np.median(times, axis=0)).tolist(), strict=True))
        figures |= {f"{name}: {key}": value for key, value in describe(values, times).items()}
        print(f"{name:<32}" + "".join(f"{value:>6}: {ms:.1f} ms" for value, ms in medians[name].items()))
    report("growth", figures, seed=0, median_ms=medians)
