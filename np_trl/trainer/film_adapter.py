"""A policy with an adapter: PEFT's, saved such that FiLM is never lost."""

import json
import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from peft import PeftModel, PeftModelForCausalLM
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedConfig, PreTrainedModel

from np_trl.files import sync_folder
from np_trl.models.checkpoint_format import FORMAT_VERSION
from np_trl.models.configuration_film import FILM_FIELDS
from np_trl.models.film import NP_MODULES
from np_trl.models.weights import WHY_SAFETENSORS
from np_trl.trainer.adapter_file import (
    CONFIG_NAME,
    REFERENCE,
    TOKEN_FIELDS,
    WEIGHTS_NAME,
    hash_file,
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

    # from `hash_base_weights`, before the adapter was added: some adapters change the base
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
        if model.config.modulation.needs_lora:
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
        if self.config.modulation.needs_lora:
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
            _replace_adapters(part, save_directory, sorted(folders, reverse=True))

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
        training continues, TRL takes a copy of the adapter that it starts from.
        """
        if adapter_name == REFERENCE and REFERENCE in self.peft_config:
            self.delete_adapter(REFERENCE)
        super().add_adapter(adapter_name, *args, **kwargs)
        if self.config.modulation.needs_lora:
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


def describe_base(base: PreTrainedModel) -> dict:
    """The configuration of a base model, without FiLM and without what may change from one load to the next."""
    settings = json.loads(json.dumps(base.config.to_diff_dict(), default=str))
    return {name: value for name, value in settings.items() if name not in (*FILM_FIELDS, *_LOADING_FIELDS)}


def _is_of_base(name: str) -> bool:
    """Whether a parameter is neither FiLM's, the context encoder's, nor an adapter's."""
    parts = name.split(".")
    return set(parts).isdisjoint(("film", "context_encoder", "modules_to_save")) and "lora_" not in name


def _replace_adapters(part: str, folder: str, adapters: list[str]) -> None:
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
