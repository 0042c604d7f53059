"""What TRL and transformers announced to remove is not used: their warnings are errors here."""

import pytest
from peft import LoraConfig
from trl import ModelConfig

from np_trl import NPDPOConfig, NPDPOTrainer, NPRewardTrainer, load_policy
from np_trl.scripts import dpo
from np_trl.scripts.command_parser import CommandParser

from .testing_utils import (
    dpo_config,
    embedded_rows,
    reward_config,
    style_rows,
    tiny_base,
    tiny_reward_model,
    tiny_tokenizer,
)


pytestmark = pytest.mark.filterwarnings(
    "error::FutureWarning",
    "error:.*removed in v[26]:DeprecationWarning",
    # TRL's configs have the field, TRL and PEFT read the property; transformers 5.17, the oldest allowed, has no other name
    "ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning",
)


def train(trainer, metric: str) -> None:
    trainer.train()
    assert metric in trainer.evaluate()
    trainer.save_model()


@pytest.mark.parametrize("precompute", [False, True])
def test_training_a_policy(precompute, tmp_path):
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM")
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "run", precompute_ref_log_probs=precompute),
        train_dataset=style_rows(),
        eval_dataset=style_rows(seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=lora,
    )
    train(trainer, "eval_nc2_accuracy")
    load_policy(str(tmp_path / "run"))


def test_training_a_reward_model(tmp_path):
    datasets = {"train_dataset": embedded_rows(), "eval_dataset": embedded_rows(seed=1)}
    train(NPRewardTrainer(tiny_reward_model(), args=reward_config(tmp_path), **datasets), "eval_nc2_accuracy")


@pytest.mark.parametrize("recipe", ["np_dpo_style", "np_dpo_style_lora"])
def test_parsing_a_recipe(recipe):
    parser = CommandParser("dpo", (dpo.ScriptArguments, NPDPOConfig, ModelConfig))
    _, training_args, _ = parser.parse_args_and_config(["--config", recipe, "--use_cpu", "true"])
    assert training_args.output_dir == f"runs/{recipe}"


def test_a_setting_that_trl_announced_to_remove_is_an_error_here(tmp_path):
    with pytest.raises(FutureWarning, match="will be removed in v2"):
        dpo_config(tmp_path, truncation_mode="keep_end")
