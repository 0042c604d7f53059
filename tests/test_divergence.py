"""A run that diverges ends at once, with an error that names the step and what to lower."""

import pytest
import torch
from peft import LoraConfig

from np_trl import NPDPOTrainer, NPRewardTrainer

from .testing_utils import STYLE_GEMMA, dpo_config, embedded_rows, reward_config, style_rows, tiny_reward_model


def policy_trainer(path, **kwargs) -> NPDPOTrainer:
    return NPDPOTrainer(
        STYLE_GEMMA,
        args=dpo_config(path, max_steps=5, **kwargs),
        train_dataset=style_rows(num_users=4, pairs_per_user=8),
        peft_config=LoraConfig(r=1),
    )


def test_a_policy_that_diverges(tmp_path):
    trainer = policy_trainer(tmp_path, np_learning_rate=1e25)
    with pytest.raises(FloatingPointError, match=r"diverged at step [2-5]: .*np_learning_rate=1e\+25.*Lower"):
        trainer.train()


def test_a_reward_model_that_diverges(tmp_path):
    args = reward_config(tmp_path, max_steps=5, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"diverged at step [2-5]: .*learning_rate=1e\+30.*Lower"):
        NPRewardTrainer(tiny_reward_model(), args=args, train_dataset=embedded_rows()).train()


@pytest.mark.parametrize("name", ["log_variance", "code"])
def test_weights_that_leave_the_memory_without_a_solution(tmp_path, name):
    """Whose error names no step, and no rate."""
    trainer = policy_trainer(tmp_path)
    for parameter_name, parameter in trainer.model.named_parameters():
        if f"memory.{name}" in parameter_name:
            parameter.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="diverged at step 1: "):
        trainer.train()
