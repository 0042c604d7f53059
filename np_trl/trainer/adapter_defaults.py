"""Defaults of adapters for a policy, as PEFT sets them for the base model."""

import copy

from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, TaskType
from transformers import PreTrainedConfig

from np_trl.models.film import NP_MODULES


def complete_adapter(
    peft_config: PeftConfig | None, config: PreTrainedConfig, embedded: bool, base_revision: str | None = None
) -> PeftConfig | None:
    """
    Complete the configuration of an adapter for a policy.

    Args:
        peft_config ([`~peft.PeftConfig`], *optional*):
            The adapter. It stays unchanged.
        config ([`~transformers.PreTrainedConfig`]):
            That of the policy.
        embedded (`bool`):
            Whether options come embedded. Otherwise the trunk embeds them, and an adapter without `target_modules` is kept
            above it, as it is where FiLM is.
        base_revision (`str`, *optional*):
            The commit of the base model.

    Returns:
        [`~peft.PeftConfig`]: a copy. Without `target_modules` it has PEFT's own for the base architecture; the context
        encoder and FiLM are trained and saved with it.

    Raises:
        `ValueError`: if they cannot be saved with an adapter of that kind, or it changes the number of layers.
    """
    if not isinstance(peft_config, PeftConfig):
        return peft_config  # none, or one that TRL refuses
    fields = peft_config.to_dict()
    if peft_config.is_prompt_learning or "modules_to_save" not in fields or fields.get("layer_replication"):
        raise ValueError(
            f"`peft_config` is a {type(peft_config).__name__} with `layer_replication={fields.get('layer_replication')}`: FiLM and "
            "the context encoder cannot be saved with a prompt or with tokens alone, and have a part for each layer that the base "
            "has. Pass another, such as `LoraConfig()`."
        )
    peft_config = copy.deepcopy(peft_config)
    if _is_open(peft_config):
        # PEFT knows the decoders, not the policies that are made of them; some of its methods have no defaults
        defaults = getattr(PEFT_TYPE_TO_TUNER_MAPPING[peft_config.peft_type], "target_module_mapping", {})
        peft_config.target_modules = defaults.get(config.model_type.removeprefix("film_"))
        is_trunk_plain = not embedded or config.film_layers == "above_trunk"
        if is_trunk_plain and getattr(peft_config, "layers_to_transform", 0) is None:
            peft_config.layers_to_transform = list(range(config.context_layer, config.num_hidden_layers))
    peft_config.revision = peft_config.revision or base_revision
    peft_config.task_type = peft_config.task_type or TaskType.CAUSAL_LM
    peft_config.modules_to_save = list(dict.fromkeys([*(peft_config.modules_to_save or []), *NP_MODULES]))
    return peft_config


def _is_open(peft_config: PeftConfig) -> bool:
    """Whether an adapter of modules does not say of which."""
    fields = peft_config.to_dict()
    return "target_modules" in fields and not fields["target_modules"] and not fields.get("target_parameters")
