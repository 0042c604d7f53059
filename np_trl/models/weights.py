"""Weights come from safetensors, and whole, or not at all; and they are saved so."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .checkpoint_format import name_what_is_wrong


WHY_SAFETENSORS = "weights are read from safetensors alone: `.bin` and `.pt` files are pickles, which can run code."

# names of the files that hold a model's weights
WEIGHT_FILE = r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"

# arguments that locate a model
SOURCE_ARGUMENTS = ("cache_dir", "local_files_only", "revision", "subfolder", "token")


class WholeWeightsMixin:
    """Mix into a model, before [`~transformers.PreTrainedModel`]. The class names its own modules in `_may_add`."""

    # modules that a checkpoint of another model, one without them, lacks
    _may_add: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """
        Where the model runs. Weights that accelerate has offloaded lie nowhere (on "meta"); its hooks say where they are used.
        """
        devices = [parameter.device for parameter in self.parameters() if not parameter.is_meta]
        if not devices:
            hooks = [vars(module).get("_hf_hook") for module in self.modules()]
            used = [getattr(hook, "execution_device", None) for hook in hooks]
            devices = [torch.device(device) for device in used if device is not None]
        return devices[0] if devices else super().device

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, use_safetensors=None, output_loading_info=False, **kwargs
    ):
        """
        Load a model: [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            `OSError`: if there are no safetensors, or a file of them is not whole.
            `ValueError`: if weights are absent that should be there, some are there that this code does not know, or are not
            finite; or if the configuration is wrong, or an index names other files than safetensors beside it.
        """
        if use_safetensors is False:
            raise ValueError(f"`use_safetensors=False`, but {WHY_SAFETENSORS} Leave it out.")
        path = pretrained_model_name_or_path
        if path is not None:
            check_json_files(read_path(path), kwargs.get("subfolder"))
        try:
            with name_what_is_wrong(path):
                model, info = super().from_pretrained(
                    path, *args, use_safetensors=True, output_loading_info=True, **kwargs
                )
        except OSError as error:
            is_absent = "no file named" in str(error) or "not appear to have a file named" in str(error)
            if not is_absent or "model.safetensors" not in str(error):
                raise
            raise OSError(
                f"{path!r} has no `model.safetensors`, and {WHY_SAFETENSORS} Save the model again with `save_pretrained`."
            ) from error
        except Exception as error:
            if type(error).__name__ not in ("SafetensorError", "UnpicklingError"):  # which shared code does not import
                raise
            raise OSError(
                f"The weights of {path!r} are not whole ({error}). Copy the file again, or download it with "
                "`force_download=True`."
            ) from error
        if path is not None:
            source = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name) is not None}
            saved, _ = PreTrainedConfig.get_config_dict(path, **source)
            is_complete = saved.get("model_type") == cls.config_class.model_type
            cls._check_names(path, is_complete, info)
            cls._check_finite(path, model)
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self, save_directory, is_main_process: bool = True, state_dict=None, push_to_hub: bool = False, **kwargs
    ) -> None:
        """
        Save the model: [`~transformers.PreTrainedModel.save_pretrained`]. A process that is stopped on the way leaves what was
        there, or what is new, or a folder that does not load; never weights beside the configuration of others.

        Raises:
            `ValueError`: if there is an adapter in the folder.
        """
        if not is_main_process or kwargs.get("distributed_checkpoint"):
            super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, **kwargs)
            return
        folder = Path(save_directory)
        if (folder / "adapter_config.json").exists():
            raise ValueError(
                f"`save_directory={str(save_directory)!r}` holds an adapter, and whoever loads it would get that. Name another "
                "folder for the model."
            )
        folder.mkdir(parents=True, exist_ok=True)
        named = {"repo_id": folder.name, **kwargs} if push_to_hub else kwargs
        with TemporaryDirectory(dir=folder, prefix=".np_trl_") as part:
            super().save_pretrained(part, is_main_process, state_dict, push_to_hub, **named)
            put_in_place(Path(part), folder)

    # Override: here the files are known and none of their weights was read.
    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        check_files(load_config.pretrained_model_name_or_path, load_config.sharded_metadata, checkpoint_files)
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )

    @classmethod
    def _check_finite(cls, path: str, model: PreTrainedModel) -> None:
        """Check that there is no NaN among the weights of what this code adds to a decoder, or among all of a reward model."""
        for name, weight in model.state_dict().items():
            is_ours = not cls._may_add or not set(cls._may_add).isdisjoint(name.split("."))
            if is_ours and weight.is_floating_point() and not weight.is_meta and not weight.isfinite().all():
                raise ValueError(
                    f"The weight {name!r} of {path!r} has NaN or infinite values. Take an earlier checkpoint, or copy the file "
                    "again."
                )

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


def read_path(
    path, fix: str = "Give the folder that a model or an adapter was saved in, or a name such as 'user/model'."
) -> str:
    """
    Check where a model is to be loaded from.

    Args:
        path (`str` or `os.PathLike`):
            Directory or Hub name of a model or an adapter.
        fix (`str`, *optional*):
            What to do if there is none.

    Returns:
        `str`: the same.

    Raises:
        `TypeError`: if it is no path.
        `OSError`: if it is neither a folder nor a name that a model can have on the Hub.
    """
    if not isinstance(path, str) and not hasattr(path, "__fspath__"):
        raise TypeError(
            f"The path of a model is {path!r}, a {type(path).__name__}. Give a folder, or the name of a model on the Hub."
        )
    path = path if isinstance(path, str) else path.__fspath__()
    parts = path.split("/")
    is_name = len(parts) <= 2 and all(map(_is_hub_name, parts))
    if not is_name and (not path or not Path(path).is_dir()):
        raise OSError(f"There is no folder {path!r}, and no model on the Hub can have that name. {fix}")
    return path


def _is_hub_name(part: str) -> bool:
    letters = part.replace("-", "").replace("_", "").replace(".", "")
    return letters.isascii() and letters.isalnum() and not {part[0], part[-1]} & {"-", "."}


def check_json_files(path: str, subfolder: str | None = None) -> None:
    """
    Check the configuration and the index of a model in a folder before anything believes them. Without a configuration,
    transformers would take that of another model: the defaults.

    Args:
        path (`str`):
            Directory or Hub name of a model. On the Hub nothing is checked here.
        subfolder (`str`, *optional*):
            Folder in it.

    Raises:
        `OSError`: if there is no configuration, or a file is not whole.
        `ValueError`: if a file is no JSON object, or the index names other files than safetensors beside it.
    """
    folder = Path(path, subfolder or "")
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise OSError(
                f"{str(folder)!r} holds an adapter, not a model. Load it with `np_trl.load_policy`, to train it further with "
                "`is_trainable=True`."
            )
        raise OSError(
            f"{str(folder)!r} has no `config.json`. If a model was being saved there, it was not saved to its end: save it "
            "again, or take a checkpoint."
        )
    for file in (folder / "config.json", folder / "model.safetensors.index.json"):
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except RecursionError:
            content = None
        except ValueError as error:
            raise OSError(f"{str(file)!r} is no JSON or not whole ({error}). Copy the file again.") from None
        if not isinstance(content, dict):
            raise ValueError(f"{str(file)!r} holds no JSON object. Take the one that was saved with the weights.")
        if file.name != "config.json":
            check_files(path, content, None)


def check_files(path: str, index: dict | None, files: list[str] | None) -> None:
    """Check that an index names nothing but safetensors beside it: it might name a pickle, or the files of somebody else."""
    named = {} if index is None else index.get("weight_map")
    names = [*(named.values() if isinstance(named, dict) else [named]), *(Path(file).name for file in files or ())]
    wrong = [
        name
        for name in names
        if not isinstance(name, str) or not name.endswith(".safetensors") or not {"/", "\\"}.isdisjoint(name)
    ]
    if wrong:
        raise ValueError(
            f"The weights of {path!r} are to be read from {sorted(map(str, wrong))[:3]}, but an index may name `.safetensors` "
            "files beside it alone. Save the model again with `save_pretrained`."
        )


def put_in_place(part: Path, folder: Path) -> None:
    """
    Move a saved model over one that is there. The configuration is taken away first and comes last, unless it stays the same
    and all weights are in one file: then each file is replaced at once, and any two of them fit. Whoever is stopped on the way
    leaves no model that loads, rather than weights of two saves.

    Args:
        part (`Path`):
            The folder that the model was saved to.
        folder (`Path`):
            Where it goes, on the same disk.
    """
    new = [path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file()]
    is_saved = any(map(is_weight_file, new))
    stale = [path for path in folder.iterdir() if is_saved and is_weight_file(path.name) and path.name not in new]
    config = folder / "config.json"
    is_same = config.exists() and config.read_bytes() == (part / "config.json").read_bytes()
    if not is_same or stale or "model.safetensors" not in new:
        config.unlink(missing_ok=True)
    for path in stale:  # which would be loaded instead of the new one, or lie about it
        path.unlink(missing_ok=True)
    for name in sorted(new, key="config.json".__eq__):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).replace(folder / name)


def is_weight_file(name: str) -> bool:
    """Whether a file is named like the weights of a model, or the index of them."""
    return re.fullmatch(WEIGHT_FILE, name) is not None
