"""Policies from paths: FiLM on the base model that a path holds, and checks of what was loaded."""

import json
import os

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from trl.trainer.utils import create_model_from_path

from np_trl.models import FiLMGemmaForCausalLM
from np_trl.models.film import FiLM, FiLMForCausalLMMixin


# base architecture -> the same with FiLM
_POLICIES = {"gemma": FiLMGemmaForCausalLM, "film_gemma": FiLMGemmaForCausalLM}

NP_MODULES = ("context_encoder", "film")


def load_policy(path: str, **kwargs) -> PreTrainedModel | PeftModel:
    """
    Load a policy: a merged one, or an adapter with FiLM and context encoder on its base model.

    `AutoPeftModelForCausalLM` would load such an adapter into the plain base model and drop FiLM. This does not.

    Args:
        path (`str`):
            Directory or Hub name of the policy.
        kwargs:
            Passed to `from_pretrained` of the model.

    Returns:
        A causal LM with FiLM, inside a [`~peft.PeftModel`] if `path` holds an adapter.

    Raises:
        `ValueError`: if the architecture has no FiLM version, or an adapter holds no FiLM weights.
    """
    if not os.path.exists(os.path.join(path, "adapter_config.json")):
        return create_policy(path, **kwargs)
    _check_adapter(path)
    base = create_policy(PeftConfig.from_pretrained(path).base_model_name_or_path, _film_fields(path), **kwargs)
    return PeftModel.from_pretrained(base, path)


def create_policy(path: str, film_kwargs: dict | None = None, **kwargs) -> PreTrainedModel:
    """
    Load a base model with FiLM added to it, or a policy.

    Args:
        path (`str`):
            Directory or Hub name of a plain base model or of a policy.
        film_kwargs (`dict`, *optional*):
            Fields of the FiLM config.
        kwargs:
            Passed to `from_pretrained`.

    Raises:
        `ValueError`: if the architecture has no FiLM version.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=kwargs.get("trust_remote_code", False))
    if config.model_type not in _POLICIES:
        raise ValueError(
            f"{path!r} is a model of type {config.model_type!r}, which has no FiLM version. Supported: {list(_POLICIES)}."
        )
    return create_model_from_path(path, _POLICIES[config.model_type], **kwargs, **(film_kwargs or {}))


def check_policy(model: nn.Module) -> None:
    """
    Check that a model given as an instance is modulated by a latent.

    Raises:
        `TypeError`: if it has no FiLM.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, FiLMForCausalLMMixin):
        raise TypeError(
            f"`model` is a {type(base).__name__}, which has no FiLM: it would ignore the context. Pass the path of the "
            "base model, or load it with `FiLMGemmaForCausalLM.from_pretrained` or `np_trl.load_policy`."
        )
    film = base.model.film
    if isinstance(model, PeftModel) and isinstance(film, FiLM):
        raise ValueError(
            "`model` has an adapter without FiLM and context encoder: they would stay frozen and unsaved. Train it with "
            f"`modules_to_save={list(NP_MODULES)}`, which `peft_config` of the trainer adds by itself."
        )


def check_trunk(model: nn.Module) -> None:
    """
    Check that no adapter reaches into the trunk, which embeds the options.

    Raises:
        `ValueError`: if one does.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    context_layer, num_layers = base.config.context_layer, base.config.num_hidden_layers
    for name, module in trunk_modules(base):
        if any(isinstance(part, BaseTunerLayer) for part in module.modules()):
            raise ValueError(
                f"The adapter reaches `{name}`, but `context_layer={context_layer}`: the layers below it embed the users' "
                "options and must stay those of the base model. Set `layers_to_transform=list(range("
                f"{context_layer}, {num_layers}))` in `peft_config`, or lower `context_layer`."
            )


def freeze_trunk(model: PreTrainedModel) -> None:
    """Freeze the trunk of a policy that is trained without an adapter."""
    for _, module in trunk_modules(model):
        module.requires_grad_(False)


def trunk_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The token embeddings and the layers below `context_layer`, with their names."""
    layers = [(f"layers.{index}", model.model.layers[index]) for index in range(model.config.context_layer)]
    return [("embed_tokens", model.get_input_embeddings()), *layers]


def np_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the context encoder and of FiLM, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not set(NP_MODULES).isdisjoint(name.split("."))
    }


def upcast_np_parameters(model: nn.Module) -> None:
    """Keep the context encoder and FiLM in float32, whatever the dtype of the base model."""
    for parameter in np_parameters(model).values():
        parameter.data = parameter.data.to(torch.float32)


def save_film_config(model: PeftModel, output_dir: str) -> None:
    """Write the FiLM config beside an adapter, whose base may be a plain model."""
    with open(os.path.join(output_dir, "film_config.json"), "w", encoding="utf-8") as file:
        config = model.get_base_model().config
        fields = {
            "film_site": config.film_site,
            "context_layer": config.context_layer,
            "option_pooling": config.option_pooling,
            "context_config": config.context_config.to_diff_dict(),
        }
        json.dump(fields, file, indent=2)


def _film_fields(path: str) -> dict:
    with open(os.path.join(path, "film_config.json"), encoding="utf-8") as file:
        return json.load(file)


def _check_adapter(path: str) -> None:
    with safe_open(os.path.join(path, "adapter_model.safetensors"), framework="pt") as file:
        names = file.keys()
    if not any(".film." in name for name in names) or not os.path.exists(os.path.join(path, "film_config.json")):
        raise ValueError(
            f"The adapter in {path!r} holds no FiLM: it was trained on a plain model. Load it with "
            "`AutoPeftModelForCausalLM`, or train one with `NPDPOTrainer`."
        )
