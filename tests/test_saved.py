"""What np_trl 0.1.0 saved before its modules moved is read as it was: `tests/saved`, which `make.py` there made."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from np_trl import NPDPOTrainer, NPRewardModel, NPRewardTrainer, UserProfile, load_policy

from .saved.make import HERE, PAIRS, SMALL, policy_facts
from .testing_utils import (
    STYLE_GEMMA,
    dpo_config,
    embedded_rows,
    losses,
    reward_config,
    style_rows,
    tiny_reward_model,
)


FACTS = json.loads((HERE / "facts.json").read_text())


def assert_alike(found: dict, expected: dict) -> None:
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adapter_block", "adapter_lora", "adapter_attention", "merged"])
def test_a_policy_knows_its_users(name):
    base = None if name == "merged" else STYLE_GEMMA
    policy = load_policy(HERE / name, base_model=base).eval()
    assert_alike(policy_facts(policy, AutoTokenizer.from_pretrained(HERE / name)), FACTS[name])


def test_a_profile_is_one_of_its_policy():
    policy = load_policy(HERE / "merged").eval()
    user = UserProfile.load(HERE / "policy_user.safetensors", policy, AutoTokenizer.from_pretrained(HERE / "merged"))
    assert len(user) == len(PAIRS) and PAIRS[0] in user
    assert_alike({"latents": user.latents[0].tolist()}, {"latents": FACTS["merged"]["latents"]})


def test_a_reward_model_and_its_profile_score_options():
    model = NPRewardModel.from_pretrained(HERE / "reward_model")
    row = embedded_rows(seed=1)[0]
    user = UserProfile.load(HERE / "reward_user.safetensors", model)
    assert row in user
    options = torch.tensor([row["chosen_embeds"], row["rejected_embeds"]])
    rewards = model(options, latents=user.latents.expand(2, -1)).logits.squeeze(-1)
    assert_alike({"latents": user.latents[0].tolist(), "rewards": rewards.tolist()}, FACTS["reward_model"])


def resume_policy(path, max_steps: int, film_scaling: str = "none") -> NPDPOTrainer:
    film_kwargs = {"film_site": "block", "film_scaling": film_scaling, "context_config": SMALL}
    args = {"save_strategy": "steps", "save_steps": 1, "np_learning_rate": 1e-2, "max_length": 64}
    args["context_in_target"] = True  # the default of then
    lora = LoraConfig(r=1, target_modules=["q_proj"], layers_to_transform=[2], task_type="CAUSAL_LM")
    trainer = NPDPOTrainer(
        STYLE_GEMMA,
        args=dpo_config(path, film_kwargs=film_kwargs, max_steps=max_steps, **args),
        train_dataset=style_rows(num_users=4, pairs_per_user=8),
        peft_config=lora,
    )
    trainer.train(resume_from_checkpoint=True)
    return trainer


def test_a_policy_is_trained_further_from_its_checkpoint(tmp_path):
    shutil.copytree(HERE / "policy_checkpoint", tmp_path / "checkpoint-1")
    trainer = resume_policy(tmp_path, max_steps=1)  # which has finished
    assert_alike(policy_facts(trainer.model.eval(), trainer.processing_class), FACTS["policy_checkpoint"])
    trainer = resume_policy(tmp_path, max_steps=2)
    assert trainer.state.global_step == 2 and len(losses(trainer)) == 2  # the first was logged by the run of old


def test_a_checkpoint_from_before_scaling_is_not_resumed_as_a_bounded_one(tmp_path):
    shutil.copytree(HERE / "policy_checkpoint", tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match="film_scaling was 'none' and is 'bounded'"):
        resume_policy(tmp_path, max_steps=2, film_scaling="bounded")


def test_a_reward_model_is_trained_further_from_its_checkpoint(tmp_path):
    shutil.copytree(HERE / "reward_checkpoint", tmp_path / "checkpoint-1")
    saved = NPRewardModel.from_pretrained(HERE / "reward_checkpoint").state_dict()
    for max_steps in (1, 2):
        trainer = NPRewardTrainer(
            tiny_reward_model(hidden_size=8, context_config=SMALL),
            args=reward_config(tmp_path, max_steps=max_steps, save_strategy="steps", save_steps=1),
            train_dataset=embedded_rows(),
        )
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == max_steps == len(losses(trainer))
        found = trainer.model.state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in saved.items()) == (max_steps == 1)
