"""Fingerprints: a hash that identifies the models which infer the same latents from the same choices."""

import hashlib
import json
from pathlib import Path

from torch import nn

from np_trl.models.configuration_film import FILM_FIELDS
from np_trl.weight_identity import base_of, hash_module, sample_weight


# fields of configurations that do not change latents: of loading, saving and training, of outputs and end tokens, and of the
# layers above the trunk
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
    for name, module in base.inferring_modules():
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
    """The settings that decide how latents are inferred, wherever the model lies and whatever it was saved as."""
    settings = {"context": base.config.context_config.to_diff_dict(), **base.inference_settings()}
    for name in ("context", "decoder"):
        if name in settings:
            settings[name] = {key: value for key, value in settings[name].items() if key not in _OTHER_FIELDS}
    if "embedder" in settings:
        settings["embedder"] = _describe_embedder(settings["embedder"])
    return settings


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


def _fingerprint_0_1(model: nn.Module) -> str:
    """The fingerprint of np_trl 0.1.0, which saved profiles carry."""
    trunk = sum(name.startswith("layers.") for name, _ in base_of(model).inferring_modules())
    inferring = {"context_encoder", "option_vectors", *(["embed_tokens"] if trunk else [])}
    weights = {}
    for name, weight in model.named_parameters():
        parts = name.split(".")
        in_trunk = "layers" in parts and int(parts[parts.index("layers") + 1]) < trunk
        if "original_module" in parts or weight.is_meta or not (in_trunk or inferring.intersection(parts)):
            continue
        weights[".".join(part for part in parts if part not in _WRAPPING)] = weight
    digest = hashlib.sha256(json.dumps(model.config.to_dict().get("embedder"), sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(sample_weight(weights[name]))
    return digest.hexdigest()[:16]
