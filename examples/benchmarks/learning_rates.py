"""
Final loss of NP-DPO against the learning rate of its parts, for decoders of 3, 12 and 30 layers and each `film_site`: the rates
that are best should not depend on the depth.

The decoders are Gemmas of one width, pre-trained here on answers of the style population. All runs of a depth start from the
context encoder of one NP-BTL model, whose latents are not small. Forty minutes on one CPU core.

```sh
OMP_NUM_THREADS=1 python examples/benchmarks/learning_rates.py
```
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from report import report
from transformers import AutoConfig

from np_trl import NPDPOConfig, NPDPOTrainer, NPRewardConfig, NPRewardModel, NPRewardModelConfig, NPRewardTrainer
from np_trl.models.configuration_film import FILM_SCALINGS
from np_trl.models.modulation import MODULATIONS
from np_trl.populations import style_population
from np_trl.populations.style import split_prompts


DEPTHS, RATES = (3, 12, 30), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
WIDTH, STEPS, LAST = 64, 40, 10
ENCODER = {"hidden_size": 64, "latent_size": 64, "memory_size": 16}
SILENT = {"report_to": "none", "save_strategy": "no", "bf16": False, "gradient_checkpointing": False}
SILENT |= {"disable_tqdm": True, "logging_steps": 1}


def pretrain(num_layers: int, folder: str) -> None:
    """Teach a decoder the language of the answers."""
    sizes = {"num_layers": num_layers, "hidden_size": WIDTH, "vocab_size": 512, "num_answers": 6400, "batch_size": 32}
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    script = Path(__file__).parents[1] / "pretrain_gemma.py"
    subprocess.run([sys.executable, script, *flags, "--learning_rate", "2e-3", "--output_dir", folder], check=True)


def build(base: str, scaling: str, site: str, rate: float, rows: Dataset, encoder: str | None = None) -> NPDPOTrainer:
    num_layers = AutoConfig.from_pretrained(base).num_hidden_layers
    return NPDPOTrainer(
        base,
        args=NPDPOConfig(
            f"{base}/run",
            max_steps=STEPS,
            per_device_train_batch_size=4,
            num_targets=3,
            max_context=10,
            context_in_target=False,
            learning_rate=5e-4,
            np_learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            beta=0.5,
            context_encoder_path=encoder,
            film_kwargs={"film_site": site, "film_scaling": scaling, "context_config": ENCODER},
            seed=0,
            **SILENT,
        ),
        train_dataset=rows,
        peft_config=LoraConfig(
            r=8,
            target_modules=["q_proj", "v_proj", "up_proj", "down_proj"],
            layers_to_transform=list(range(num_layers // 2, num_layers)),
        ),
    )


def train_encoder(base: str, rows: Dataset) -> tuple[str, Dataset]:
    """Train NP-BTL on the trunk's embeddings. Returns where it is saved, and the pairs with these embeddings."""
    embedded = build(base, "bounded", "block", RATES[0], rows).train_dataset
    args = {"max_steps": 400, "learning_rate": 1e-2, "per_device_train_batch_size": 16, "num_targets": 4, **SILENT}
    config = NPRewardModelConfig(embed_size=WIDTH, hidden_size=64, context_config=ENCODER)
    args = NPRewardConfig(f"{base}/reward", max_context=10, context_in_target=False, seed=0, **args)
    trainer = NPRewardTrainer(NPRewardModel(config), args=args, train_dataset=embedded)
    trainer.train()
    trainer.save_model(args.output_dir)
    return args.output_dir, embedded


def final_loss(trainer: NPDPOTrainer) -> float:
    """The mean loss of the last steps; infinite where the run diverged."""
    try:
        trainer.train()
    except FloatingPointError:
        return math.inf
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return sum(losses[-LAST:]) / LAST


def measure(scalings: list[str]) -> dict[str, float]:
    prompts, _ = split_prompts()
    rows, figures = style_population(prompts, num_users=128, pairs_per_user=16), {}
    for num_layers in DEPTHS:
        with tempfile.TemporaryDirectory() as base:
            pretrain(num_layers, base)
            encoder, embedded = train_encoder(base, rows)
            for scaling in scalings:
                for site in MODULATIONS:
                    losses = {rate: final_loss(build(base, scaling, site, rate, embedded, encoder)) for rate in RATES}
                    name = f"{scaling}, {site}, {num_layers} layers"
                    figures |= {f"{name}: loss at {rate:.0e}": loss for rate, loss in losses.items()}
                    figures[f"{name}: best rate"] = min(losses, key=losses.get)
                    print(name, losses, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scalings", nargs="+", choices=FILM_SCALINGS, default=["bounded"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report("learning_rates", measure(args.scalings), steps=STEPS, width=WIDTH, scalings=args.scalings)


if __name__ == "__main__":
    main()
