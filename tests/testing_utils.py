"""Small models and small data. Nothing is downloaded."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoTokenizer,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from np_trl import NPDPOConfig, NPRewardConfig, NPRewardModel, NPRewardModelConfig
from np_trl.populations import style_population
from np_trl.populations.style import split_prompts
from np_trl.trainer.policy import POLICIES


ROOT = Path(__file__).resolve().parents[1]
STYLE_GEMMA = str(ROOT / "examples" / "style_gemma")
BASES = {
    "gemma": GemmaForCausalLM,
    "gemma2": Gemma2ForCausalLM,
    "gemma3_text": Gemma3ForCausalLM,
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
}
CHAT_TEMPLATE = (
    "{{ greeting }}"
    "{% for message in messages %}{{ '<bos>' + message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant: ' }}{% endif %}"
)
CONTEXT_CONFIG = {"hidden_size": 16, "latent_size": 12, "memory_size": 8}


def tiny_tokenizer():
    return AutoTokenizer.from_pretrained(STYLE_GEMMA)


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def as_conversation(pair: dict) -> dict:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {**pair, **{key: [{"role": role, "content": pair[key]}] for key, role in roles.items()}}


def tiny_base(path, architecture: str = "gemma", dtype: torch.dtype = torch.float32, **kwargs) -> str:
    """Save a random decoder of 3 layers and return its path."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    fields = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    base_class = BASES[architecture]
    base_class(base_class.config_class(**{**fields, **kwargs})).to(dtype).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def tiny_policy(path, architecture: str = "gemma", film: bool = True, dtype: torch.dtype = torch.float32, **kwargs):
    """FiLM on the tiny base; with `film`, its modulation has been moved away from the identity."""
    base = tiny_base(path, architecture)
    model = POLICIES[architecture].from_pretrained(base, context_config=CONTEXT_CONFIG, dtype=dtype, **kwargs).eval()
    if film:
        torch.manual_seed(1)
        torch.nn.init.normal_(model.model.film.weight, std=1.0)
        torch.nn.init.normal_(model.model.film.bias, std=0.2)
    return model


def tiny_reward_model(embed_size: int = 6, **kwargs) -> NPRewardModel:
    torch.manual_seed(0)
    fields = {"embed_size": embed_size, "hidden_size": 16, "context_config": CONTEXT_CONFIG, **kwargs}
    return NPRewardModel(NPRewardModelConfig(**fields))


def toy_context(users: int, pairs: int, embed_size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Random context sets and a mask with every number of pairs from 0 on."""
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(users, pairs, 2, embed_size, generator=generator)
    mask = torch.arange(pairs) < torch.arange(users).unsqueeze(1).clamp(max=pairs)
    return embeds, mask


def style_rows(num_users: int = 16, pairs_per_user: int = 12, seed: int = 0) -> Dataset:
    return style_population(split_prompts()[0], num_users, pairs_per_user, seed)


def embedded_rows(num_users: int = 8, pairs_per_user: int = 12, embed_size: int = 6, seed: int = 0) -> Dataset:
    """Users who choose along a direction of their own, in a space of embeddings."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(num_users, 1, embed_size)).repeat(pairs_per_user, axis=1)
    options = rng.normal(size=(2, num_users, pairs_per_user, embed_size)).astype(np.float32)
    first = ((options[0] - options[1]) * directions).sum(axis=-1, keepdims=True) > 0
    return Dataset.from_dict(
        {
            "user_id": np.arange(num_users).repeat(pairs_per_user),
            "chosen_embeds": np.where(first, options[0], options[1]).reshape(-1, embed_size),
            "rejected_embeds": np.where(first, options[1], options[0]).reshape(-1, embed_size),
        }
    )


def with_embeddings(dataset: Dataset, embed_size: int = 6, seed: int = 0) -> Dataset:
    """Add random embedding columns."""
    rng = np.random.default_rng(seed)
    for column in ("chosen_embeds", "rejected_embeds"):
        dataset = dataset.add_column(column, list(rng.normal(size=(len(dataset), embed_size)).astype(np.float32)))
    return dataset


def task_rows(dataset: Dataset, num_context: int = 2, num_files: int = 1) -> IterableDataset:
    """A stream of tasks as rows: of every user the first pairs as context and the others as target."""
    users = {}
    for row in dataset:
        users.setdefault(row["user_id"], []).append(row)
    tasks = [
        {"user_id": user, "context": rows[:num_context], "target": rows[num_context:]} for user, rows in users.items()
    ]
    return Dataset.from_list(tasks).to_iterable_dataset(num_shards=num_files)


def dpo_config(path, **kwargs) -> NPDPOConfig:
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "num_targets": 4,
        "max_context": 4,
        "eval_num_contexts": [0, 2],
        "eval_num_targets": 5,
        "learning_rate": 1e-3,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "reward_steps": 0,
        "film_kwargs": {"context_config": CONTEXT_CONFIG},
    }
    return NPDPOConfig(str(path), **{**defaults, **kwargs})


def reward_config(path, **kwargs) -> NPRewardConfig:
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_targets": 6,
        "max_context": 6,
        "eval_num_contexts": [0, 2],
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
    }
    return NPRewardConfig(str(path), **{**defaults, **kwargs})


def losses(trainer) -> list[float]:
    """The training losses that were logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def leave_processes() -> None:
    """
    End this process, one of several, when all of them are here.

    Without collecting anything: threads of gloo and of DeepSpeed that nobody waits for abort a process that does.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)
