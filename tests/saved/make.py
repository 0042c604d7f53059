"""
Made the files beside this one, with np_trl 0.1.0 as of commit 0050a4e, before its modules moved. They must stay readable.

```sh
PYTHONPATH=. python tests/saved/make.py
```
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from np_trl import NPDPOTrainer, NPRewardTrainer, UserProfile, load_policy
from np_trl.trainer.checkpoints import seal_checkpoint
from tests.testing_utils import (
    STYLE_GEMMA,
    dpo_config,
    embedded_rows,
    reward_config,
    style_rows,
    tiny_base,
    tiny_policy,
    tiny_reward_model,
)


HERE = Path(__file__).parent
SMALL = {"hidden_size": 8, "latent_size": 6, "memory_size": 4}
PAIRS = [
    {"prompt": "How do I fix the bike?", "chosen": " take it slow", "rejected": " ask a buddy"},
    {"prompt": "How do I clean the lamp?", "chosen": " ask a buddy", "rejected": " take it slow"},
]


def policy_facts(policy, tokenizer) -> dict:
    latents = policy.infer_user(PAIRS, tokenizer)
    inputs = tokenizer("How do I fix the lamp?", return_tensors="pt")
    with torch.no_grad():
        logits = policy(**inputs, latents=latents).logits[0, -1, :8]
    return {"latents": latents[0].tolist(), "logits": logits.tolist()}


def make_adapter(site: str, folder: Path) -> dict:
    """An adapter on the base of the demo, whose modulation is not the identity, and a checkpoint of its run."""
    with TemporaryDirectory() as runs:
        args = dpo_config(
            runs,
            film_kwargs={"film_site": site, "context_config": SMALL},
            max_steps=2,
            save_strategy="steps",
            save_steps=1,
            np_learning_rate=1e-2,
            max_length=64,
        )
        trainer = NPDPOTrainer(
            STYLE_GEMMA,
            args=args,
            train_dataset=style_rows(num_users=4, pairs_per_user=8),
            peft_config=LoraConfig(r=1, target_modules=["q_proj"], layers_to_transform=[2], task_type="CAUSAL_LM"),
        )
        trainer.train()
        trainer.save_model(folder)
        facts = policy_facts(trainer.model.eval(), trainer.processing_class)
        if site == "block":
            keep_checkpoint(Path(runs, "checkpoint-1"), HERE / "policy_checkpoint")
    return facts


def keep_checkpoint(source: Path, folder: Path) -> None:
    """Keep what np_trl writes of a checkpoint: the pickles of transformers and torch are not ours."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.pt", "*.pth", "*.bin", "*.py", "README.md"))
    seal_checkpoint(folder)


def read_checkpoint(folder: Path) -> dict:
    policy = load_policy(str(folder), base_model=STYLE_GEMMA).eval()
    return policy_facts(policy, AutoTokenizer.from_pretrained(folder))


def make_reward(folder: Path) -> dict:
    """A reward model, a checkpoint of its run, and a profile."""
    with TemporaryDirectory() as runs:
        model = tiny_reward_model(hidden_size=8, context_config=SMALL)
        args = reward_config(runs, max_steps=2, save_strategy="steps", save_steps=1)
        trainer = NPRewardTrainer(model, args=args, train_dataset=embedded_rows())
        trainer.train()
        trainer.save_model(folder)
        keep_checkpoint(Path(runs, "checkpoint-1"), HERE / "reward_checkpoint")
    row = embedded_rows(seed=1)[0]
    user = UserProfile(model.eval(), pairs=[row])
    user.save(HERE / "reward_user.safetensors")
    with torch.no_grad():
        rewards = model(
            torch.tensor([row["chosen_embeds"], row["rejected_embeds"]]), latents=user.latents.expand(2, -1)
        )
    return {"latents": user.latents[0].tolist(), "rewards": rewards.logits.squeeze(-1).tolist()}


def make_merged(folder: Path) -> dict:
    """A policy without an adapter, and a profile."""
    with TemporaryDirectory() as base:
        tiny_base(base)
        policy = tiny_policy(base, "gemma", context_layer=1)
        tokenizer = AutoTokenizer.from_pretrained(base)
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        facts = policy_facts(policy, tokenizer)
        UserProfile(policy, tokenizer, PAIRS).save(HERE / "policy_user.safetensors")
    return facts


def main() -> None:
    facts = {
        "reward_model": make_reward(HERE / "reward_model"),
        "merged": make_merged(HERE / "merged"),
        "adapter_block": make_adapter("block", HERE / "adapter_block"),
        "policy_checkpoint": read_checkpoint(HERE / "policy_checkpoint"),
        "adapter_lora": make_adapter("lora", HERE / "adapter_lora"),
        "adapter_attention": make_adapter("attention", HERE / "adapter_attention"),
    }
    for path in HERE.rglob("*"):  # what loading by np_trl does not read
        is_code = path.suffix == ".py" and path.parent != HERE
        if is_code or path.name in ("README.md", "training_args.bin"):
            path.unlink()
    (HERE / "facts.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    sys.exit(main())
