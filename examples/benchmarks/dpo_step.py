"""
Time and peak memory of an NP-DPO training step against TRL's DPO step on the same sequences.

Both with LoRA and precomputed reference log-probs; the steps alternate in one process, so that the ratio of their
medians does not depend on how busy the machine is. Memory is measured in a process for each.

```sh
python examples/benchmarks/dpo_step.py
```
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from report import report
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from np_trl import FiLMGemmaForCausalLM, NPDPOConfig, NPDPOTrainer


VOCABULARY, PROMPT, COMPLETION, TARGETS, CONTEXTS = 2048, 24, 104, 9, 6


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{index}": index for index in range(2, VOCABULARY)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, "w2"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def build_rows(users: int, embed_size: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def words(length: int) -> str:
        return (
            " "
            + " ".join(f"w{i}" for i in torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())
            + " "
        )

    rows = [
        {
            "user_id": user,
            "prompt": words(PROMPT),
            "chosen": words(COMPLETION),
            "rejected": words(COMPLETION),
            "chosen_embeds": torch.randn(embed_size, generator=generator).tolist(),
            "rejected_embeds": torch.randn(embed_size, generator=generator).tolist(),
        }
        for user in range(users)
        for _ in range(TARGETS + CONTEXTS)
    ]
    return Dataset.from_list(rows)


def build_base(path: str) -> None:
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        pad_token_id=0,
        eos_token_id=1,
    )
    GemmaForCausalLM(config).save_pretrained(path)


def build_trainer(kind: str, base: str) -> DPOTrainer:
    arguments = {
        "output_dir": base,
        "bf16": False,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": 16,
        "report_to": "none",
        "max_length": None,
    }
    kwargs = {
        "train_dataset": build_rows(users=4, embed_size=256),
        "processing_class": build_tokenizer(),
        "peft_config": LoraConfig(r=128, lora_alpha=256, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    }
    if kind == "trl":
        args = DPOConfig(**arguments, per_device_train_batch_size=2 * TARGETS)
        return DPOTrainer(GemmaForCausalLM.from_pretrained(base), args=args, **kwargs)
    args = NPDPOConfig(
        **arguments, per_device_train_batch_size=2, num_targets=TARGETS, max_context=CONTEXTS, context_in_target=False
    )
    context_config = {"embed_size": 256, "hidden_size": 256, "latent_size": 256}
    return NPDPOTrainer(FiLMGemmaForCausalLM.from_pretrained(base, context_config=context_config), args=args, **kwargs)


def step(trainer: DPOTrainer, batch: dict) -> float:
    start = time.perf_counter()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def prepare(kind: str, base: str) -> tuple[DPOTrainer, dict]:
    trainer = build_trainer(kind, base)
    trainer.create_optimizer()
    trainer.model.train()
    return trainer, next(iter(trainer.get_train_dataloader()))


def peak_memory(kind: str) -> float:
    """
    Peak memory in MiB of a process that takes three steps: of the GPU where there is one, otherwise resident.

    To be called while this process is small, because Linux counts the parent's peak as the child's.
    """
    command = [sys.executable, __file__, "--memory_of", kind]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure_memory(kind: str) -> None:
    with tempfile.TemporaryDirectory() as base:
        build_base(base)
        trainer, batch = prepare(kind, base)
        for _ in range(3):
            step(trainer, batch)
        if torch.cuda.is_available():
            print(json.dumps(torch.cuda.max_memory_allocated() / 2**20))
        else:
            print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10))


def measure_time(num_steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as base:
        build_base(base)
        np_dpo, batch = prepare("np_dpo", base)
        trl, _ = prepare("trl", base)
        context = ("context_embeds", "context_mask", "context_index", "conditions")
        plain = {key: value for key, value in batch.items() if key not in context}
        times = {"np_dpo": [], "trl": []}
        for index in range(num_steps + 2):
            measured = {"np_dpo": step(np_dpo, batch), "trl": step(trl, plain)}
            if index >= 2:  # warm-up
                for kind, seconds in measured.items():
                    times[kind].append(seconds)
    ratios = [ours / theirs for ours, theirs in zip(times["np_dpo"], times["trl"], strict=True)]
    return {
        "sequences a step": float(batch["input_ids"].shape[0]),
        "tokens a sequence": float(batch["input_ids"].shape[1]),
        "NP-DPO step, median s": statistics.median(times["np_dpo"]),
        "TRL DPO step, median s": statistics.median(times["trl"]),
        "time ratio, median of paired steps": statistics.median(ratios),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_steps", type=int, default=15)
    parser.add_argument("--memory_of", choices=["np_dpo", "trl"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        measure_memory(arguments.memory_of)
        sys.exit()
    ours, theirs = peak_memory("np_dpo"), peak_memory("trl")
    figures = {
        **measure_time(arguments.num_steps),
        "NP-DPO peak memory, MiB": ours,
        "TRL DPO peak memory, MiB": theirs,
        "memory ratio": ours / theirs,
    }
    report("dpo_step", figures, seed=0)
