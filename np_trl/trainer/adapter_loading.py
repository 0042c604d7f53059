"""Adapters with FiLM and context encoder, loaded onto their own base only, and whole or not at all."""

import logging
import os
import posixpath

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedModel

from np_trl.trainer.adapter_file import CONFIG_NAME, REFERENCE, WEIGHTS_NAME, find_file, hash_file, read_adapter
from np_trl.trainer.film_adapter import FiLMPeftModel, describe_base
from np_trl.weight_identity import hash_base_weights


logger = logging.getLogger(__name__)

# weights of a base that was resized, as PEFT names them in an adapter
_EMBEDDINGS = {
    "base_model.model.model.embed_tokens.weight": PreTrainedModel.get_input_embeddings,
    "base_model.model.lm_head.weight": PreTrainedModel.get_output_embeddings,
}


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
            # the embeddings of the adapter were trained, and the new rows of the base are not known
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
