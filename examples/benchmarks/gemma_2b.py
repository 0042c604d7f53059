"""
NP-DPO of gemma-2b on one GPU: speed, share of the chip's peak and memory, against TRL's DPO on the same sequences.

The recipe of `examples/configs/np_dpo_gemma_hh.yaml` at its largest context, with gemma-2b's configuration and random
weights: a task of 9 pairs a step, sequences of 512 tokens; with and without gradient checkpointing and precomputed reference
log-probs. Whole training steps are timed: forward, backward and the update of the weights.

The share of the peak counts what a step of TRL's DPO has to compute, so that ours gets nothing for FiLM. Of a frozen matrix
only the gradient of its input is needed: with D weights in the matrices of the decoder blocks, A in the adapters and H in the
head, on which only completions are scored, these are

    (4 D + 6 A) tokens + 4 H scored tokens, and for the reference 2 D tokens + 2 H scored tokens unless it is precomputed

floating-point operations. What checkpointing or the fused head computes again, and attention scores, do not count.

```sh
python examples/benchmarks/gemma_2b.py
python examples/benchmarks/gemma_2b.py --size tiny  # whether the script works, on a CPU
```
"""

import argparse
import gc
import itertools
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from dpo_step import SMALL_GEMMA, build_base, build_rows, build_trainer, now
from peft import LoraConfig
from report import report
from transformers import GemmaConfig, GemmaForCausalLM, TrainerCallback

from np_trl import NPDPOConfig


RECIPE = Path(__file__).parents[1] / "configs" / "np_dpo_gemma_hh.yaml"
# TFLOP/s of dense matrix products in bfloat16, of the SXM cards
PEAKS = {"A100": 312, "H100": 989, "H200": 989}
WARM_UP = 2
USERS = 4


@dataclass(frozen=True)
class Size:
    """A model, and the tokens of a prompt and of a completion without its end."""

    config: GemmaConfig
    prompt: int
    completion: int
    embed_size: int
    recipe: dict  # what differs from the recipe


SIZES = {
    "2b": Size(
        config=GemmaConfig(
            vocab_size=256_000,
            hidden_size=2048,
            intermediate_size=16_384,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=256,
        ),
        prompt=128,
        completion=383,
        embed_size=4096,  # of Llama-3-8B, which embeds the options in the paper
        recipe={},
    ),
    "tiny": Size(
        config=GemmaConfig(**{**SMALL_GEMMA.to_dict(), "num_hidden_layers": 2, "intermediate_size": 512}),
        prompt=4,
        completion=11,
        embed_size=16,
        recipe={"dtype": "float32", "bf16": False, "use_cpu": True, "lora_r": 32, "lora_alpha": 64},
    ),
}


class StepTimer(TrainerCallback):
    """Times every training step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(now() - self.start)


def find_peak(device_name: str) -> float | None:
    """TFLOP/s of the chip, if it is known."""
    return next((peak for chip, peak in PEAKS.items() if chip in device_name), None)


def read_recipe(size: Size) -> dict:
    return {**yaml.safe_load(RECIPE.read_text()), **size.recipe}


def useful_operations(config: GemmaConfig, lora: LoraConfig, tokens: int, scored: int, precomputed: bool) -> int:
    """Floating-point operations that a step has to do, as above."""
    with torch.device("meta"):
        layers = GemmaForCausalLM(config).model.layers
    matrices = {name: module for name, module in layers.named_modules() if isinstance(module, torch.nn.Linear)}
    decoder = sum(matrix.weight.numel() for matrix in matrices.values())
    adapted = [matrix for name, matrix in matrices.items() if name.split(".")[-1] in lora.target_modules]
    adapters = sum(lora.r * (matrix.in_features + matrix.out_features) for matrix in adapted)
    head = config.vocab_size * config.hidden_size
    reference = 0 if precomputed else 2 * decoder * tokens + 2 * head * scored
    return (4 * decoder + 6 * adapters) * tokens + 4 * head * scored + reference


def build_lora(recipe: dict) -> LoraConfig:
    return LoraConfig(
        r=recipe["lora_r"],
        lora_alpha=recipe["lora_alpha"],
        lora_dropout=recipe["lora_dropout"],
        target_modules=recipe["lora_target_modules"],
        task_type="CAUSAL_LM",
    )


def build(kind: str, base: str, size: Size, rows: Dataset, **options):
    """A trainer of the recipe, at its largest context."""
    recipe = read_recipe(size)
    settings = {key: value for key, value in recipe.items() if key in NPDPOConfig.__dataclass_fields__}
    context_config = {"embed_size": size.embed_size, **settings.pop("film_kwargs")["context_config"]}
    settings |= {"output_dir": base, "save_strategy": "no", "min_context": settings["max_context"], **options}
    return build_trainer(
        kind, base, rows, settings, context_config, build_lora(recipe), dtype=getattr(torch, recipe["dtype"])
    )


def train(kind: str, base: str, size: Size, rows: Dataset, **options) -> tuple[float, float]:
    """The median step in s, and the peak of GPU memory in GiB from the loading of the model on, in a short run."""
    gc.collect()  # the trainer before this one
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer, timer = build(kind, base, size, rows, **options), StepTimer()
    trainer.add_callback(timer)
    trainer.train()
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return statistics.median(timer.seconds[WARM_UP:]), memory


def measure(size: Size, num_steps: int, peak_tflops: float | None) -> dict[str, float]:
    recipe = read_recipe(size)
    pairs = recipe["per_device_train_batch_size"] * recipe["num_targets"]
    tokens, scored = 2 * pairs * (size.prompt + size.completion + 1), 2 * pairs * (size.completion + 1)
    rows = build_rows(USERS, recipe["num_targets"], size.prompt, size.completion, size.embed_size)
    figures = {"sequences a step": 2 * pairs, "tokens a sequence": tokens // (2 * pairs)}
    with tempfile.TemporaryDirectory() as base:
        build_base(base, size.config, getattr(torch, recipe["dtype"]))
        for checkpointing, precomputed in itertools.product((True, False), repeat=2):
            options = {"gradient_checkpointing": checkpointing, "precompute_ref_log_probs": precomputed}
            seconds, memory = {}, {}
            for kind in ("np_dpo", "trl"):
                seconds[kind], memory[kind] = train(
                    kind, base, size, rows, max_steps=WARM_UP + num_steps, precompute_ref_batch_size=9, **options
                )
            case = ("checkpointing" if checkpointing else "plain") + (", precomputed" if precomputed else "")
            operations = useful_operations(size.config, build_lora(recipe), tokens, scored, precomputed)
            for kind, name in (("np_dpo", "NP-DPO"), ("trl", "TRL")):
                figures[f"{case}: {name} tokens/s"] = tokens / seconds[kind]
                if peak_tflops is not None:
                    figures[f"{case}: {name} share of peak"] = operations / seconds[kind] / (peak_tflops * 1e12)
                if torch.cuda.is_available():
                    figures[f"{case}: {name} peak memory, GiB"] = memory[kind]
            figures[f"{case}: time ratio"] = seconds["np_dpo"] / seconds["trl"]
            if torch.cuda.is_available():
                figures[f"{case}: memory ratio"] = memory["np_dpo"] / memory["trl"]
    return figures


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="2b")
    parser.add_argument("--num_steps", type=int, default=12)
    parser.add_argument("--peak_tflops", type=float, help="Of the chip in bfloat16. Default: that of a known chip.")
    options = parser.parse_args(arguments)
    peak, name = options.peak_tflops, "gemma_2b" if options.size == "2b" else "gemma_tiny"
    if options.size == "2b":
        if not torch.cuda.is_available():
            parser.error("gemma-2b needs a CUDA GPU, and torch sees none. `--size tiny` runs the script on a CPU.")
        device_name = torch.cuda.get_device_name()
        peak = peak or find_peak(device_name)
        if peak is None:
            parser.error(f"The peak of {device_name!r} is not known, only those of {PEAKS}. Give `--peak_tflops`.")
    report(name, measure(SIZES[options.size], options.num_steps, peak), seed=0, peak_tflops=peak)


if __name__ == "__main__":
    main()
