"""The format of saved configurations, which name no code but ours."""

from collections.abc import Iterator
from contextlib import contextmanager


# counts up when a change would make older code read a model wrongly
FORMAT_VERSION = 2

# fields of a configuration that name code, which is run for whoever loads it with `trust_remote_code=True`
_CODE_FIELDS = ("auto_map", "custom_pipelines")


def check_format(version: int) -> None:
    """
    Check that this code can read a saved model.

    Args:
        version (`int`):
            The format that it was saved in.

    Raises:
        `ValueError`: if that is newer than this code, or no number.
    """
    if type(version) is not int:
        raise ValueError(
            f"The model was saved with `format_version={version!r}`, which should be a number from 1 to {FORMAT_VERSION}. Take "
            "the configuration that was saved with the weights."
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"The model was saved with `format_version={version}`, and this code reads up to {FORMAT_VERSION}. Update "
            "np_trl (`pip install -U np_trl`), or load the model by `AutoModel` or `AutoModelForCausalLM` with "
            "`trust_remote_code=True` where np_trl is not imported: it brings its own code."
        )


def without_code(fields: dict) -> dict:
    """Return the fields of a configuration without those that name code: a policy must not keep those of its base model."""
    return {
        name: without_code(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _CODE_FIELDS
    }


def tokenizer_without_code(tokenizer):
    """Copy a tokenizer to one that saves itself without code: whoever loads a model of ours runs no other code than ours."""
    copied = object.__new__(type(tokenizer))
    copied.__dict__.update(tokenizer.__dict__)
    copied.__dict__.update(init_kwargs=without_code(tokenizer.init_kwargs), _auto_map=None, _auto_class=None)
    return copied


@contextmanager
def name_what_is_wrong(path: str) -> Iterator[None]:
    """
    Replace errors of a saved model's configuration by errors that name the file and a fix.

    Args:
        path (`str`):
            Directory or Hub name of the model.

    Raises:
        `ValueError`: instead of those of libraries which check configurations.
    """
    fix = "Take the `config.json` that was saved with the weights, or save the model again."
    try:
        yield
    except RecursionError as error:
        raise ValueError(f"The configuration of {path!r} is nested too deeply to be one. {fix}") from error
    except Exception as error:
        if type(error).__name__.startswith("StrictDataclass"):  # of a library that shared code does not import
            raise ValueError(f"The configuration of {path!r} is wrong: {error} {fix}") from error
        if "`ignore_mismatched_sizes` to `False`" in str(error):
            raise ValueError(
                f"The weights of {path!r} have other shapes than its configuration says. {fix}"
            ) from error
        raise
