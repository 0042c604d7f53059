"""Policies from paths: FiLM on the base model that a path holds, and checks of what was loaded."""

import json
import os

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from trl.trainer.utils import create_model_from_path

from np_trl.models import FiLMGemmaForCausalLM, FiLMQwen2ForCausalLM
from np_trl.models.film import FiLM, FiLMForCausalLMMixin


# base architecture -> the same with FiLM
_POLICIES = {
    "gemma": FiLMGemmaForCausalLM,
    "film_gemma": FiLMGemmaForCausalLM,
    "qwen2": FiLMQwen2ForCausalLM,
    "film_qwen2": FiLMQwen2ForCausalLM,
}

NP_MODULES = ("context_encoder", "film")

# the `peft_type` of a saved adapter with FiLM, which PEFT names when it refuses it
FILM_ADAPTER = "LORA with FiLM: load it with np_trl.load_policy"


def load_policy(path: str, **kwargs) -> PreTrainedModel | PeftModel:
    """
    Load a policy: a merged one, or an adapter with FiLM and context encoder on its base model.

    Args:
        path (`str`):
            Directory or Hub name of a merged policy, or directory of an adapter.
        kwargs:
            Passed to `from_pretrained` of the model.

    Returns:
        A causal LM with FiLM, inside a [`~peft.PeftModel`] if `path` holds an adapter.

    Raises:
        `ValueError`: if the architecture has no FiLM version, or an adapter holds no FiLM weights.
    """
    if os.path.exists(os.path.join(path, "adapter_config.json")):
        return _load_adapter(path, **kwargs)
    return create_policy(path, **kwargs)


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
            "base model, or load it with `np_trl.load_policy`."
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


def mark_adapter(model: PeftModel, path: str) -> None:
    """
    Write what FiLM was added to the base beside a saved adapter, and keep the adapter from being loaded without it.

    PEFT loads such an adapter into the plain base and drops FiLM without a word. It does refuse adapters of a type that
    it does not know, so the adapter's type becomes one that says how to load it.

    Args:
        model ([`~peft.PeftModel`]):
            The policy.
        path (`str`):
            Directory of the adapter.
    """
    config = model.get_base_model().config
    adapter = _read_json(path, "adapter_config.json")
    fields = {
        "film_site": config.film_site,
        "context_layer": config.context_layer,
        "option_pooling": config.option_pooling,
        "context_config": config.context_config.to_diff_dict(),
    }
    _write_json({"peft_type": adapter["peft_type"], "film_kwargs": fields}, path, "film_config.json")
    _write_json({**adapter, "peft_type": FILM_ADAPTER}, path, "adapter_config.json")


def _load_adapter(path: str, **kwargs) -> PeftModel:
    if not os.path.exists(os.path.join(path, "film_config.json")):
        raise ValueError(
            f"The adapter in {path!r} holds no FiLM: it was trained on a plain model. Load it with "
            "`AutoPeftModelForCausalLM`, or train one with `NPDPOTrainer`."
        )
    film = _read_json(path, "film_config.json")
    adapter = PeftConfig.from_peft_type(**{**_read_json(path, "adapter_config.json"), "peft_type": film["peft_type"]})
    base = create_policy(adapter.base_model_name_or_path, film["film_kwargs"], **kwargs)
    return PeftModel.from_pretrained(base, path, config=adapter)


def _read_json(path: str, name: str) -> dict:
    with open(os.path.join(path, name), encoding="utf-8") as file:
        return json.load(file)


def _write_json(content: dict, path: str, name: str) -> None:
    with open(os.path.join(path, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, sort_keys=True)
