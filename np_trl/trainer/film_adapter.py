"""Adapters with FiLM and context encoder: PEFT's, saved such that FiLM is never lost, loaded onto their own base only."""

import hashlib
import json
import logging
import os
import posixpath
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict
from peft.utils.integrations import gather_params_ctx
from peft.utils.other import ModulesToSaveWrapper
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from np_trl.files import sync_folder
from np_trl.models.checkpoint_format import FORMAT_VERSION
from np_trl.models.configuration_film import FILM_FIELDS
from np_trl.models.film import NP_MODULES
from np_trl.models.weights import WHY_SAFETENSORS, sample_weight
from np_trl.trainer.adapter_file import (
    COMPARED_DTYPES,
    CONFIG_NAME,
    REFERENCE,
    TOKEN_FIELDS,
    WEIGHTS_NAME,
    find_file,
    hash_file,
    read_adapter,
)
from np_trl.trainer.gated_lora import attach_gates, knows_users


logger = logging.getLogger(__name__)

# the `peft_type` of a saved adapter with FiLM, which PEFT names when it refuses it
FILM_ADAPTER = "adapter with FiLM: load it with np_trl.load_policy"

# fields of a configuration that say how it was loaded and saved, not what the model computes
_LOADING_FIELDS = (
    *TOKEN_FIELDS,
    "architectures",
    "auto_map",
    "dtype",
    "format_version",
    "model_type",
    "quantization_config",
    "transformers_version",
    "use_cache",
)

# weights of a base that was resized, as PEFT names them in an adapter
_EMBEDDINGS = {
    "base_model.model.model.embed_tokens.weight": PreTrainedModel.get_input_embeddings,
    "base_model.model.lm_head.weight": PreTrainedModel.get_output_embeddings,
}


class _TrainedAlone(ModulesToSaveWrapper):
    """FiLM or the context encoder, with a copy for each adapter; what these replace was never trained, and knows no users."""

    def _forward_wrapped_passthrough(self, *args, **kwargs):
        if self.disable_adapters:  # the base model is asked for
            return super()._forward_wrapped_passthrough(*args, **kwargs)
        raise ValueError(
            "Users are given, but the adapter that is on knows none. Switch to one with FiLM and a context encoder "
            "(`set_adapter`), or leave the users out."
        )


class FiLMPeftModel(PeftModelForCausalLM):
    """
    A policy with an adapter.

    PEFT would load what it saves into the plain base, and drop FiLM without a word. It does refuse adapters of a type that
    it does not know, so the saved type is one that says how to load it. Beside it stand the fields of the FiLM config and
    hashes of the base's weights.
    """

    # what `hash_base_weights` said before the adapter came: some adapters change the base
    base_weights: dict[str, str | None]
    # the folder in the base's repository that holds the base
    base_subfolder: str = ""

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
        for name in NP_MODULES:
            wrapper = getattr(model.get_base_model().model, name)
            if isinstance(wrapper, ModulesToSaveWrapper):
                wrapper.__class__ = _TrainedAlone
        if model.config.film_site == "lora":
            attach_gates(model)
        return model

    # Override: of this PEFT fails on the way, and leaves its hooks in the model.
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"`adapter_names={kwargs['adapter_names']}`: a policy runs one adapter for all rows, and knows the users of the "
                "rows by `users` or `latents`. Leave it out, and choose the adapter by `set_adapter`."
            )
        return super()._enable_peft_forward_hooks(*args, **kwargs)

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
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        **kwargs,
    ) -> None:
        """
        Save the adapter with FiLM: [`~peft.PeftModel.save_pretrained`]. It gets its place when it is complete, the
        configuration last; the reference policy of an adapter that was trained further goes with it.

        Raises:
            `ValueError`: if it is to be no safetensors.
        """
        if not safe_serialization:
            raise ValueError(f"`safe_serialization=False`, but {WHY_SAFETENSORS} Leave it out.")
        names = list(selected_adapters or self.peft_config)
        if "default" in names and REFERENCE in self.peft_config:
            names = [*dict.fromkeys([*names, REFERENCE])]
        if save_embedding_layers == "auto" and self._is_resized():
            save_embedding_layers = True
        if not is_main_process:  # it only takes part in gathering the weights
            super().save_pretrained(save_directory, True, names, save_embedding_layers, False, **kwargs)
            return
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=save_directory, prefix=".np_trl_") as part:
            super().save_pretrained(part, True, names, save_embedding_layers, **kwargs)
            folders = ["" if name == "default" else name for name in names]
            for name, folder in zip(names, folders, strict=True):
                if knows_users(self.peft_config[name]):
                    self._mark(os.path.join(part, folder))
            sync_folder(part)
            _put_in_place(part, save_directory, sorted(folders, reverse=True))

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write none: PEFT's says to load the adapter by a class that refuses it. The trainer writes ours."""

    def _mark(self, path: str) -> None:
        path = Path(path, CONFIG_NAME)
        adapter = json.loads(path.read_text(encoding="utf-8"))
        base = self.get_base_model()
        film = {
            "peft_type": adapter["peft_type"],
            "format_version": FORMAT_VERSION,
            **{field: getattr(base.config, field) for field in FILM_FIELDS},
            "context_config": base.config.context_config.to_diff_dict(),
            "base_config": describe_base(base),
            "base_weights": self.base_weights,
            "base_subfolder": self.base_subfolder,
            "base_dtypes": sorted(
                {str(weight.dtype) for name, weight in base.named_parameters() if _is_of_base(name)}
            ),
            "tokens": {field: getattr(base.config, field) for field in TOKEN_FIELDS},
            "generation_config": self.generation_config.to_diff_dict(),
            "reference": REFERENCE if Path(path.parent, REFERENCE, CONFIG_NAME).exists() else None,
            "weights": hash_file(path.with_name(WEIGHTS_NAME)),
        }
        marked = {**adapter, "peft_type": FILM_ADAPTER, "film": film}
        path.write_text(json.dumps(marked, indent=2, sort_keys=True, default=str), encoding="utf-8")

    def _is_resized(self) -> bool:
        """Whether the base has other token embeddings than the one that the adapter names; PEFT does not see it offline."""
        adapter = self.active_peft_config
        if not adapter.base_model_name_or_path:
            return False
        try:
            saved, _ = PreTrainedConfig.get_config_dict(
                adapter.base_model_name_or_path, revision=adapter.revision, subfolder=self.base_subfolder
            )
        except (OSError, ValueError):  # it is not there any more
            return False
        return saved.get("vocab_size", self.config.vocab_size) != self.config.vocab_size

    def add_adapter(self, adapter_name: str, *args, **kwargs) -> None:
        """
        Add an adapter: [`~peft.PeftModel.add_adapter`]. A reference policy that is there makes way for another one: where
        training goes on, TRL takes a copy of what it begins with.
        """
        if adapter_name == REFERENCE and REFERENCE in self.peft_config:
            self.delete_adapter(REFERENCE)
        super().add_adapter(adapter_name, *args, **kwargs)
        if self.config.film_site == "lora":
            attach_gates(self)

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
    """
    Tell whether a folder or a repository on the Hub holds an adapter; `kwargs` are those of `cached_file`.

    Raises:
        `OSError`: if a folder holds neither an adapter nor a model.
    """
    if find_file(path, CONFIG_NAME, **kwargs) is not None:
        return True
    if os.path.isdir(path) and find_file(path, "config.json", **kwargs) is None:
        raise OSError(
            f"{path!r} holds neither an adapter (`{CONFIG_NAME}`) nor a model (`config.json`). If something was being saved there, "
            "it was not saved to its end: save it again, or take a checkpoint."
        )
    return False


def load_adapter(
    base: PreTrainedModel, path: str, adapter: PeftConfig, film: dict, is_trainable: bool = False, **kwargs
) -> FiLMPeftModel:
    """
    Load an adapter onto a base model with FiLM.

    Args:
        base ([`~transformers.PreTrainedModel`]):
            The base model that the adapter was trained on, with FiLM of the same fields.
        path (`str`):
            Folder or name on the Hub.
        adapter ([`~peft.PeftConfig`]), film (`dict`):
            What [`read_adapter`] returned.
        is_trainable (`bool`, *optional*, defaults to `False`):
            Whether it is to be trained further.
        kwargs:
            Passed to `cached_file` and PEFT, such as `revision`.

    Raises:
        `ValueError`: if the base has other weights than the one it was trained on, or the adapter lacks weights, or has
        some that are not known.
        `OSError`: if its weights are no safetensors, not whole, or not those that it was saved with.
    """
    file = find_file(path, WEIGHTS_NAME, **kwargs)
    vocab_size = base.config.vocab_size
    actual = _resize_base(base, file, adapter)
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
    for field, value in film.get("tokens", {}).items():
        setattr(base.config, field, value)
    if "generation_config" in film:
        base.generation_config = GenerationConfig.from_dict(film["generation_config"])
    is_resized = base.config.vocab_size != vocab_size
    model = _put_on(base, path, adapter, file, is_resized, is_trainable=is_trainable, **kwargs)
    if film.get("weights") not in (None, hash_file(file)):
        raise OSError(
            f"The weights of the adapter {path!r} are not those that its `{CONFIG_NAME}` was saved with: one of the two files "
            "was replaced or damaged. Copy both again. If you changed the weights on purpose, remove `weights` from `film` in "
            f"`{CONFIG_NAME}`."
        )
    if film.get("reference") is not None:
        _load_reference(model, path, **kwargs)
    model = FiLMPeftModel.adopt(model, expected)
    model.base_subfolder = film.get("base_subfolder", "")
    return model


def _resize_base(base: PreTrainedModel, file: str, adapter: PeftConfig) -> dict[str, str | None]:
    """
    Give a base the token embeddings that an adapter brings because they were resized, and hash its weights then.
    """
    with safe_open(file, framework="pt") as weights:
        brought = {name: weights.get_slice(name) for name in _EMBEDDINGS if name in weights.keys()}
        shapes = {tuple(part.get_shape()) for part in brought.values()}
        rows, width = base.get_input_embeddings().weight.shape
        if shapes <= {(rows, width)}:
            return hash_base_weights(base)
        if len(shapes) > 1 or {shape[1:] for shape in shapes} != {(width,)}:
            raise ValueError(
                f"The adapter brings embeddings of the shapes {sorted(shapes)}, but those of its base have {(rows, width)}, and "
                "only the first number may differ. Take the base that it names, or save it again."
            )
        base.resize_token_embeddings(shapes.pop()[0], mean_resizing=False)
        if not set(adapter.modules_to_save or ()).isdisjoint(("embed_tokens", "lm_head")):
            # what is brought was trained, and the new rows of the base are not known
            return {**hash_base_weights(base), "embed_tokens": None}
        for name, part in brought.items():
            _EMBEDDINGS[name](base).weight.data.copy_(part[:])
    return hash_base_weights(base)


def _put_on(base: PreTrainedModel, path: str, adapter: PeftConfig, file: str, is_resized: bool, **kwargs) -> PeftModel:
    """Let PEFT load an adapter, and check that it took all weights and left none out."""
    with safe_open(file, framework="pt") as weights:
        names = set(weights.keys())
    try:
        model = PeftModel.from_pretrained(base, path, config=adapter, **kwargs)
        known = get_peft_model_state_dict(model, save_embedding_layers=is_resized or "auto").keys()
    except torch.OutOfMemoryError:
        raise
    except KeyError as error:  # PEFT misses a weight of `modules_to_save`
        known = names | set(error.args)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"The adapter in {path!r} does not fit {base.name_or_path!r} or itself ({error}). Take the `{CONFIG_NAME}` that was "
            "saved with the weights, and the base that it names."
        ) from error
    if known != names:
        raise ValueError(
            f"The adapter in {path!r} lacks weights {sorted(known - names)[:5]}, which would be random, or has some that are "
            f"not known, {sorted(names - known)[:5]}, which would be lost. Save it again, or take the version of np_trl that "
            "saved it."
        )
    return model


def _load_reference(model: PeftModel, path: str, subfolder: str | None = None, **kwargs) -> None:
    """Load the adapter that was trained further, as it was when that began, beside the one that came of it."""
    source = {**kwargs, "subfolder": posixpath.join(subfolder or "", REFERENCE)}
    config, record = read_adapter(path, **source)
    file = find_file(path, WEIGHTS_NAME, **source)
    if record.get("weights") != hash_file(file):
        raise OSError(
            f"The weights of the reference policy in {path!r}, folder `{REFERENCE}`, are not those that its `{CONFIG_NAME}` was "
            "saved with. Copy both files again."
        )
    config.inference_mode = True
    model.add_adapter(REFERENCE, config)
    model.load_adapter(path, REFERENCE, **source)


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
            if weight.dtype not in COMPARED_DTYPES or weight.numel() == 0 or weight.is_meta:
                hashes[key] = None
            elif hashes.setdefault(key, hashlib.sha256()) is not None:
                hashes[key].update(f"{'.'.join(parts)} {tuple(weight.shape)}".encode())
                hashes[key].update(sample_weight(weight, samples))
    return {key: None if value is None else value.hexdigest()[:16] for key, value in hashes.items()}


def _is_of_base(name: str) -> bool:
    """Whether a parameter is neither FiLM's, the context encoder's, nor an adapter's."""
    parts = name.split(".")
    return set(parts).isdisjoint(("film", "context_encoder", "modules_to_save")) and "lora_" not in name


def _put_in_place(part: str, folder: str, adapters: list[str]) -> None:
    """
    Move adapters, the default one last, over those that are there. No configuration stands beside the weights of another.
    """
    if "" in adapters:
        Path(folder, CONFIG_NAME).unlink(missing_ok=True)
    for name in adapters:
        Path(folder, name).mkdir(exist_ok=True)
        Path(folder, name, CONFIG_NAME).unlink(missing_ok=True)
        for file in (WEIGHTS_NAME, CONFIG_NAME):
            os.replace(Path(part, name, file), Path(folder, name, file))
