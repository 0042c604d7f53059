"""Latent-gated LoRA on PEFT's adapters: which it covers, how many directions they have, and the hooks that scale them."""

import copy

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from np_trl.models.film import NP_MODULES
from np_trl.models.lora_gate import DirectionGate


# with any value of these fields LoRA is W x + s B A x, on a base that stays as it is
_COVERED_FIELDS = {
    "alpha_pattern",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "modules_to_save",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
_COVERED_STARTS = (True, False, "gaussian", "orthogonal")  # of `init_lora_weights`: others change the base


def check_gated_lora(peft_config: PeftConfig | None) -> None:
    """
    Check that an adapter is one whose directions a latent can gate: plain LoRA.

    Raises:
        `ValueError`: if it is another.
    """
    fix = "Pass `peft_config=LoraConfig(...)` of plain LoRA, or choose another `film_site`."
    if not isinstance(peft_config, LoraConfig):
        kind = "no adapter" if peft_config is None else f"an adapter of type {str(peft_config.peft_type.value)!r}"
        raise ValueError(f'`film_site="lora"` scales the directions of a LoRA adapter, but there is {kind}. {fix}')
    defaults, fields = LoraConfig().to_dict(), peft_config.to_dict()
    changed = {name: value for name, value in fields.items() if value != defaults[name]}
    refused = sorted(changed.keys() - _COVERED_FIELDS - {"init_lora_weights"})
    if changed.get("init_lora_weights", True) not in _COVERED_STARTS:
        refused.append("init_lora_weights")
    if refused:
        shown = ", ".join(f"{name}={changed[name]!r}" for name in refused)
        raise ValueError(f'`film_site="lora"` does not cover adapters with {shown}. {fix}')


def count_directions(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, peft_config: PeftConfig | None
) -> int:
    """
    Count the directions that a LoRA adapter would have in the decoder layers of a base model, without making either.

    Args:
        model_class (`type`), config ([`~transformers.PreTrainedConfig`]):
            Class and configuration of the base model.
        peft_config ([`~peft.PeftConfig`]):
            The adapter.

    Raises:
        `ValueError`: if a latent cannot gate such an adapter.
    """
    check_gated_lora(peft_config)
    peft_config = copy.deepcopy(peft_config)
    peft_config.modules_to_save = None
    with torch.device("meta"):
        model = get_peft_model(model_class(config), peft_config)
    return sum(layer.r["default"] for _, layer in _lora_layers(model.get_base_model(), "default"))


def knows_users(peft_config: PeftConfig) -> bool:
    """Whether an adapter has FiLM and a context encoder."""
    return set(NP_MODULES) <= set(peft_config.modules_to_save or ())


def attach_gates(model: PeftModel) -> None:
    """
    Let the latent gate the LoRA directions of a policy's adapters, in the order of the layers and of the names in each.

    LoRA elsewhere, such as on the head, is the same for all users; so is an adapter that was added without FiLM.

    Raises:
        `ValueError`: if an adapter is not plain LoRA, or has another number of directions than the policy has gates.
    """
    base = model.get_base_model()
    for adapter, peft_config in model.peft_config.items():
        if not knows_users(peft_config):
            continue
        check_gated_lora(peft_config)
        start = 0
        for decoder_layer, layer in _lora_layers(base, adapter):
            rank, directions = layer.r[adapter], layer.lora_A[adapter]
            if not hasattr(directions, "gate"):  # a trained policy may be trained further
                directions.gate = DirectionGate(decoder_layer.gates, start, start + rank)
                directions.register_forward_hook(directions.gate)
            start += rank
        if start != base.config.num_gates:
            raise ValueError(
                f"The adapter {adapter!r} has {start} LoRA directions in the decoder layers, but the policy has "
                f"`num_gates={base.config.num_gates}`. Give `NPDPOTrainer` the path of the base model, which counts them, or "
                f'`load_policy` the path of the adapter; or set `film_kwargs={{"num_gates": {start}}}`.'
            )
    for layer in base.model.layers:
        layer.gates.is_attached = True


def _lora_layers(base: PreTrainedModel, adapter: str) -> list[tuple[nn.Module, LoraLayer]]:
    """Each LoRA layer in a decoder, with the decoder layer around it."""
    return [
        (layer, module)
        for layer in base.model.layers
        for _, module in sorted(layer.named_modules())
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    ]
