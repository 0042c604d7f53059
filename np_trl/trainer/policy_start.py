"""The start of a policy's training: from a path, or from a model that is loaded already."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_fsdp_enabled
from trl import DPOConfig

from np_trl.trainer.adapter_defaults import complete_adapter
from np_trl.trainer.gated_lora import check_gated_lora
from np_trl.trainer.np_dpo_config import NPDPOConfig
from np_trl.trainer.policy import changed_fields, check_policy
from np_trl.trainer.policy_source import PolicySource


logger = logging.getLogger(__name__)

ADAPTER_LEARNING_RATE = 2e-4


@dataclass
class PolicyStart:
    """
    A policy before its training.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The adapter that it will get, completed.
        source ([`PolicySource`], *optional*):
            The path that it came from.
    """

    model: nn.Module
    peft_config: PeftConfig | None
    source: PolicySource | None = None

    @classmethod
    def of(
        cls,
        model: "str | os.PathLike | PreTrainedModel | PeftModel",
        args: NPDPOConfig,
        film_kwargs: dict,
        embedded: bool,
        peft_config: PeftConfig | None,
        quantization_config=None,
    ) -> "PolicyStart":
        """
        Load the policy of a path, or check one that is there, and complete its adapter.

        Args:
            model, args, peft_config, quantization_config:
                Those of the [`NPDPOTrainer`].
            film_kwargs (`dict`):
                Fields of the FiLM config.
            embedded (`bool`):
                Whether options come embedded.

        Raises:
            `TypeError`, `ValueError`, `OSError`: if it is no policy, or one that cannot be trained so.
        """
        if isinstance(model, nn.Module):
            start = cls._of_model(model, film_kwargs, embedded, peft_config)
        else:
            source = PolicySource.of(model, args, quantization_config)
            start = cls(*source.load_policy(film_kwargs, peft_config, embedded, args.seed), source)
            check_policy(start.model)
        if start.model.config.modulation.needs_lora and not isinstance(start.model, PeftModel):
            check_gated_lora(start.peft_config)
        return start

    @classmethod
    def _of_model(cls, model: nn.Module, film_kwargs: dict, embedded: bool, peft_config) -> "PolicyStart":
        check_policy(model)
        if changed := changed_fields(model.config, film_kwargs):
            logger.warning(
                "`film_kwargs` is ignored, as `model` is there already. By name, its own and yours: %s.", changed
            )
        return cls(model, complete_adapter(peft_config, model.config, embedded))

    @property
    def commit(self) -> str | None:
        """The commit on the Hub that the policy came from."""
        return None if self.source is None else self.source.commit

    def set_learning_rate(self, args: NPDPOConfig) -> None:
        """Choose the learning rate of the language model, unless it is set: that of an adapter, or of whole weights."""
        if args.learning_rate is None:
            has_adapter = self.peft_config is not None or isinstance(self.model, PeftModel)
            args.learning_rate = ADAPTER_LEARNING_RATE if has_adapter else DPOConfig.learning_rate

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer beside the policy; none of a model that was there."""
        return None if self.source is None else self.source.load_tokenizer()

    def load_reference(self, args: NPDPOConfig) -> PreTrainedModel | None:
        """The reference policy of a policy that was loaded and is trained without an adapter, where one is needed."""
        is_needed = self.peft_config is None and (not args.precompute_ref_log_probs or is_fsdp_enabled())
        return self.source.load_reference(self.model) if self.source is not None and is_needed else None


def check_output_dir(output_dir: str) -> None:
    """
    Check that a policy without an adapter can be saved in a folder: before it is trained, not after.

    Raises:
        `ValueError`: if there is an adapter.
    """
    if Path(output_dir, "adapter_config.json").exists():
        raise ValueError(
            f"`output_dir={output_dir!r}` holds an adapter, and whoever loads the policy that is saved there would get that. Name "
            "another folder, or pass a `peft_config`."
        )
