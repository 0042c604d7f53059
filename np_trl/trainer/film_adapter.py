"""Adapters with FiLM and context encoder: PEFT's, saved such that FiLM is never lost, loaded onto their own base only."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from itertools import chain

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict
from peft.utils.integrations import gather_params_ctx
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import cached_file

from np_trl.models.checkpoint_format import FORMAT_VERSION, check_format
from np_trl.models.configuration_film import FILM_FIELDS, LATER_FIELDS
from np_trl.models.weights import WHY_SAFETENSORS, sample_weight
from np_trl.trainer.gated_lora import attach_gates


logger = logging.getLogger(__name__)

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"

# fields of a configuration that say how it was loaded and saved, not what the model computes
_LOADING_FIELDS = (
    "architectures",
    "auto_map",
    "dtype",
    "format_version",
    "model_type",
    "quantization_config",
    "transformers_version",
    "use_cache",
)

# the `peft_type` of a saved adapter with FiLM, which PEFT names when it refuses it
FILM_ADAPTER = "adapter with FiLM: load it with np_trl.load_policy"


class FiLMPeftModel(PeftModelForCausalLM):
    """
    A policy with an adapter.

    PEFT would load what it saves into the plain base, and drop FiLM without a word. It does refuse adapters of a type that
    it does not know, so the saved type is one that says how to load it. Beside it stand the fields of the FiLM config and
    hashes of the base's weights.
    """

    # what `hash_base_weights` said before the adapter came: some adapters change the base
    base_weights: dict[str, str | None]

    @classmethod
    def adopt(cls, model: PeftModel, base_weights: dict[str, str | None]) -> "FiLMPeftModel":
        """
        Turn PEFT's own model into one that saves FiLM and, with `film_site="lora"`, gates its LoRA. TRL and PEFT choose the
        class, and take no other.

        Raises:
            `ValueError`: if the gates do not fit the adapter.
        """
        model.__class__ = cls
        model.base_weights = base_weights
        if model.config.film_site == "lora":
            attach_gates(model)
        return model

    def merge_adapter(self, *args, **kwargs) -> None:
        """
        Merge the adapter into the base: [`~peft.tuners.tuners_utils.BaseTuner.merge_adapter`].

        Raises:
            `ValueError`: if the adapter depends on the user.
        """
        self.check_mergeable()
        self.base_model.merge_adapter(*args, **kwargs)

    def merge_and_unload(self, *args, **kwargs) -> PreTrainedModel:
        """
        Merge the adapter into the base, and return that: [`~peft.tuners.tuners_utils.BaseTuner.merge_and_unload`].

        Raises:
            `ValueError`: if the adapter depends on the user.
        """
        self.check_mergeable()
        return self.base_model.merge_and_unload(*args, **kwargs)

    def check_mergeable(self) -> None:
        """
        Check that the adapter is the same for all users.

        Raises:
            `ValueError`: if it is not.
        """
        if self.config.film_site == "lora":
            raise ValueError(
                'With `film_site="lora"` every user has another adapter, so none can be merged for all. Share the adapter '
                "(`save_pretrained`), or export a user with `np_trl.users.export_model` or `export_adapter`."
            )

    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        *args,
        is_main_process: bool = True,
        **kwargs,
    ) -> None:
        """
        Save the adapter with FiLM: [`~peft.PeftModel.save_pretrained`].

        Raises:
            `ValueError`: if it is to be no safetensors.
        """
        if not safe_serialization:
            raise ValueError(f"`safe_serialization=False`, but {WHY_SAFETENSORS} Leave it out.")
        super().save_pretrained(
            save_directory, True, selected_adapters, *args, is_main_process=is_main_process, **kwargs
        )
        if is_main_process:
            for name in selected_adapters or self.peft_config:
                self._mark(save_directory if name == "default" else os.path.join(save_directory, name))

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write none: PEFT's says to load the adapter by a class that refuses it. The trainer writes ours."""

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
            "base_config": describe_base(base),
            "base_weights": self.base_weights,
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
    required = ("peft_type", "base_config", "base_weights", *FILM_FIELDS)
    missing = [field for field in required if field not in (*film, *LATER_FIELDS)]
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
        `ValueError`: if the base has other weights than the one it was trained on, or the adapter lacks weights, or has
        some that are not known.
        `OSError`: if its weights are no safetensors, or not whole.
    """
    names = _weight_names(path, **kwargs)
    actual = hash_base_weights(base)
    expected = film["base_weights"]
    parts = sorted(expected.keys() | actual.keys())
    compared = [part for part in parts if expected.get(part, "absent") and actual.get(part, "absent")]
    different = [part for part in compared if expected.get(part) != actual.get(part)]
    if different:
        raise ValueError(
            f"The adapter in {path!r} was trained on {adapter.base_model_name_or_path!r} with other weights than "
            f"{base.name_or_path!r} has: {len(different)} of {len(compared)} parts differ, such as {different[:3]}. Give "
            "the base it was trained on as `base_model`, with `base_revision`."
        )
    if len(compared) < len(parts):
        logger.warning(
            "%d of %d parts of %r are quantised, sharded or in float16, and cannot be compared with those that the adapter "
            "in %r was trained on.", len(parts) - len(compared), len(parts), base.name_or_path, path,
        )  # fmt: skip
    settings = describe_base(base)
    changed = [name for name in film["base_config"].keys() & settings if film["base_config"][name] != settings[name]]
    if changed:
        logger.warning(
            "The base %r has another %s in its configuration than the one that the adapter in %r was trained on.",
            base.name_or_path, sorted(changed), path,
        )  # fmt: skip
    try:
        model = PeftModel.from_pretrained(base, path, config=adapter, **kwargs)
        known = get_peft_model_state_dict(model).keys()
    except KeyError as error:  # PEFT misses a weight of `modules_to_save`
        known = names | set(error.args)
    if known != names:
        raise ValueError(
            f"The adapter in {path!r} lacks weights {sorted(known - names)[:5]}, which would be random, or has some that are "
            f"not known, {sorted(names - known)[:5]}, which would be lost. Save it again, or take the version of np_trl that "
            "saved it."
        )
    return FiLMPeftModel.adopt(model, expected)


def describe_base(base: PreTrainedModel) -> dict:
    """The configuration of a base model, without FiLM and without what may change from one load to the next."""
    settings = json.loads(json.dumps(base.config.to_diff_dict(), default=str))
    return {name: value for name, value in settings.items() if name not in (*FILM_FIELDS, *_LOADING_FIELDS)}


def hash_base_weights(
    base: PreTrainedModel, adapters: Iterable[str] = (), samples: int = 1024
) -> dict[str, str | None]:
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
        `dict[str, str | None]`: a hash for the token embeddings, each layer, the norm and, where it has weights of its
        own, the head. `None` for parts that are quantised, in float16 or not loaded in this process, which cannot be
        compared.
    """
    hashes = {}
    head = [] if base.config.tie_word_embeddings else base.lm_head.named_parameters(prefix="lm_head")
    for name, weight in chain(base.model.named_parameters(), head):
        parts = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
        if parts[0] in ("film", "context_encoder") or not set(adapters).isdisjoint(parts):
            continue
        key = ".".join(parts[:2]) if parts[0] == "layers" else parts[0]
        with gather_params_ctx(weight, modifier_rank=None):  # of ZeRO-3
            if weight.dtype not in (torch.float32, torch.bfloat16) or weight.numel() == 0 or weight.is_meta:
                hashes[key] = None
            elif hashes.setdefault(key, hashlib.sha256()) is not None:
                hashes[key].update(f"{'.'.join(parts)} {tuple(weight.shape)}".encode())
                hashes[key].update(sample_weight(weight, samples))
    return {key: None if value is None else value.hexdigest()[:16] for key, value in hashes.items()}


def _weight_names(path: str, **kwargs) -> set[str]:
    file = _file(path, WEIGHTS_NAME, **kwargs)
    if file is None:
        raise OSError(
            f"{path!r} has no `{WEIGHTS_NAME}`, and {WHY_SAFETENSORS} Save the adapter again with `save_pretrained`."
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
