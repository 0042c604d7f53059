"""
Train a reward model and two policies, in as many processes as it was launched in, and write down what happened.

What is written is the same whatever the number of processes, because the batch of all of them together is.
"""

import json
import os
import sys
from pathlib import Path

import torch
from peft import LoraConfig

from np_trl import NPDPOTrainer, NPRewardTrainer
from tests.testing_utils import (
    CONTEXT_CONFIG,
    dpo_config,
    embedded_rows,
    leave_processes,
    losses,
    reward_config,
    style_rows,
    task_rows,
    tiny_reward_model,
    tiny_tokenizer,
)


# kept until the process ends: engines of DeepSpeed leave threads behind, and abort if they are collected before
TRAINERS = []
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
GLOBAL_BATCH = 4


def options(deepspeed: str | None) -> dict:
    return {
        "per_device_train_batch_size": GLOBAL_BATCH // WORLD_SIZE,
        "per_device_eval_batch_size": 3,  # the last batch is not whole
        "max_steps": 4,
        "deepspeed": deepspeed,
        "ddp_backend": "gloo" if WORLD_SIZE > 1 else None,
    }


def train_reward(folder: Path, deepspeed: str | None, **kwargs) -> NPRewardTrainer:
    return NPRewardTrainer(
        tiny_reward_model(),
        args=reward_config(folder, **{**options(deepspeed), **kwargs}),
        train_dataset=embedded_rows(num_users=16),
        eval_dataset=embedded_rows(num_users=7, seed=1),
    )


def train_gaussian_reward(folder: Path, deepspeed: str | None, **kwargs) -> NPRewardTrainer:
    """Draws of latents differ with the processes, so nothing is learned. Users have from 5 to 11 pairs."""
    rows = embedded_rows(num_users=7, seed=1)
    return NPRewardTrainer(
        tiny_reward_model(context_config={**CONTEXT_CONFIG, "latent_distribution": "gaussian"}),
        args=reward_config(folder, **{**options(deepspeed), "learning_rate": 0.0, **kwargs}),
        train_dataset=embedded_rows(num_users=16),
        eval_dataset=rows.select([row for row in range(len(rows)) if row % 12 < 5 + row // 12]),
    )


def train_streamed_reward(folder: Path, deepspeed: str | None, **kwargs) -> NPRewardTrainer:
    return NPRewardTrainer(
        tiny_reward_model(),
        args=reward_config(folder, **{**options(deepspeed), **kwargs}),
        train_dataset=task_rows(embedded_rows(num_users=16), num_files=3),
        eval_dataset=task_rows(embedded_rows(num_users=7, seed=1), num_files=3),
    )


def train_policy(folder: Path, deepspeed: str | None, base: str, lora: bool, **kwargs) -> NPDPOTrainer:
    return NPDPOTrainer(
        base,
        args=dpo_config(folder, **{**options(deepspeed), **kwargs}),
        train_dataset=style_rows(),
        eval_dataset=style_rows(num_users=7, seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[1, 2]) if lora else None,
    )


def run(trainer) -> dict:
    plugin = trainer.accelerator.state.deepspeed_plugin
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    return {
        "losses": losses(trainer),
        "processes": trainer.accelerator.num_processes,
        "zero_stage": 0 if plugin is None else plugin.zero_stage,
        "metrics": {key: value for key, value in metrics.items() if "_nc" in key or key == "eval_loss"},
    }


def build(case: str, folder: Path, deepspeed: str | None, base: str, **kwargs):
    """Build the trainer of a case: `reward`, `gaussian`, `streamed`, `full` or `lora`, and `precomputed` for reference log-probs."""
    torch.manual_seed(0)
    if "precomputed" in case:
        kwargs["precompute_ref_log_probs"] = True
    if case == "reward":
        trainer = train_reward(folder, deepspeed, **kwargs)
    elif case == "gaussian":
        trainer = train_gaussian_reward(folder, deepspeed, **kwargs)
    elif case == "streamed":
        trainer = train_streamed_reward(folder, deepspeed, **kwargs)
    else:
        trainer = train_policy(folder, deepspeed, base, "lora" in case, **kwargs)
    TRAINERS.append(trainer)
    return trainer


def stop_and_resume(case: str, folder: Path, deepspeed: str | None, base: str) -> dict:
    """Train to the end, and once more from a checkpoint on the way, with other numbers of dataloader workers."""
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "num_train_epochs": 2}
    trainer = build(case, folder, deepspeed, base, **saving)
    trainer.train()
    resumed = {}
    for step in (1, 3):
        again = build(case, folder / f"from_{step}", deepspeed, base, **saving, dataloader_num_workers=step)
        again.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        resumed[step] = losses(again)
    return {"losses": losses(trainer), "resumed": resumed}


def main(folder: Path, cases: list[str], deepspeed: str | None) -> None:
    base = str(folder.parent / "base")
    results = {}
    for case in cases:
        if case.startswith("resumed_"):
            results[case] = stop_and_resume(case.removeprefix("resumed_"), folder / case, deepspeed, base)
        else:
            results[case] = run(build(case, folder / case, deepspeed, base))
    if int(os.environ.get("RANK", 0)) == 0:
        (folder / "results.json").write_text(json.dumps(results))
    leave_processes()


if __name__ == "__main__":
    out, cases, *deepspeed = sys.argv[1:]
    if deepspeed:
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # which would be compiled first: gloo serves
    main(Path(out), cases.split(","), deepspeed[0] if deepspeed else None)
