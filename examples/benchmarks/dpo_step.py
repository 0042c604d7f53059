"""
Time and peak memory of an NP-DPO training step against TRL's DPO step on the same sequences.

With LoRA and in full, with and without precomputed reference log-probs, at the largest context; with LoRA and precomputed
log-probs at several numbers N_C of context pairs. Steps alternate in one process, on the same tensors. On a CPU their time is
what the process spends on its cores, so that neither it nor the median of paired ratios depends on how busy the machine is.

Memory is measured in a process for each. On a GPU it is the peak that torch allocated. On a CPU there are two figures:
`memory` is what torch alone holds, the tensors of model, reference and optimizer and the most that a step allocates beside
them; `resident` is the peak of the whole process, of which libraries are half, and varies by 4 % from run to run.

FiLM and the context encoder have 29 % of the weights of the decoder's blocks here, and 1 % in gemma-2b.

```sh
python examples/benchmarks/dpo_step.py
```
"""

import argparse
import itertools
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
from torch.profiler import ProfilerActivity, profile
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from np_trl import NPDPOConfig, NPDPOTrainer
from np_trl.models import FiLMGemmaForCausalLM


WORDS, PROMPT, COMPLETION, TASKS, TARGETS, CONTEXTS = 2048, 24, 104, 1, 9, 10
NUM_CONTEXTS = (0, 1, 3, 5, CONTEXTS)
# name -> (with LoRA, with precomputed reference log-probs)
CASES = {
    "LoRA, precomputed": (True, True),
    "LoRA": (True, False),
    "full, precomputed": (False, True),
    "full": (False, False),
}
SMALL_GEMMA = GemmaConfig(
    vocab_size=WORDS,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=64,
    pad_token_id=0,
    eos_token_id=1,
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{index}": index for index in range(2, WORDS)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, "w2"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def build_rows(users: int, pairs: int, prompt: int, completion: int, embed_size: int) -> Dataset:
    """Random pairs: `prompt` tokens, and `completion` tokens with an end-of-sequence token that TRL adds."""
    generator = torch.Generator().manual_seed(0)

    def words(length: int) -> str:
        numbers = torch.randint(2, WORDS, (length,), generator=generator).tolist()
        return " " + " ".join(f"w{number}" for number in numbers) + " "

    rows = [
        {
            "user_id": user,
            "prompt": words(prompt),
            "chosen": words(completion),
            "rejected": words(completion),
            "chosen_embeds": torch.randn(embed_size, generator=generator).tolist(),
            "rejected_embeds": torch.randn(embed_size, generator=generator).tolist(),
        }
        for user in range(users)
        for _ in range(pairs)
    ]
    return Dataset.from_list(rows)


def build_base(path: str, config: GemmaConfig, dtype: torch.dtype = torch.float32) -> None:
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a CPU takes long to draw 2.5 billion weights
        model = GemmaForCausalLM(config)
    model.to(dtype).save_pretrained(path)


def build_trainer(
    kind: str,
    base: str,
    rows: Dataset,
    arguments: dict,
    context_config: dict,
    peft_config: LoraConfig | None,
    dtype: torch.dtype = torch.float32,
) -> DPOTrainer:
    """NP-DPO with `arguments` of `NPDPOConfig`; or TRL's DPO, as many pairs a step, with those of them that it has."""
    kwargs = {"train_dataset": rows, "processing_class": build_tokenizer(), "peft_config": peft_config}
    if kind == "np_dpo":
        policy = FiLMGemmaForCausalLM.from_pretrained(base, context_config=context_config, dtype=dtype)
        return NPDPOTrainer(policy, args=NPDPOConfig(**arguments), **kwargs)
    shared = {key: value for key, value in arguments.items() if key in DPOConfig.__dataclass_fields__}
    shared["per_device_train_batch_size"] *= arguments["num_targets"]
    return DPOTrainer(GemmaForCausalLM.from_pretrained(base, dtype=dtype), args=DPOConfig(**shared), **kwargs)


def prepare(kind: str, case: str, base: str) -> DPOTrainer:
    with_lora, precomputed = CASES[case]
    arguments = {
        "output_dir": base,
        "bf16": False,
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": precomputed,
        "precompute_ref_batch_size": 16,
        "report_to": "none",
        "max_length": None,
        "per_device_train_batch_size": TASKS,
        "num_targets": TARGETS,
        "min_context": CONTEXTS,
        "max_context": CONTEXTS,
        "context_in_target": False,
    }
    lora = LoraConfig(r=128, lora_alpha=256, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build_trainer(
        kind,
        base,
        build_rows(users=4, pairs=TARGETS + CONTEXTS, prompt=PROMPT, completion=COMPLETION, embed_size=256),
        arguments,
        context_config={"embed_size": 256, "hidden_size": 256, "latent_size": 256},
        peft_config=lora if with_lora else None,
    )
    trainer.create_optimizer()
    trainer.model.train()
    return trainer


def first_batch(trainer: DPOTrainer) -> dict:
    return next(iter(trainer.get_train_dataloader()))


def with_contexts(batch: dict, num_contexts: int) -> dict:
    """The same targets with the first of the context pairs, padded as the collator pads."""
    kept = max(1, num_contexts)
    mask = batch["context_mask"][:, :kept] & (num_contexts > 0)
    return {**batch, "context_embeds": batch["context_embeds"][:, :kept], "context_mask": mask}


def without_contexts(batch: dict) -> dict:
    """The same sequences, as TRL takes them."""
    context = ("context_embeds", "context_mask", "context_index")
    return {key: value for key, value in batch.items() if key not in context}


def now() -> float:
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def step(trainer: DPOTrainer, batch: dict) -> float:
    start = now()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return now() - start


def measure_time(case: str, num_contexts: tuple[int, ...], num_steps: int) -> dict[str, float]:
    """Median times of a step, and of their ratios in rounds: in each a step of TRL's and one of ours at every N_C."""
    with tempfile.TemporaryDirectory() as base:
        build_base(base, SMALL_GEMMA)
        np_dpo, trl = prepare("np_dpo", case, base), prepare("trl", case, base)
        batch = first_batch(np_dpo)
        steps = {number: (np_dpo, with_contexts(batch, number)) for number in num_contexts}
        steps["trl"] = (trl, without_contexts(batch))
        order, rounds = list(steps), []
        for _ in range(num_steps + 2):
            rounds.append({name: step(*steps[name]) for name in order})
            order = [*order[1:], order[0]]  # nobody is always first
    rounds = rounds[2:]  # warm-up
    figures = {
        f"{case}: NP-DPO step, median s": statistics.median(times[CONTEXTS] for times in rounds),
        f"{case}: TRL step, median s": statistics.median(times["trl"] for times in rounds),
    }
    for number in num_contexts:
        ratios = [times[number] / times["trl"] for times in rounds]
        figures[f"{case}: time ratio, N_C={number}"] = statistics.median(ratios)
    slopes = [times[num_contexts[-1]] / times[num_contexts[0]] for times in rounds]
    if len(num_contexts) > 1:
        figures[f"{case}: N_C={num_contexts[-1]} to N_C={num_contexts[0]}"] = statistics.median(slopes)
    return figures


def held_bytes(trainer: DPOTrainer) -> int:
    """Bytes of the tensors that a trainer holds between steps: model, reference and optimizer."""
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    tensors = [tensor for model in models for tensor in itertools.chain(model.parameters(), model.buffers())]
    tensors += [value for state in trainer.optimizer.state.values() for value in state.values()]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def step_bytes(trainer: DPOTrainer, batch: dict) -> int:
    """The most bytes that torch allocates in a step, beside what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(trainer, batch)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def measure_memory(kind: str, case: str) -> dict[str, float]:
    """Peaks in MiB of this process: it takes two steps, and on a CPU a third that is profiled."""
    with tempfile.TemporaryDirectory() as base:
        build_base(base, SMALL_GEMMA)
        trainer = prepare(kind, case, base)
        batch = first_batch(trainer)
        for _ in range(2):
            step(trainer, batch)
        if torch.cuda.is_available():
            return {"memory": torch.cuda.max_memory_allocated() / 2**20}
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        return {
            "memory": (held_bytes(trainer) + step_bytes(trainer, batch)) / 2**20,
            "resident": resident,
        }


def compare_memory(case: str) -> dict[str, float]:
    """
    Peaks of memory in a process of each kind, and their ratios.

    To be called while this process is small, because Linux counts the parent's peak as the child's.
    """
    peaks = {}
    for kind in ("np_dpo", "trl"):
        command = [sys.executable, __file__, "--memory_of", kind, case]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[kind] = json.loads(printed.splitlines()[-1])
    figures = {}
    for key, theirs in peaks["trl"].items():
        figures[f"{case}: NP-DPO {key}, MiB"] = peaks["np_dpo"][key]
        figures[f"{case}: TRL {key}, MiB"] = theirs
        figures[f"{case}: {key} ratio"] = peaks["np_dpo"][key] / theirs
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_steps", type=int, default=12)
    parser.add_argument("--memory_of", nargs=2, metavar=("KIND", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(measure_memory(*arguments.memory_of)))
        sys.exit()
    figures = {
        "sequences a step": 2 * TASKS * TARGETS,
        "tokens a sequence": PROMPT + COMPLETION + 1,
    }
    for case in CASES:
        figures |= compare_memory(case)
    for case in CASES:
        figures |= measure_time(
            case, NUM_CONTEXTS if case == "LoRA, precomputed" else (CONTEXTS,), arguments.num_steps
        )
    report("dpo_step", figures, seed=0)
