"""Fingerprints: a hash that identifies the models which infer the same latents from the same choices."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from torch import nn

from np_trl.models.configuration_film import FILM_FIELDS
from np_trl.weight_identity import base_of, hash_module, sample_weight


# fields of a policy's configuration that change how its trunk embeds options
_TRUNK_FIELDS = ("context_layer", "option_pooling", "context_max_length", "context_truncation")
# fields that do not: of loading, saving and training, of outputs and end tokens, and of the layers above the trunk
_OTHER_FIELDS = {
    *FILM_FIELDS,
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dropout",
    "dtype",
    "embed_dropout",
    "eos_token_id",
    "format_version",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "num_hidden_layers",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "quantization_config",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
# names that PEFT adds around a model and its modules
_WRAPPING = {"base_model", "model", "modules_to_save", "default", "base_layer"}


def fingerprint(model: nn.Module) -> str:
    """
    Hash everything that a latent depends on: the context encoder with its statistics, the options with vectors, and the embedder, which
    is the policy's trunk or the model that the config names. Neither where a model lies counts, nor whether it is in float32 or
    bfloat16.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy or a reward model.

    Returns:
        `str`: 16 hexadecimal digits, the same for an adapter and the policy that it is merged into.
    """
    base = base_of(model)
    digest = hashlib.sha256(json.dumps(_settings(base), sort_keys=True, default=str).encode())
    for name, module in _inferring_modules(base):
        hash_module(module, name, digest)
    return digest.hexdigest()[:16]


def check_fingerprint(found: str, model: nn.Module, what: str) -> None:
    """
    Check that latents are those of a model.

    Args:
        found (`str`):
            The [`fingerprint`] of the model that they were inferred by.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
        what (`str`):
            What has the latents, such as "The other profile".

    Raises:
        `ValueError`: if they are another model's.
    """
    expected = fingerprint(model)
    if found not in (expected, _fingerprint_0_1(model)):
        raise ValueError(
            f"{what} is of another model (fingerprint {found!r}; this model has {expected!r}). Latents of different models "
            "have nothing in common: infer the user again from the choices."
        )


def is_same_model(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models are one, alone or inside an adapter."""
    return base_of(one) is base_of(other)


def _settings(base: nn.Module) -> dict:
    """The fields of the configuration that decide how latents are inferred."""
    config = base.config
    settings = {"context": config.context_config.to_diff_dict()}
    settings["context"] = {key: value for key, value in settings["context"].items() if key not in _OTHER_FIELDS}
    if hasattr(config, "option_ids"):  # a reward model
        embedder = base.__dict__.get("text_embedder")  # assigned, or made of what the config says
        embedder = config.embedder if embedder is None else asdict(embedder)
        return settings | {"option_ids": config.option_ids, "embedder": _describe_embedder(embedder)}
    if config.context_source != "trunk":
        return settings
    decoder = {key: value for key, value in config.to_diff_dict().items() if key not in _OTHER_FIELDS}
    return settings | {"decoder": decoder, **{name: getattr(config, name) for name in _TRUNK_FIELDS}}


def _describe_embedder(embedder: dict | None) -> dict | None:
    """An embedder's settings, and its name on the Hub; of a folder, which may move, its content."""
    if embedder is None or not Path(embedder["name_or_path"]).is_dir():
        return embedder
    settings = {key: value for key, value in embedder.items() if key not in ("name_or_path", "revision")}
    files = sorted(Path(embedder["name_or_path"]).glob("*.safetensors")) + [
        path for name in ("config.json", "tokenizer.json") if (path := Path(embedder["name_or_path"], name)).is_file()
    ]
    return settings | {"files": [(path.name, _sample_file(path)) for path in files]}


def _sample_file(path: Path, samples: int = 256, size: int = 4096) -> str:
    """Hash evenly spaced parts of a file: all of a small one."""
    length = path.stat().st_size
    digest = hashlib.sha256(str(length).encode())
    with path.open("rb") as file:
        for start in range(0, length, max(size, length // samples)):
            file.seek(start)
            digest.update(file.read(size))
    return digest.hexdigest()


def _inferring_modules(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that infer latents, by name, without PEFT's wrappers."""
    backbone = getattr(base, "model", base)
    yield "context_encoder", backbone.context_encoder
    if getattr(base.config, "option_ids", None):
        yield "option_vectors", base.option_vectors
    if getattr(base.config, "context_source", None) == "trunk":
        yield "embed_tokens", base.get_input_embeddings()
        for index in range(base.config.context_layer):
            yield f"layers.{index}", backbone.layers[index]


def _fingerprint_0_1(model: nn.Module) -> str:
    """The fingerprint of np_trl 0.1.0, which saved profiles carry."""
    config = model.config
    trunk = getattr(config, "context_layer", 0) if getattr(config, "context_source", None) == "trunk" else 0
    inferring = {"context_encoder", "option_vectors", *(["embed_tokens"] if trunk else [])}
    weights = {}
    for name, weight in model.named_parameters():
        parts = name.split(".")
        in_trunk = "layers" in parts and int(parts[parts.index("layers") + 1]) < trunk
        if "original_module" in parts or weight.is_meta or not (in_trunk or inferring.intersection(parts)):
            continue
        weights[".".join(part for part in parts if part not in _WRAPPING)] = weight
    digest = hashlib.sha256(json.dumps(getattr(config, "embedder", None), sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(sample_weight(weights[name]))
    return digest.hexdigest()[:16]
