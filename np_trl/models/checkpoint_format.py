"""The format in which models are saved. It counts up when a change would make older code read a model wrongly."""

FORMAT_VERSION = 1


def check_format(version: int) -> None:
    """
    Check that this code can read a saved model.

    Args:
        version (`int`):
            The format that it was saved in.

    Raises:
        `ValueError`: if that is newer than this code.
    """
    if version > FORMAT_VERSION:
        raise ValueError(
            f"The model was saved with `format_version={version}`, and this code reads up to {FORMAT_VERSION}. Update "
            "np_trl (`pip install -U np_trl`), or load the model by `AutoModel` or `AutoModelForCausalLM` with "
            "`trust_remote_code=True` where np_trl is not imported: it brings its own code."
        )
