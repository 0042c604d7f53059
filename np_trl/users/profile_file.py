"""The file of a user's profile: written whole, and checked before it is used."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from np_trl.files import whole_file
from np_trl.users.choices import Choice


# the key of the file's metadata under which the facts stand
FACTS = "np_trl.UserProfile"


def is_profile(path: str | Path) -> bool:
    """Whether a file of a user is a saved profile by its name, rather than choices in JSON."""
    return Path(path).suffix == ".safetensors"


def write_profile(path: str | Path, fingerprint: str, keys: list[str], context: dict[str, torch.Tensor]) -> None:
    """
    Write a profile.

    Args:
        path (`str` or `Path`):
            The file.
        fingerprint (`str`):
            That of the model.
        keys (`list[str]`):
            The keys of the C choices.
        context (`dict[str, torch.Tensor]`):
            The choices as one context set.
    """
    tensors = {name: values.cpu().contiguous() for name, values in context.items()}
    facts = {"fingerprint": fingerprint, "choices": keys}
    facts["content"] = _hash(facts, tensors)
    with whole_file(path) as part:
        try:
            save_file(tensors, part, {FACTS: json.dumps(facts)})
        except SafetensorError as error:  # a full disk
            raise OSError(f"{str(path)!r} cannot be written ({error}). What was there is there still.") from error


def read_profile(path: str | Path, model) -> tuple[str, list[Choice]]:
    """
    Read a profile.

    Args:
        path (`str` or `Path`):
            The file.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model that the choices must fit.

    Returns:
        `tuple[str, list[Choice]]`: the fingerprint of the model of the profile, and its choices.

    Raises:
        `ValueError`: if the file is damaged or no profile, or its choices do not fit the model.
        `FileNotFoundError`, `IsADirectoryError`: if there is no such file.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Name the file of a profile in it.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not whole ({error}). Save the profile again.") from error
    if FACTS not in metadata:
        raise ValueError(f"{str(path)!r} is no profile of a user. Pass a file that `UserProfile.save` wrote.")
    facts = _read_facts(metadata[FACTS], path)
    # profiles of np_trl 0.1.0 have no hash of their content
    if facts.get("content", (expected := _hash(facts, tensors))) != expected:
        raise ValueError(
            f"{str(path)!r} is damaged: its content has changed since the profile was saved. Save it again."
        )
    _check_context(tensors, len(facts["choices"]), model, path)
    choices = [
        Choice(key, {name: values[:, index : index + 1].to(model.device) for name, values in tensors.items()})
        for index, key in enumerate(facts["choices"])
    ]
    return facts["fingerprint"], choices


def _read_facts(text: str, path: str | Path) -> dict:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    is_valid = (
        isinstance(facts, dict)
        and isinstance(facts.get("fingerprint"), str)
        and isinstance(facts.get("choices"), list)
        and all(isinstance(key, str) for key in facts["choices"])
    )
    if not is_valid:
        raise ValueError(
            f"{str(path)!r} is a damaged profile: it does not say which model it is of, and which choices it holds. Save it again."
        )
    return facts


def _check_context(tensors: dict[str, torch.Tensor], num_choices: int, model, path: str | Path) -> None:
    """Check that a context set of C choices is one that the model reads."""
    config, expected, problem = model.config, model.no_choices(), None
    if set(tensors) - {"context_option_ids"} != set(expected) - {"context_option_ids"} or set(tensors) - set(expected):
        problem = f"it holds {sorted(tensors)}, but must hold {sorted(expected)}"
    for name in expected.keys() & tensors.keys() if problem is None else ():
        values, shape = tensors[name], (1, max(1, num_choices), *expected[name].shape[2:])
        if values.dtype != expected[name].dtype or values.shape != shape:
            problem = f"`{name}` is {values.dtype} of shape {tuple(values.shape)}, but must be {expected[name].dtype} of {shape}"
        elif name == "context_embeds" and not values.isfinite().all():
            problem = f"`{name}` is not finite"
        elif name == "context_mask" and bool(values.all()) != bool(num_choices):
            problem = f"`{name}` leaves out some of {num_choices} choices"
        elif name == "context_option_ids" and not 0 <= values.min() <= values.max() <= len(config.option_ids or ()):
            problem = f"`{name}` holds numbers outside 0 to {len(config.option_ids or ())}"
    if problem is not None:
        raise ValueError(f"{str(path)!r} is a damaged profile, or one of another model: {problem}. Save it again.")


def _hash(facts: dict, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps([facts["fingerprint"], facts["choices"]]).encode())
    for name in sorted(tensors):
        values = tensors[name].contiguous().flatten()
        digest.update(f"{name} {values.dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
