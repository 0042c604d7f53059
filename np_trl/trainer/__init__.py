"""Configs and trainers."""

from np_trl.trainer.np_dpo_config import NPDPOConfig
from np_trl.trainer.np_dpo_trainer import NPDPOTrainer
from np_trl.trainer.np_reward_config import NPRewardConfig
from np_trl.trainer.np_reward_trainer import NPRewardTrainer
from np_trl.trainer.policy import load_policy


__all__ = ["NPDPOConfig", "NPDPOTrainer", "NPRewardConfig", "NPRewardTrainer", "load_policy"]
