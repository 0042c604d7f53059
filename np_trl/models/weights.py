"""Weights come from safetensors, and whole, or not at all."""

import torch
from transformers import PreTrainedConfig


WHY_SAFETENSORS = "weights are read from safetensors alone: `.bin` and `.pt` files are pickles, which can run code."

# what says where a model is
_SOURCE_ARGUMENTS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")


def sample_weight(weight: torch.Tensor, samples: int = 1024) -> bytes:
    """
    Take values of a weight by which it can be recognised, in whatever precision it was loaded.

    Args:
        weight (`torch.Tensor`):
            In float32 or bfloat16.
        samples (`int`, *optional*, defaults to `1024`):
            Largest number of values.

    Returns:
        `bytes`: evenly spaced values, rounded to bfloat16.
    """
    values = weight.detach().flatten()[:: -(-weight.numel() // samples)]
    return values.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()


class WholeWeightsMixin:
    """Mix into a model, before [`~transformers.PreTrainedModel`]. The class names its own modules in `_may_add`."""

    # modules that a checkpoint of another model, one without them, lacks
    _may_add: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, use_safetensors=None, output_loading_info=False, **kwargs
    ):
        """
        Load a model: [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            `OSError`: if there are no safetensors, or a file of them is not whole.
            `ValueError`: if weights are absent that should be there, or some are there that this code does not know.
        """
        if use_safetensors is False:
            raise ValueError(f"`use_safetensors=False`, but {WHY_SAFETENSORS} Leave it out.")
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, use_safetensors=True, output_loading_info=True, **kwargs
            )
        except OSError as error:
            is_absent = "no file named" in str(error) or "not appear to have a file named" in str(error)
            if not is_absent or "model.safetensors" not in str(error):
                raise
            raise OSError(
                f"{pretrained_model_name_or_path!r} has no `model.safetensors`, and {WHY_SAFETENSORS} Save the model "
                "again with `save_pretrained`."
            ) from error
        except Exception as error:
            if type(error).__name__ != "SafetensorError":  # of a library that shared code does not import
                raise
            raise OSError(
                f"The weights of {pretrained_model_name_or_path!r} are not whole ({error}). Copy the file again, or "
                "download it with `force_download=True`."
            ) from error
        if pretrained_model_name_or_path is not None:
            source = {name: kwargs[name] for name in _SOURCE_ARGUMENTS if kwargs.get(name) is not None}
            saved, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **source)
            is_complete = saved.get("model_type") == cls.config_class.model_type
            cls._check_names(pretrained_model_name_or_path, is_complete, info)
        return (model, info) if output_loading_info else model

    @classmethod
    def _check_names(cls, path: str, is_complete: bool, info: dict) -> None:
        """Check names of weights that were absent or not known; `is_complete` if the modules of `_may_add` were saved."""
        names = info["missing_keys"] | info["unexpected_keys"]
        is_ours = {name: not set(cls._may_add).isdisjoint(name.split(".")) for name in names}
        missing = [name for name in info["missing_keys"] if is_complete or not is_ours[name]]
        if missing:
            raise ValueError(
                f"The weights of {path!r} lack {len(missing)} that {cls.__name__} has: {sorted(missing)[:5]}. They would "
                "be random. Save the model again, or take the version of np_trl that saved it."
            )
        unknown = [name for name in info["unexpected_keys"] if is_ours[name] or not cls._may_add]
        if unknown:
            raise ValueError(
                f"The weights of {path!r} hold {len(unknown)} that {cls.__name__} does not know: {sorted(unknown)[:5]}. "
                "They would be lost. Take the version of np_trl that saved the model."
            )
