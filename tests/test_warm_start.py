"""The warm start from NP-BTL, in the trainer."""

import shutil

import pytest
import torch
from peft import LoraConfig

from np_trl import NPDPOTrainer, NPRewardModel

from .testing_utils import dpo_config, style_rows, task_rows, tiny_base, tiny_tokenizer, with_embeddings


def build(path, train_dataset=None, peft_config=None, **kwargs) -> NPDPOTrainer:
    return NPDPOTrainer(
        tiny_base(path / "base"),
        args=dpo_config(path / "out", **kwargs),
        train_dataset=style_rows(8) if train_dataset is None else train_dataset,
        eval_dataset=style_rows(8, seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def test_training_starts_from_the_context_encoder_of_a_reward_model(tmp_path):
    trainer = build(tmp_path, reward_steps=3, max_steps=1, learning_rate=0.0, np_learning_rate=0.0)
    trainer.train()
    reward_model = NPRewardModel.from_pretrained(tmp_path / "out" / "np_reward")
    expected, found = reward_model.context_encoder.state_dict(), trainer.model.model.context_encoder.state_dict()
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, msg=name)
    assert 0 <= trainer.reward_metrics["eval_reward_nc2_accuracy"] <= 1


def test_a_run_that_resumes_is_not_started_again(tmp_path):
    build(tmp_path, reward_steps=2, max_steps=2, save_strategy="steps", save_steps=1).train()
    trainer = build(tmp_path, reward_steps=2, max_steps=3, save_strategy="steps", save_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3 and trainer.reward_metrics == {}


@pytest.mark.parametrize("adapted", [True, False])
def test_a_trained_policy_is_not_started_again(tmp_path, adapted):
    peft_config = LoraConfig(task_type="CAUSAL_LM") if adapted else None
    trainer = build(tmp_path, peft_config=peft_config, reward_steps=2, max_steps=1)
    trainer.train()
    assert trainer.reward_metrics
    shutil.rmtree(tmp_path / "out" / "np_reward")
    trainer.train()
    assert not (tmp_path / "out" / "np_reward").exists()


def test_users_with_as_few_pairs_as_the_run_needs_are_enough(tmp_path):
    rows = style_rows(8, pairs_per_user=6)
    trainer = build(tmp_path, train_dataset=rows, reward_steps=2, num_targets=4, max_context=2, context_in_target=True)
    trainer.train()
    assert (tmp_path / "out" / "np_reward" / "model.safetensors").exists()


def test_without_steps_nothing_is_trained_first(tmp_path):
    build(tmp_path).train()
    assert not (tmp_path / "out" / "np_reward").exists()


@pytest.mark.parametrize("adapted", [True, False])
def test_by_default_there_are_steps_and_a_learning_rate_for_what_is_trained(tmp_path, monkeypatch, adapted):
    monkeypatch.setattr("np_trl.trainer.warm_start.REWARD_STEPS", 2)
    peft_config = LoraConfig(task_type="CAUSAL_LM") if adapted else None
    trainer = build(tmp_path, peft_config=peft_config, reward_steps=None, learning_rate=None, max_steps=1)
    trainer.train()
    assert trainer.args.learning_rate == (2e-4 if adapted else 1e-6)
    assert trainer.optimizer.param_groups[0]["initial_lr"] == trainer.args.learning_rate
    reward_model = NPRewardModel.from_pretrained(tmp_path / "out" / "np_reward")
    other = build(tmp_path / "other", reward_steps=None, context_encoder_path=str(tmp_path / "out" / "np_reward"))
    other.train()  # from what is named, without steps
    assert other.reward_metrics == {}
    found, expected = (
        other.model.model.context_encoder.standardizer.mean,
        reward_model.context_encoder.standardizer.mean,
    )
    torch.testing.assert_close(found, expected)


def test_by_default_a_stream_has_no_warm_start(tmp_path):
    stream = task_rows(with_embeddings(style_rows(4), embed_size=32))
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", reward_steps=None),
        train_dataset=stream,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_stream_cannot_be_started_warm(tmp_path):
    stream = task_rows(with_embeddings(style_rows(4), embed_size=32))
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", reward_steps=2),
        train_dataset=stream,
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(
        ValueError, match="`reward_steps=2` trains a reward model on the users' pairs, but `train_dataset`"
    ):
        trainer.train()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"reward_steps": -1}, "`reward_steps=-1` must be at least 0"),
        ({"reward_steps": 1, "context_encoder_path": "runs/reward"}, "both say what the context encoder starts from"),
    ],
)
def test_steps_are_checked(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        dpo_config(tmp_path, **fields)
