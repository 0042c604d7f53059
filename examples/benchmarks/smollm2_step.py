"""
Time and peak memory of an NP-DPO step of SmolLM2-135M-Instruct for each place of the modulation, against TRL's DPO with LoRA on
the same layers, those above the trunk. Everyday answers in the chat template; reference log-probs are not precomputed.

Steps alternate in one process, on the same sequences; the figures are medians of paired ratios of the time that the process
spends on its cores. Where modulation is above the trunk, the trunk runs once for policy and reference policy, and on a CPU not
even that: what left it when the options were embedded is kept. The case "trunk not kept" is without that, as on a GPU. Memory is
what torch holds, and the most that a step allocates beside it, in a process for each.

```sh
python examples/benchmarks/smollm2_step.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct
```
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from unittest.mock import patch

import torch
from dpo_step import first_batch, held_bytes, step, step_bytes, without_contexts
from peft import LoraConfig
from report import report
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from np_trl import NPDPOConfig, NPDPOTrainer
from np_trl.populations.everyday import everyday_population
from np_trl.trainer.trunk import SharedTrunk


TASKS, TARGETS, CONTEXTS, TRUNK, LAYERS = 2, 4, 10, 12, 30
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRL, NOT_KEPT = "TRL", "block, above the trunk, trunk not kept"
# name -> fields of the policy's configuration
CASES = {
    "block, above the trunk": {"film_layers": "above_trunk"},
    NOT_KEPT: {"film_layers": "above_trunk"},
    "block, all layers": {},
    "attention, above the trunk": {"film_site": "attention", "film_layers": "above_trunk"},
    "attention, all layers": {"film_site": "attention"},
    "gated LoRA, above the trunk": {"film_site": "lora"},
}


def build(case: str, model: str, folder: str) -> DPOTrainer:
    """NP-DPO with a modulation, or TRL's DPO, both with LoRA above the trunk."""
    pairs = {"per_device_train_batch_size": TASKS * (TARGETS if case == TRL else 1), "max_length": 192}
    arguments = {"output_dir": folder, "bf16": False, "gradient_checkpointing": False, "report_to": "none", **pairs}
    kwargs = {
        "train_dataset": everyday_population("train", TASKS, TARGETS + CONTEXTS),
        "processing_class": AutoTokenizer.from_pretrained(model),
        "peft_config": LoraConfig(
            r=16, lora_alpha=32, target_modules=LINEAR, layers_to_transform=list(range(TRUNK, LAYERS))
        ),
    }
    if case == TRL:
        kwargs["train_dataset"] = kwargs["train_dataset"].select_columns(["prompt", "chosen", "rejected"])
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        trainer = DPOTrainer(base, args=DPOConfig(**arguments), **kwargs)
    else:
        encoder = {"hidden_size": 128, "latent_size": 64, "memory_size": 0, "pooling": "posterior"}
        arguments |= {"num_targets": TARGETS, "min_context": CONTEXTS, "max_context": CONTEXTS, "reward_steps": 0}
        arguments["film_kwargs"] = {"context_layer": TRUNK, "context_config": encoder, **CASES[case]}
        arguments["model_init_kwargs"] = {"dtype": "float32"}
        with patch.object(SharedTrunk, "max_bytes", 0 if case == NOT_KEPT else SharedTrunk.max_bytes):
            trainer = NPDPOTrainer(model, args=NPDPOConfig(**arguments), **kwargs)
    trainer.create_optimizer()
    trainer.model.train()
    return trainer


def measure_time(model: str, num_steps: int) -> dict[str, float]:
    """Medians over rounds of a step of each trainer, of which the first is left out."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {case: build(case, model, folder) for case in (TRL, *CASES)}
    batch = first_batch(trainers[NOT_KEPT])
    batches = {case: without_contexts(batch) if case == TRL else batch for case in trainers}
    order, rounds = list(trainers), []
    for _ in range(num_steps + 1):
        rounds.append({case: step(trainers[case], batches[case]) for case in order})
        order = [*order[1:], order[0]]  # nobody is always first
    figures = {
        "sequences a step": len(batch["input_ids"]),
        "tokens a step": int(batch["attention_mask"].sum()),
        "TRL step, median s": statistics.median(times[TRL] for times in rounds[1:]),
    }
    for case in CASES:
        figures[f"{case}: time to TRL"] = statistics.median(times[case] / times[TRL] for times in rounds[1:])
    return figures


def measure_memory(case: str, model: str) -> float:
    """The peak in MiB of a trainer's second step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(case, model, folder)
    batch = first_batch(trainer)
    step(trainer, batch)
    return (held_bytes(trainer) + step_bytes(trainer, batch)) / 2**20


def compare_memory(model: str) -> dict[str, float]:
    """Peaks of each case to that of TRL."""
    peaks = {}
    for case in (TRL, *CASES):
        command = [sys.executable, __file__, "--model_name_or_path", model, "--memory_of", case]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[case] = json.loads(printed.splitlines()[-1])
    figures = {"TRL memory, MiB": peaks[TRL]}
    return figures | {f"{case}: memory to TRL": peaks[case] / peaks[TRL] for case in CASES}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model_name_or_path", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--num_steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory_of", metavar="CASE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, arguments.model_name_or_path)))
        sys.exit()
    measured = compare_memory(arguments.model_name_or_path)
    measured |= measure_time(arguments.model_name_or_path, arguments.num_steps)
    report("smollm2_step", measured, seed=0)
