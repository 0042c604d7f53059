"""The recipes for UltraFeedback: their settings, and a run of each with a tiny model and hand-made rows."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from datasets import Dataset
from safetensors import safe_open

from np_trl import simulate_users
from np_trl.data.embeddings import text_id
from np_trl.populations.ultrafeedback import ultrafeedback_items

from .testing_utils import ROOT, tiny_base


CONFIGS = ROOT / "examples" / "configs"

# what all of them have: sections 4.2 and C.2
TARGETS = {"num_targets": 9, "min_context": 0, "beta": 0.05}
# App. C.2.2
PAPER = {
    **TARGETS,
    "model_name_or_path": "google/gemma-2b",
    "max_context": 6,
    "context_in_target": True,
    "lora_r": 512,
    "lora_alpha": 1024,
    "lora_dropout": 0.1,
    "lora_target_modules": ["q_proj", "v_proj"],
    "learning_rate": 1e-6,
    "np_learning_rate": 1e-6,
    "per_device_train_batch_size": 1,
}
FACTS = {
    "np_dpo_gemma_hh": {**PAPER, "max_steps": 28763},
    "np_dpo_gemma_hht": {**PAPER, "max_steps": 27475},
    # the configuration in the authors' repository
    "np_dpo_qwen_hh": {
        **PAPER,
        "model_name_or_path": "Qwen/Qwen2.5-1.5B-Instruct",
        "lora_r": 128,
        "lora_alpha": 256,
        "learning_rate": 1e-5,
        "np_learning_rate": 1e-5,
        "per_device_train_batch_size": 2,
        "adam_epsilon": 3e-5,
        "weight_decay": 0.01,
    },
    "np_dpo_gemma_hh_ours": {
        **TARGETS,
        "model_name_or_path": "google/gemma-2b",
        "max_context": 10,
        "context_in_target": False,
        "np_learning_rate": 5e-4,
        "precompute_ref_log_probs": True,
    },
}
# eq. 21
PAPER_ENCODER = {
    "hidden_size": 256,
    "latent_size": 256,
    "memory_size": 0,
    "pair_features": "concatenation",
    "pooling": "attention",
    "linear_skip": False,
}
TRUNK = ("np_dpo_gemma_hh_ours",)  # whose options the policy embeds


def read(recipe: str) -> dict:
    return yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())


@pytest.mark.parametrize("recipe", FACTS)
def test_the_settings_are_those_that_the_recipe_names(recipe):
    settings = read(recipe)
    assert {key: settings[key] for key in FACTS[recipe]} == FACTS[recipe]
    assert settings["output_dir"] == f"runs/{recipe}"
    assert settings["max_length"] == 512 and settings["eval_num_contexts"] == [0, 1, 3, 5, 10]
    if recipe in TRUNK:
        assert "embeddings" not in settings and settings["reward_steps"] > 0
    else:
        assert settings["film_kwargs"] == {"film_scaling": "none", "context_config": PAPER_ENCODER}
        assert settings["reward_steps"] == 0
        assert settings["embedding_kind"] == "prompt_response"


def make_users(modes: list[str], users_per_mode: int, pairs_per_user: int, seed: int) -> Dataset:
    """Users as `prepare_ultrafeedback.py` writes them, from rows as the Hub has them."""
    rng = np.random.default_rng(seed)

    def completion(text: str) -> dict:
        annotations = {mode: {"Rating": str(rng.integers(1, 6)), "Rationale": "because"} for mode in modes}
        return {"response": text, "model": "some-model", "annotations": annotations}

    rows = [
        {
            "instruction": f"Question {seed}.{prompt}: how do I fix it?",
            "completions": [completion(f" Answer {rng.integers(1000)}: take {n} steps.") for n in range(4)],
        }
        for prompt in range(60)
    ]
    weights = np.eye(len(modes)).repeat(users_per_mode, axis=0)
    items = ultrafeedback_items(Dataset.from_list(rows), modes)
    users = simulate_users(items, modes, weights, pairs_per_user, conflict_rate=1.0, seed=seed)
    return users.remove_columns("weights")


def write_data(path, modes: list[str]) -> None:
    """Save users of other prompts for training and testing, and a table of random embeddings."""
    rng = np.random.default_rng(0)
    splits = {"train": make_users(modes, 1, 80, seed=0), "test": make_users(modes, 3, 24, seed=1)}
    rows = splits["train"].to_list()
    rows[0]["prompt"] += " Why?" * 600  # it fills `max_length`
    splits["train"] = Dataset.from_list(rows)
    for name, dataset in splits.items():
        dataset.to_parquet(path / f"{name}.parquet")
    texts = {
        f"{row['prompt']}\n{row[side]}"
        for dataset in splits.values()
        for row in dataset
        for side in ("chosen", "rejected")
    }
    table = [
        {"text_id": text_id(text), "kind": "prompt_response", "embedding": rng.normal(size=8)}
        for text in sorted(texts)
    ]
    Dataset.from_list(table).to_parquet(path / "embeddings.parquet")


def run(recipe: str, cwd) -> list[float]:
    """Train for three steps with what the file says, but for the model and the data; return the losses."""
    arguments = {
        "model_name_or_path": "base", "use_cpu": "true", "num_threads": 1,
        "dataset_name": "train.parquet", "eval_dataset_name": "test.parquet", "output_dir": "out",
        "max_steps": 3, "logging_steps": 1, "per_device_eval_batch_size": 8,
    }  # fmt: skip
    arguments |= {"reward_steps": 5} if recipe in TRUNK else {"embeddings": "embeddings.parquet"}
    command = [sys.executable, str(ROOT / "examples" / "np_dpo.py"), "--config", str(CONFIGS / f"{recipe}.yaml")]
    command += [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    state = json.loads((cwd / "out" / "checkpoint-3" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize("recipe", FACTS)
def test_the_recipe_trains_and_evaluates(tmp_path, recipe):
    settings = read(recipe)
    modes = ["helpfulness", "honesty", *(["truthfulness"] if "hht" in recipe else [])]
    tiny_base(tmp_path / "base", "qwen2" if "qwen" in recipe else "gemma")
    write_data(tmp_path, modes)
    losses = run(recipe, tmp_path)
    assert len(losses) == 3 and np.isfinite(losses).all() and losses[0] == pytest.approx(np.log(2), abs=1e-4)

    metrics = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    for num_context in (0, 10):
        accuracies = [metrics[f"eval_nc{num_context}_{mode}_accuracy"] for mode in modes]
        assert metrics[f"eval_nc{num_context}_accuracy"] == pytest.approx(np.mean(accuracies))
        assert metrics[f"eval_nc{num_context}_worst_group_accuracy"] == min(accuracies)
        assert metrics[f"eval_nc{num_context}_nll"] == pytest.approx(np.log(2), abs=0.02)  # it has hardly moved
    assert [key for key in metrics if re.fullmatch(r"eval_nc\d+_shuffled_accuracy", key)] == [
        "eval_nc10_shuffled_accuracy"
    ]

    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    film = adapter["film"]
    assert (adapter["r"], adapter["lora_alpha"]) == (settings["lora_r"], settings["lora_alpha"])
    assert film["context_config"]["embed_size"] == (32 if recipe in TRUNK else 8)
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", framework="np") as file:
        names = [re.search(r"layers\.(\d+)\..*?(\w+_proj)\.lora", name) for name in file.keys()]
    adapted = {(int(name[1]), name[2]) for name in names if name}
    layers = range(film["context_layer"], 3) if recipe in TRUNK else range(3)  # LoRA stays out of the trunk
    assert film["context_layer"] == 1
    assert adapted == {(layer, module) for layer in layers for module in settings["lora_target_modules"]}
