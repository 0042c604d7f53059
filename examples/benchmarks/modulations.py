"""
Parameters and time of the three ways in which a latent changes a policy: FiLM of each block, FiLM of its attention, and
latent-gated LoRA. The base is that of `dpo_step.py`, with LoRA on all linear layers above the trunk and latents as in the demo.

Steps and generations alternate in one process, on the same sequences; the figures are medians of paired ratios to FiLM of each
block, of the time that the process spends on its cores.

```sh
python examples/benchmarks/modulations.py
```
"""

import argparse
import statistics
import tempfile

import torch
from dpo_step import CONTEXTS, SMALL_GEMMA, build_base, build_rows, build_tokenizer, first_batch, now, step
from peft import LoraConfig
from report import report

from np_trl import NPDPOConfig, NPDPOTrainer
from np_trl.models.modulation import MODULATIONS
from np_trl.trainer.policy import np_parameters


TARGETS, TASKS, ROWS, PROMPT, NEW_TOKENS = 4, 4, 8, 24, 48
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(site: str, base: str) -> NPDPOTrainer:
    """A policy with LoRA above its trunk, and latents as in the demo."""
    hidden_size, num_layers = SMALL_GEMMA.hidden_size, SMALL_GEMMA.num_hidden_layers
    trainer = NPDPOTrainer(
        base,
        args=NPDPOConfig(
            output_dir=base,
            bf16=False,
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            report_to="none",
            per_device_train_batch_size=TASKS,
            num_targets=TARGETS,
            min_context=CONTEXTS,
            max_context=CONTEXTS,
            context_in_target=False,
            film_kwargs={
                "film_site": site,
                "context_config": {"hidden_size": 64, "latent_size": 32, "memory_size": 0, "pooling": "posterior"},
            },
        ),
        train_dataset=build_rows(TASKS, TARGETS + CONTEXTS, PROMPT, completion=40, embed_size=hidden_size),
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            target_modules=LINEAR,
            layers_to_transform=list(range(num_layers // 2, num_layers)),
        ),
    )
    trainer.create_optimizer()
    return trainer


def generate(trainer: NPDPOTrainer, latents: torch.Tensor) -> float:
    model = trainer.model.eval()
    inputs = torch.randint(2, SMALL_GEMMA.vocab_size, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    start = now()
    model.generate(
        input_ids=inputs.to(model.device),
        latents=latents.to(model.device),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
    )
    model.train()
    return now() - start


def measure(num_rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as base:
        build_base(base, SMALL_GEMMA)
        build_tokenizer().save_pretrained(base)
        trainers = {site: build(site, base) for site in MODULATIONS}
    figures = {}
    for site, trainer in trainers.items():
        sizes = {name: weight.numel() for name, weight in np_parameters(trainer.model).items() if weight.requires_grad}
        figures[f"{site}: parameters"] = sum(size for name, size in sizes.items() if "film" in name.split("."))
    latents = torch.randn(ROWS, 32, generator=torch.Generator().manual_seed(0))
    batch, rounds = first_batch(trainers["block"]), []
    for _ in range(num_rounds + 1):
        rounds.append({site: (step(trainer, batch), generate(trainer, latents)) for site, trainer in trainers.items()})
    for site in trainers:
        for index, what in enumerate(("step", "generation")):
            ratios = [times[site][index] / times["block"][index] for times in rounds[1:]]
            figures[f"{site}: {what} to FiLM of blocks"] = statistics.median(ratios)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report("modulations", measure(args.rounds), rounds=args.rounds)


if __name__ == "__main__":
    main()
