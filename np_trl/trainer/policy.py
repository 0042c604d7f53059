"""Policies from paths: FiLM on the base model that a path holds, and checks of what was loaded."""

import logging
from contextlib import contextmanager

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, extract_commit_hash
from trl.trainer.utils import create_model_from_path

from np_trl.models import (
    FiLMGemma2ForCausalLM,
    FiLMGemma3ForCausalLM,
    FiLMGemmaForCausalLM,
    FiLMLlamaForCausalLM,
    FiLMMistralForCausalLM,
    FiLMQwen2ForCausalLM,
    FiLMQwen3ForCausalLM,
)
from np_trl.models.configuration_film import FILM_FIELDS
from np_trl.models.film import NP_MODULES, FiLMForCausalLMMixin
from np_trl.models.hypernetwork import Hypernetwork
from np_trl.trainer.film_adapter import is_adapter, load_adapter, read_adapter
from np_trl.trainer.gated_lora import count_directions


# type of a base model -> the same with FiLM
POLICIES = {
    "gemma": FiLMGemmaForCausalLM,
    "gemma2": FiLMGemma2ForCausalLM,
    "gemma3_text": FiLMGemma3ForCausalLM,
    "llama": FiLMLlamaForCausalLM,
    "mistral": FiLMMistralForCausalLM,
    "qwen2": FiLMQwen2ForCausalLM,
    "qwen3": FiLMQwen3ForCausalLM,
}

# what says where on the Hub, for the configuration as for the weights
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def load_policy(
    path: str,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    base_model: str | None = None,
    base_revision: str | None = None,
    **kwargs,
) -> PreTrainedModel | PeftModel:
    """
    Load a policy: a merged one, or an adapter with FiLM and context encoder on its base model.

    Args:
        path (`str`):
            Directory or Hub name of a merged policy or of an adapter.
        revision (`str`, *optional*):
            Branch, tag or commit of `path` on the Hub.
        token (`str` or `bool`, *optional*):
            Token for the Hub.
        subfolder (`str`, *optional*, defaults to `""`):
            Folder in `path` that holds the policy or the adapter.
        base_model (`str`, *optional*), base_revision (`str`, *optional*):
            Directory, or Hub name and revision, of the base of an adapter, where it is not where it was in training. It
            must have the same weights.
        kwargs:
            Passed to `from_pretrained` of the model.

    Returns:
        A causal LM with FiLM, inside a [`~peft.PeftModel`] if `path` holds an adapter.

    Raises:
        `ValueError`: if the architecture has no FiLM version, an adapter holds no FiLM weights or belongs to another base,
        or the model is newer than this code.
        `OSError`: if there are no safetensors, or they are not whole.

    Example:
    ```python
    >>> policy = load_policy("user/np_dpo_style")
    >>> policy.generate(**inputs, latents=policy.infer_user(pairs, tokenizer))
    ```
    """
    source = {"revision": revision, "token": token, "subfolder": subfolder}
    if not is_adapter(path, **source):
        return create_policy(path, **source, **kwargs)
    adapter, film = read_adapter(path, **source)
    fields = {field: film[field] for field in FILM_FIELDS if field in film}
    if base_model is None:
        base_model, base_revision = adapter.base_model_name_or_path, base_revision or adapter.revision
    with _without_load_report():
        base = create_policy(base_model, fields, revision=base_revision, token=token, **kwargs)
    return load_adapter(base, path, adapter, film, **source)


@contextmanager
def _without_load_report():
    """Keep transformers from reporting FiLM and the context encoder as new where they come with the adapter."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def create_policy(
    path: str, film_kwargs: dict | None = None, peft_config: PeftConfig | None = None, **kwargs
) -> PreTrainedModel:
    """
    Load a base model with FiLM added to it, or a policy.

    Args:
        path (`str`):
            Directory or Hub name of a plain base model or of a policy.
        film_kwargs (`dict`, *optional*):
            Fields of the FiLM config.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The adapter that it will get, whose directions are counted where a latent gates them.
        kwargs:
            Passed to `from_pretrained`.

    Raises:
        `ValueError`: if the architecture has no FiLM version, or a latent cannot gate the adapter.
    """
    source = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
    fields, _ = PreTrainedConfig.get_config_dict(path, **source)
    policies = POLICIES | {policy.config_class.model_type: policy for policy in POLICIES.values()}
    policy = policies.get(fields.get("model_type"))
    if policy is None:
        raise ValueError(
            f"{path!r} is a model of type {fields.get('model_type')!r}, which has no FiLM version. Supported: "
            f"{sorted(POLICIES)}."
        )
    film_kwargs = dict(film_kwargs or {})
    if film_kwargs.get("film_site") == "lora" and film_kwargs.get("num_gates") is None:
        plain = policy.config_class.from_dict(fields)
        film_kwargs["num_gates"] = count_directions(policy, plain, peft_config)
    config = policy.config_class.from_dict(fields, **film_kwargs)
    return create_model_from_path(path, policy, config=config, **kwargs)


def find_commit(path: str, **kwargs) -> str | None:
    """
    Find the commit of a model on the Hub, so that it can be named whatever becomes of its branch.

    Args:
        path (`str`):
            Directory or Hub name.
        kwargs:
            `revision`, `token` and the like, of `from_pretrained`.

    Returns:
        `str` or `None`: `None` for a directory.
    """
    source = {name: value for name, value in kwargs.items() if name in _HUB_ARGUMENTS}
    return extract_commit_hash(cached_file(path, "config.json", **source), None)


def check_policy(model: nn.Module) -> None:
    """
    Check that a model given as an instance is modulated by a latent.

    Raises:
        `TypeError`: if it has no FiLM.
        `ValueError`: if it has an adapter that would not train or save FiLM.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, FiLMForCausalLMMixin):
        raise TypeError(
            f"`model` is a {type(base).__name__}, which has no FiLM: it would ignore the context. Pass the path of the "
            "base model, or load it with `np_trl.load_policy`."
        )
    if isinstance(model, PeftModel) and not isinstance(model, PeftModelForCausalLM):
        raise ValueError(
            f"`model` is a {type(model).__name__}: its adapter has `task_type={model.active_peft_config.task_type!r}`. "
            'Create it with `task_type="CAUSAL_LM"`.'
        )
    film = base.model.film
    if isinstance(model, PeftModel) and isinstance(film, Hypernetwork):
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
