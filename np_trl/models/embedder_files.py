"""The files of an embedder: read from safetensors alone, without code that they bring."""

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .weights import WHY_SAFETENSORS, check_files


def check_index(path: str, revision: str) -> None:
    """
    Check that weights are to be read from safetensors alone.

    Args:
        path (`str`), revision (`str`):
            Folder or name on the Hub, and branch, tag or commit there.

    Raises:
        `ValueError`: if the index of the weights names other files.
    """
    name = "model.safetensors.index.json"
    try:
        index, _ = PreTrainedConfig.get_config_dict(path, revision=revision, _configuration_file=name)
    except OSError:  # there is none: the weights are in one file
        return
    check_files(path, index, None)


def load_frozen(auto_class: type, path: str, revision: str, **kwargs) -> PreTrainedTokenizerBase | PreTrainedModel:
    """
    Load an embedder or its tokenizer.

    Args:
        auto_class (`type`):
            An auto class of transformers.
        path (`str`), revision (`str`):
            Folder or name on the Hub, and branch, tag or commit there.
        kwargs:
            Passed to `from_pretrained`.

    Raises:
        `ValueError`: if it brings its own code.
        `OSError`: if it is not there, has no safetensors, or they are not whole.
    """
    name = f"The embedder {path!r} (`revision={revision!r}`)"
    try:
        return auto_class.from_pretrained(path, revision=revision, trust_remote_code=False, **kwargs)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name} brings its own code, which is not run. Take an embedder of an architecture that transformers has."
            ) from error
        if type(error).__name__ == "SafetensorError":  # of a library that shared code does not import
            raise OSError(f"The weights of {name} are not whole ({error}). Copy or download them again.") from error
        if not isinstance(error, OSError):
            raise
        if "model.safetensors" in str(error):
            raise OSError(
                f"{name} has no `model.safetensors`, and {WHY_SAFETENSORS} Save it again with `save_pretrained`, or take "
                "another revision."
            ) from error
        # whose text does not always name the embedder
        raise OSError(
            f"{name} cannot be loaded. Connect to the Hub once, or give a folder that holds it as `name_or_path`."
        ) from error
