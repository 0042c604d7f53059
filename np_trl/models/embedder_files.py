"""Loading of a frozen embedder: from safetensors alone, without code of its own, with errors that name the fix."""

from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .weights import WHY_SAFETENSORS, check_files


def load_frozen_model(name_or_path: str, revision: str, dtype: str) -> PreTrainedModel:
    """
    Load the model of an embedder, in evaluation mode.

    Args:
        name_or_path (`str`), revision (`str`):
            Its name on the Hub with a branch, tag or commit, or its folder.
        dtype (`str`):
            Precision of the weights; `"auto"` is that of the file.

    Raises:
        `ValueError`: if it brings its own code.
        `OSError`: if it cannot be loaded, or has no whole safetensors.
    """
    _check_index(name_or_path, revision)
    model = load_part(AutoModel, name_or_path, revision, dtype=dtype, use_safetensors=True)
    model.config.use_cache = False  # a language model would keep the keys and values of every token
    return model.eval()


def _check_index(name_or_path: str, revision: str) -> None:
    """Check that the weights are to be read from safetensors alone."""
    name = "model.safetensors.index.json"
    try:
        index, _ = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, _configuration_file=name)
    except OSError:  # there is none: the weights are in one file
        return
    check_files(name_or_path, index, None)


def load_part(
    auto_class: type, name_or_path: str, revision: str, **kwargs
) -> PreTrainedTokenizerBase | PreTrainedModel:
    """
    Load the tokenizer or the model of an embedder.

    Args:
        auto_class (`type`):
            `AutoTokenizer` or `AutoModel`.
        name_or_path (`str`), revision (`str`):
            As in [`load_frozen_model`].
        kwargs:
            Passed to `from_pretrained`.

    Raises:
        `ValueError`: if it brings its own code.
        `OSError`: if it cannot be loaded, or has no whole safetensors.
    """
    try:
        return auto_class.from_pretrained(name_or_path, revision=revision, trust_remote_code=False, **kwargs)
    except Exception as error:
        explained = _explain(error, f"The embedder {name_or_path!r} (`revision={revision!r}`)")
        if explained is None:
            raise
        raise explained from error


def _explain(error: Exception, embedder: str) -> Exception | None:
    """The error that says what to do, or `None` where the one that was raised says it."""
    if "trust_remote_code" in str(error):
        return ValueError(
            f"{embedder} brings its own code, which is not run. Take an embedder of an architecture that transformers has."
        )
    if type(error).__name__ == "SafetensorError":  # of a library that shared code does not import
        return OSError(f"The weights of {embedder} are not whole ({error}). Copy or download them again.")
    if not isinstance(error, OSError):
        return None
    if "model.safetensors" in str(error):
        return OSError(
            f"{embedder} has no `model.safetensors`, and {WHY_SAFETENSORS} Save it again with `save_pretrained`, or take "
            "another revision."
        )
    # which does not always say what was to be loaded
    return OSError(
        f"{embedder} cannot be loaded. Connect to the Hub once, or give a folder that holds it as `name_or_path`."
    )
