"""Models in a process that has no np_trl: only the files beside the weights."""

import json
import subprocess
import sys

import pytest
import torch

from np_trl import NPRewardModel
from np_trl.trainer.policy import POLICIES

from .testing_utils import BASES, tiny_policy, tiny_reward_model, tiny_tokenizer, toy_context


EVIL = {
    "auto_map": {
        "AutoConfig": "evil/repo--c.C",
        "AutoModel": "evil/repo--m.M",
        "AutoModelForCausalLM": "evil/repo--m.L",
        "AutoModelForSequenceClassification": "evil/repo--m.S",
        "AutoTokenizer": ["evil/repo--t.T", None],
    },
    "custom_pipelines": {"text-generation": {"impl": "evil/repo--p.P", "pt": ["AutoModelForCausalLM"]}},
}
BLOCK = "import sys; sys.modules['np_trl'] = None\n"


def run_without_np_trl(code: str, tmp_path) -> None:
    result = subprocess.run([sys.executable, "-c", BLOCK + code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("architecture", BASES)
def test_a_policy_infers_and_writes(tmp_path, architecture):
    model, tokenizer = tiny_policy(tmp_path / "base", architecture), tiny_tokenizer()
    model.model.context_encoder.standardizer.fit([torch.randn(50, 32)])
    model.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    pairs = [{"prompt": "How do I fix the bike?", "chosen": " take it slow", "rejected": " ask a buddy"}] * 3
    latents = model.infer_user(pairs, tokenizer)
    inputs = tokenizer("How do I fix the lamp?", return_tensors="pt")
    outputs = model.generate(**inputs, latents=latents, do_sample=False, max_new_tokens=8)
    names = {"model_type": type(model.config).model_type, "backbone": type(model.model).__name__}
    torch.save({"pairs": pairs, "latents": latents, "outputs": outputs, **names}, tmp_path / "expected.pt")
    run_without_np_trl(
        """
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
expected = torch.load("expected.pt")
tokenizer = AutoTokenizer.from_pretrained("policy", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("policy", trust_remote_code=True)
assert AutoConfig.from_pretrained("policy", trust_remote_code=True).model_type == expected["model_type"]
assert type(AutoModel.from_pretrained("policy", trust_remote_code=True)).__name__ == expected["backbone"]
latents = model.infer_user(expected["pairs"], tokenizer)
torch.testing.assert_close(latents, expected["latents"])
assert torch.equal(model.infer_user(expected["pairs"]), latents)  # by the tokenizer beside it
inputs = tokenizer("How do I fix the lamp?", return_tensors="pt")
outputs = model.generate(**inputs, latents=latents, do_sample=False, max_new_tokens=8)
assert torch.equal(outputs, expected["outputs"])
""",
        tmp_path,
    )


def test_a_reward_model_scores(tmp_path):
    model, (context, mask), options = tiny_reward_model().eval(), toy_context(3, 5), torch.randn(3, 6)
    model.save_pretrained(tmp_path / "reward")
    rewards = model(options, context_embeds=context, context_mask=mask).logits
    torch.save({"inputs": (options, context, mask), "rewards": rewards}, tmp_path / "expected.pt")
    run_without_np_trl(
        """
import torch
from transformers import AutoModel
expected = torch.load("expected.pt")
options, context, mask = expected["inputs"]
model = AutoModel.from_pretrained("reward", trust_remote_code=True)
rewards = model(options, context_embeds=context, context_mask=mask).logits
torch.testing.assert_close(rewards, expected["rewards"])
""",
        tmp_path,
    )


@pytest.mark.parametrize("architecture", [*BASES, "reward"])
def test_another_s_code_does_not_go_on_with_a_model(tmp_path, architecture):
    if architecture == "reward":
        tiny_reward_model().save_pretrained(tmp_path / "base")
        model_class, context = NPRewardModel, {}
        expected = {
            "AutoConfig": "configuration_np_reward.NPRewardModelConfig",
            "AutoModel": "modeling_np_reward.NPRewardModel",
        }
    else:
        tiny_policy(tmp_path / "base", architecture, film=False)  # saves the base
        model_class, context = POLICIES[architecture], {"context_config": {"memory_size": 8, **EVIL}}
        name, model_type = model_class.__name__.removesuffix("ForCausalLM"), model_class.config_class.model_type
        expected = {
            "AutoConfig": f"configuration_{model_type}.{name}Config",
            "AutoModel": f"modeling_{model_type}.{name}Model",
            "AutoModelForCausalLM": f"modeling_{model_type}.{name}ForCausalLM",
        }
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | EVIL))
    model = model_class.from_pretrained(tmp_path / "base", **context)
    assert model.config.auto_map == expected and not hasattr(model.config, "custom_pipelines")
    model.config.auto_map = dict(EVIL["auto_map"])  # whoever sets it
    model.config.custom_pipelines = EVIL["custom_pipelines"]
    model.save_pretrained(tmp_path / "saved")
    saved = (tmp_path / "saved" / "config.json").read_text()
    assert json.loads(saved)["auto_map"] == expected and "evil" not in saved
