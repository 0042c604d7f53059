"""The identity of weights: hashes that do not depend on where weights are, or on the precision they were loaded in."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from accelerate.utils import align_module_device
from peft import PeftModel
from peft.utils.integrations import gather_params_ctx
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel


# weights of these dtypes are compared
COMPARED_DTYPES = (torch.float32, torch.bfloat16)
# names that PEFT adds around a weight of the base
_WRAPPERS = ("base_layer", "original_module")


def sample_weight(weight: torch.Tensor, samples: int = 1024) -> bytes:
    """
    Take values of a weight by which it can be recognised, in whatever precision it was loaded.

    Args:
        weight (`torch.Tensor`):
            In float32 or bfloat16.
        samples (`int`, *optional*, defaults to `1024`):
            Largest number of values.

    Returns:
        `bytes`: evenly spaced values, rounded to bfloat16.
    """
    values = weight.detach().flatten()[:: -(-weight.numel() // samples)]
    return values.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()


def describe_weight(values: torch.Tensor, block: int = 2**24) -> bytes:
    """Values by samples, and all of them by sums of their bits, which do not depend on an order of summation."""
    if not values.is_floating_point():  # quantised
        return values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    samples, total, squares = sample_weight(values, block if values.numel() <= 2**16 else 1024), 0, 0
    for part in values.detach().flatten().split(block):
        bits = part.to("cpu", torch.bfloat16).view(torch.int16).long()
        total, squares = total + int(bits.sum()), squares + int((bits * bits).sum())
    return samples + f"{total} {squares}".encode()


def hash_module(module: nn.Module, name: str, digest) -> None:
    """
    Add the weights and saved buffers of a module to a digest, also where they are offloaded.

    Args:
        module (`nn.Module`):
            The module.
        name (`str`):
            What to call it in the digest.
        digest:
            A hash of `hashlib`.
    """
    for path, part in sorted(active_module(module).named_modules()):
        with align_module_device(part):  # where weights are offloaded
            for key, values in _own_tensors(part):
                digest.update(f"{name} {path} {key} {tuple(values.shape)}".encode())
                digest.update(describe_weight(values))


def active_module(module: nn.Module) -> nn.Module:
    """Return the copy of a module that an adapter has trained, where there is one."""
    if not isinstance(module, ModulesToSaveWrapper):
        return module
    return module.modules_to_save[module.active_adapters[0]]


def base_of(model: nn.Module) -> nn.Module:
    """Return the model inside an adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and saved buffers of a module itself, in order."""
    tensors = dict(module.named_parameters(recurse=False))
    saved = module.state_dict(keep_vars=True).keys()
    tensors |= {name: values for name, values in module.named_buffers(recurse=False) if name in saved}
    yield from sorted(tensors.items())


def hash_base_weights(
    base: PreTrainedModel, adapters: Iterable[str] = (), samples: int = 1024
) -> dict[str, str | None]:
    """
    Hash the weights of a base model: samples of each tensor, rounded to bfloat16, so that the precision in which it was
    loaded does not matter.

    Args:
        base ([`~transformers.PreTrainedModel`]):
            A policy.
        adapters (`Iterable[str]`, *optional*):
            Names of the adapters in it, whose weights are left out.
        samples (`int`, *optional*, defaults to `1024`):
            Largest number of values of each tensor.

    Returns:
        `dict[str, str | None]`: a hash for the token embeddings, each layer, the norm and, where it has weights of its
        own, the head. `None` for parts that are quantised, in float16 or not loaded in this process, which cannot be
        compared.
    """
    hashes = {}
    head = [] if base.config.tie_word_embeddings else base.lm_head.named_parameters(prefix="lm_head")
    for name, weight in chain(base.model.named_parameters(), head):
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        if parts[0] in ("film", "context_encoder") or not set(adapters).isdisjoint(parts):
            continue
        key = ".".join(parts[:2]) if parts[0] == "layers" else parts[0]
        with gather_params_ctx(weight, modifier_rank=None):  # of ZeRO-3
            if weight.dtype not in COMPARED_DTYPES or weight.numel() == 0 or weight.is_meta:
                hashes[key] = None
            elif hashes.setdefault(key, hashlib.sha256()) is not None:
                hashes[key].update(f"{'.'.join(parts)} {tuple(weight.shape)}".encode())
                hashes[key].update(sample_weight(weight, samples))
    return {key: None if value is None else value.hexdigest()[:16] for key, value in hashes.items()}
