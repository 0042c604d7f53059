"""What tells the models that infer the same latents from the same choices from all others."""

import hashlib
import json

from torch import nn

from np_trl.models.weights import sample_weight


# what PEFT wraps around a model and its modules
WRAPPING = {"base_model", "model", "modules_to_save", "default", "base_layer"}


def fingerprint(model: nn.Module) -> str:
    """
    Hash what a latent depends on: the context encoder, the vectors of options, and what embeds options: the policy's trunk,
    or what the config says of another embedder.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy or a reward model.

    Returns:
        `str`: 16 hexadecimal digits, the same for an adapter and the policy that it is merged into.
    """
    config = model.config
    trunk = getattr(config, "context_layer", 0) if getattr(config, "context_source", None) == "trunk" else 0
    inferring = {"context_encoder", "option_vectors", *(["embed_tokens"] if trunk else [])}
    weights = {}
    for name, weight in model.named_parameters():
        parts = name.split(".")
        in_trunk = "layers" in parts and int(parts[parts.index("layers") + 1]) < trunk
        if "original_module" in parts or not (in_trunk or inferring.intersection(parts)):
            continue
        weights[".".join(part for part in parts if part not in WRAPPING)] = weight
    digest = hashlib.sha256(json.dumps(getattr(config, "embedder", None), sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(f"{name} {tuple(weights[name].shape)}".encode())
        digest.update(sample_weight(weights[name]))
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
    if found != expected:
        raise ValueError(
            f"{what} is of another model (fingerprint {found!r}; this model has {expected!r}). Latents of different models "
            "have nothing in common: infer the user anew from the choices."
        )
