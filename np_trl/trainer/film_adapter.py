"""Adapters with FiLM and context encoder: PEFT's, saved such that FiLM is never lost, loaded onto their own base only."""

import hashlib
import json
import logging
import os

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import cached_file

from np_trl.models.checkpoint_format import FORMAT_VERSION, check_format
from np_trl.models.configuration_film import FILM_FIELDS


logger = logging.getLogger(__name__)

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"

# the `peft_type` of a saved adapter with FiLM, which PEFT names when it refuses it
FILM_ADAPTER = "LORA with FiLM: load it with np_trl.load_policy"


class FiLMPeftModel(PeftModelForCausalLM):
    """
    A policy with an adapter.

    PEFT would load what it saves into the plain base, and drop FiLM without a word. It does refuse adapters of a type that
    it does not know, so the saved type is one that says how to load it. Beside it stand the fields of the FiLM config and
    hashes of the base's weights.
    """

    @classmethod
    def adopt(cls, model: PeftModel) -> "FiLMPeftModel":
        """Turn PEFT's own model into one that saves FiLM. TRL and PEFT choose the class, and take no other."""
        model.__class__ = cls
        return model

    def save_pretrained(self, save_directory: str, *args, is_main_process: bool = True, **kwargs) -> None:
        """Save the adapter with FiLM: [`~peft.PeftModel.save_pretrained`]."""
        super().save_pretrained(save_directory, *args, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            for name in kwargs.get("selected_adapters") or self.peft_config:
                self._mark(save_directory if name == "default" else os.path.join(save_directory, name))

    def _mark(self, path: str) -> None:
        path = os.path.join(path, CONFIG_NAME)
        with open(path, encoding="utf-8") as file:
            adapter = json.load(file)
        base = self.get_base_model()
        film = {
            "peft_type": adapter["peft_type"],
            "format_version": FORMAT_VERSION,
            **{field: getattr(base.config, field) for field in FILM_FIELDS},
            "context_config": base.config.context_config.to_diff_dict(),
            "base_weights": hash_base_weights(base, adapters=self.peft_config),
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(
                {**adapter, "peft_type": FILM_ADAPTER, "film": film},
                file,
                indent=2,
                sort_keys=True,
            )

    def push_to_hub(self, *args, **kwargs):
        """Share the adapter: [`~peft.PeftModel.push_to_hub`]. Whoever loads it needs the base model."""
        self.warn_of_local_base()
        return super().push_to_hub(*args, **kwargs)

    def warn_of_local_base(self) -> None:
        """Warn if the base model is a folder of this machine."""
        path = self.active_peft_config.base_model_name_or_path
        if os.path.isdir(path or ""):
            logger.warning(
                "The adapter's base is the folder %r, which nobody else has. Push the merged policy instead "
                "(`NPDPOTrainer.save_merged` with `repo_id`), or tell people which base to give to "
                "`load_policy(..., base_model=...)`.", path,
            )  # fmt: skip


def is_adapter(path: str, **kwargs) -> bool:
    """Tell whether a folder or a repository on the Hub holds an adapter; `kwargs` are those of `cached_file`."""
    return _file(path, CONFIG_NAME, **kwargs) is not None


def read_adapter(path: str, **kwargs) -> tuple[PeftConfig, dict]:
    """
    Read what a saved adapter says of itself, and check its weights.

    Args:
        path (`str`):
            Folder or name on the Hub.
        kwargs:
            Passed to `cached_file`, such as `revision`.

    Returns:
        `tuple[PeftConfig, dict]`: PEFT's config, and what [`FiLMPeftModel`] wrote of FiLM and the base.

    Raises:
        `ValueError`: if it holds no FiLM, or is newer than this code.
        `OSError`: if its weights are no safetensors, or not whole.
    """
    with open(_file(path, CONFIG_NAME, **kwargs), encoding="utf-8") as file:
        adapter = json.load(file)
    film = adapter.pop("film", None)
    if film is None:
        raise ValueError(
            f"The adapter in {path!r} holds no FiLM: it was trained on a plain model. Load it with "
            "`AutoPeftModelForCausalLM`, or train one with `NPDPOTrainer`."
        )
    check_format(film["format_version"])
    missing = [field for field in ("peft_type", "base_weights", *FILM_FIELDS) if field not in film]
    if missing:
        raise ValueError(
            f"The adapter in {path!r} says nothing of {missing}, so its FiLM is unknown. Take the `{CONFIG_NAME}` that was "
            "saved with the weights."
        )
    return PeftConfig.from_peft_type(**{**adapter, "peft_type": film["peft_type"]}), film


def load_adapter(base: PreTrainedModel, path: str, adapter: PeftConfig, film: dict, **kwargs) -> FiLMPeftModel:
    """
    Load an adapter onto a base model with FiLM.

    Args:
        base ([`~transformers.PreTrainedModel`]):
            The base model that the adapter was trained on, with FiLM of the same fields.
        path (`str`):
            Folder or name on the Hub.
        adapter ([`~peft.PeftConfig`]), film (`dict`):
            What [`read_adapter`] returned.
        kwargs:
            Passed to `cached_file` and PEFT, such as `revision`.

    Raises:
        `ValueError`: if the base has other weights than the one it was trained on, or the adapter lacks weights.
        `OSError`: if its weights are no safetensors, or not whole.
    """
    names = _weight_names(path, **kwargs)
    actual = hash_base_weights(base)
    compared = film["base_weights"].keys() & actual.keys()
    different = [part for part in sorted(compared) if film["base_weights"][part] != actual[part]]
    if different:
        raise ValueError(
            f"The adapter in {path!r} was trained on {adapter.base_model_name_or_path!r} with other weights than "
            f"{base.name_or_path!r} has: {len(different)} of {len(compared)} parts differ, such as {different[:3]}. Give "
            "the base it was trained on, in its revision, as `base_model`."
        )
    if not compared:
        logger.warning(
            "The weights of %r cannot be compared with those that %r was trained on.", base.name_or_path, path
        )
    try:
        model = FiLMPeftModel.adopt(PeftModel.from_pretrained(base, path, config=adapter, **kwargs))
        missing = sorted(get_peft_model_state_dict(model).keys() - names)
    except KeyError as error:  # PEFT misses a weight of `modules_to_save`
        missing = list(error.args)
    if missing:
        raise ValueError(f"The adapter in {path!r} lacks weights: {missing[:5]}. They would be random. Save it again.")
    return model


def hash_base_weights(base: PreTrainedModel, adapters=(), samples: int = 1024) -> dict[str, str]:
    """
    Hash the weights of a base model: samples of each tensor, rounded to bfloat16, so that the precision in which it was
    loaded does not matter.

    Args:
        base ([`~transformers.PreTrainedModel`]):
            A policy.
        adapters (`Iterable[str]`, *optional*):
            Names of the adapters in it, whose weights are left out.
        samples (`int`, *optional*, defaults to `1024`):
            Largest number of values of each tensor.

    Returns:
        `dict[str, str]`: a hash for the token embeddings, each layer, and the norm. Parts that are quantised, sharded or
        in float16 cannot be compared, and are left out.
    """
    hashes = {}
    for name, weight in base.model.named_parameters():
        parts = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
        if parts[0] in ("film", "context_encoder") or not set(adapters).isdisjoint(parts):
            continue
        key = ".".join(parts[:2]) if parts[0] == "layers" else parts[0]
        if weight.dtype not in (torch.float32, torch.bfloat16) or weight.numel() == 0 or weight.is_meta:
            hashes[key] = None
        elif hashes.setdefault(key, hashlib.sha256()) is not None:
            values = weight.detach().flatten()[:: -(-weight.numel() // samples)]
            values = values.to("cpu", torch.bfloat16).view(torch.int16)
            hashes[key].update(f"{'.'.join(parts)} {tuple(weight.shape)}".encode())
            hashes[key].update(values.numpy().tobytes())
    return {key: value.hexdigest()[:16] for key, value in hashes.items() if value is not None}


def _weight_names(path: str, **kwargs) -> set[str]:
    file = _file(path, WEIGHTS_NAME, **kwargs)
    if file is None:
        raise OSError(
            f"{path!r} has no `{WEIGHTS_NAME}`, and weights are read from safetensors alone: `.bin` and `.pt` files are "
            "pickles, which can run code. Save the adapter again with `save_pretrained`."
        )
    try:
        with safe_open(file, framework="pt") as weights:
            return set(weights.keys())
    except SafetensorError as error:
        raise OSError(
            f"The weights of the adapter {path!r} are not whole ({error}). Copy the file again, or remove it from the "
            "cache of the Hub."
        ) from error


def _file(path: str, name: str, **kwargs) -> str | None:
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **kwargs)
