"""Policies from paths: the base model of a path with FiLM added to it, and checks."""

import logging
import os
from contextlib import contextmanager

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, extract_commit_hash
from trl.trainer.utils import create_model_from_path

from np_trl.models import POLICIES
from np_trl.models.checkpoint_format import name_what_is_wrong
from np_trl.models.configuration_film import FILM_FIELDS, LATER_FIELDS
from np_trl.models.film import NP_MODULES, FiLMForCausalLMMixin
from np_trl.models.hypernetwork import Hypernetwork
from np_trl.models.modulation import needs_lora
from np_trl.models.weights import check_json_files, read_path
from np_trl.trainer.adapter_file import read_adapter
from np_trl.trainer.adapter_loading import is_adapter, load_adapter
from np_trl.trainer.gated_lora import count_directions


# arguments that locate a model on the Hub, for the configuration and for the weights
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def load_policy(
    path: str | os.PathLike,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    base_model: str | None = None,
    base_revision: str | None = None,
    is_trainable: bool = False,
    **kwargs,
) -> PreTrainedModel | PeftModel:
    """
    Load a policy: a merged one, or an adapter with FiLM and context encoder on its base model.

    Args:
        path (`str` or `os.PathLike`):
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
        is_trainable (`bool`, *optional*, defaults to `False`):
            Whether an adapter is to be trained further. Otherwise it is frozen.
        kwargs:
            Passed to `from_pretrained` of the model. `cache_dir`, `local_files_only` and `force_download` hold for an adapter
            and for its base.

    Returns:
        A causal LM with FiLM, inside a [`~peft.PeftModel`] if `path` holds an adapter. It carries the tokenizer that is in
        `path`, which is loaded when it is first needed.

    Raises:
        `ValueError`: if the architecture has no FiLM version, an adapter holds no FiLM weights or belongs to another base,
        or the model is newer than this code.
        `TypeError`, `OSError`: if `path` is no path, or there is nothing.
        `OSError`: if there are no safetensors, or they are not whole.

    Example:
    ```python
    >>> policy = load_policy("user/np_dpo_style")
    >>> policy.generate(**inputs, latents=policy.infer_user(pairs))
    ```
    """
    path = read_path(path)
    cache = {name: kwargs[name] for name in ("cache_dir", "force_download", "local_files_only") if name in kwargs}
    source = {"revision": revision, "token": token, "subfolder": subfolder, **cache}
    if not is_adapter(path, **source):
        return create_policy(path, **{**kwargs, **source})
    adapter, film = read_adapter(path, **source)
    fields = {field: {**LATER_FIELDS, **film}[field] for field in FILM_FIELDS}
    if base_model is None:
        base_model, base_revision = adapter.base_model_name_or_path, base_revision or adapter.revision
        kwargs = {"subfolder": film.get("base_subfolder") or "", **kwargs}
    if not isinstance(base_model, (str, os.PathLike)):
        raise ValueError(
            f"The adapter in {path!r} has the base {base_model!r}, which is no path: say where it is by `base_model`."
        )
    base_model = read_path(base_model, f"It is the base of the adapter in {path!r}: say where it is by `base_model`.")
    with _without_load_report():
        base = create_policy(base_model, fields, revision=base_revision, token=token, **kwargs)
    policy = load_adapter(base, path, adapter, film, is_trainable=is_trainable, **source)
    policy.set_tokenizer(path, **source)
    return policy


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
            Passed to `from_pretrained`. Fields of the base's configuration take the place of its own.

    Raises:
        `ValueError`: if the architecture has no FiLM version, or a latent cannot gate the adapter, or `kwargs` hold what is
        not for them.
    """
    policy, fields = _find_policy(path, **kwargs)
    kwargs = {name: value for name, value in kwargs.items() if not _is_setting(policy, name)}
    film_kwargs = dict(film_kwargs or {})
    if needs_lora(film_kwargs.get("film_site")) and film_kwargs.get("num_gates") is None:
        plain = policy.config_class.from_dict(fields)
        film_kwargs["num_gates"] = count_directions(policy, plain, peft_config)
    config = policy.config_class.from_dict(fields, **film_kwargs)
    if "torch_dtype" in kwargs:  # the old name, which transformers takes too
        kwargs["dtype"] = kwargs.get("dtype", kwargs.pop("torch_dtype"))
    return create_model_from_path(path, policy, config=config, **kwargs)


def read_policy_config(path: str, film_kwargs: dict | None = None, **kwargs) -> PreTrainedConfig:
    """
    Read the configuration of the policy that [`create_policy`] would load, but for the number of its gates.

    Raises:
        `ValueError`: if the architecture has no FiLM version.
    """
    policy, fields = _find_policy(path, **kwargs)
    without_gates = {name: value for name, value in (film_kwargs or {}).items() if name != "film_site"}
    return policy.config_class.from_dict(fields, **without_gates)


def create_reference(path: str, **kwargs) -> PreTrainedModel:
    """
    Load the reference policy of a policy that is trained without an adapter: the model of the same path and source, plain
    where that is a plain one.

    Args:
        path (`str`), kwargs:
            Those of [`create_policy`].
    """
    policy, fields = _find_policy(path, **kwargs)
    plain = next(parent for parent in policy.__mro__ if parent.__module__.startswith("transformers."))
    is_plain = fields["model_type"] != policy.config_class.model_type
    return create_model_from_path(path, plain if is_plain else policy, **kwargs)


def hub_arguments(kwargs: dict) -> dict:
    """Those of the arguments of `from_pretrained` that say where on the Hub a model is, for its tokenizer too."""
    return {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}


def _find_policy(path: str, **kwargs) -> tuple[type[PreTrainedModel], dict]:
    """The class of the policy that a path holds, or that is made of the decoder there; and the fields of its configuration."""
    check_json_files(path, kwargs.get("subfolder"))
    with name_what_is_wrong(path):
        fields, _ = PreTrainedConfig.get_config_dict(path, **hub_arguments(kwargs))
    policies = POLICIES | {policy.config_class.model_type: policy for policy in POLICIES.values()}
    policy = policies.get(fields.get("model_type"))
    if policy is None:
        raise ValueError(
            f"{path!r} is a model of type {fields.get('model_type')!r}, which has no FiLM version. Supported: "
            f"{sorted(POLICIES)}."
        )
    refused = sorted(kwargs.keys() & {"config", "output_loading_info", "state_dict", *FILM_FIELDS})
    if refused:
        raise ValueError(
            f"{refused} among the arguments of `from_pretrained`: the configuration and the weights are those of {path!r}. Set "
            "single fields of the configuration by their names, and those of FiLM by `film_kwargs`."
        )
    return policy, {**fields, **{name: value for name, value in kwargs.items() if _is_setting(policy, name)}}


def _is_setting(policy: type[PreTrainedModel], name: str) -> bool:
    """Whether an argument of `from_pretrained` is a field of the configuration, which transformers takes too."""
    return name in policy.config_class.__dataclass_fields__ and name not in ("dtype", "quantization_config")


def check_film_kwargs(path: str, film_kwargs: dict, **kwargs) -> None:
    """
    Check that a policy which is there already is not trained further as another one.

    Args:
        path (`str`), film_kwargs (`dict`), kwargs:
            Those of [`create_policy`].

    Raises:
        `ValueError`: if the path holds a policy, and `film_kwargs` name other values than its FiLM has.
    """
    policy, fields = _find_policy(path, **kwargs)
    if fields["model_type"] != policy.config_class.model_type:
        return
    changed = changed_fields(policy.config_class.from_dict(fields), film_kwargs)
    if changed:
        raise ValueError(
            f"{path!r} is a policy already, and `film_kwargs` would change its FiLM or context encoder, by name from and to: "
            f"{changed}. Leave these out of `film_kwargs`, or begin with a plain base model."
        )


def changed_fields(config: PreTrainedConfig, film_kwargs: dict) -> dict[str, tuple]:
    """Fields of a policy's FiLM config that `film_kwargs` would change: by name, the value there and here."""
    found = {name: getattr(config, name) for name in FILM_FIELDS if name != "context_config"} | vars(
        config.context_config
    )
    given = {name: value for name, value in film_kwargs.items() if name != "context_config"}
    given |= film_kwargs.get("context_config") or {}
    return {name: (found[name], value) for name, value in given.items() if name in found and found[name] != value}


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
    return extract_commit_hash(cached_file(path, "config.json", **hub_arguments(kwargs)), None)


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
