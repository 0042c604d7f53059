"""A user as an ordinary model, or as an ordinary LoRA adapter, for servers and tools that know nothing of users."""

import copy
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from np_trl.files import whole_folder
from np_trl.models.checkpoint_format import tokenizer_without_code
from np_trl.models.configuration_film import FILM_FIELDS
from np_trl.models.film import NP_MODULES
from np_trl.models.lora_gate import DirectionGate
from np_trl.models.modulation import AttentionFiLM, LoRAGate
from np_trl.models.pairs import stack_latents


@torch.no_grad()
def export_model(policy: PreTrainedModel | PeftModel, user, path: str | Path, tokenizer=None) -> None:
    """
    Fold a user into an ordinary checkpoint, which plain transformers loads: the log-probabilities are those of the policy
    with this user's latents. The policy stays as it is.

    With `film_site="attention"`, scale and shift go into the weights and biases of the attention's output (as
    $\\gamma (W x + b) + \\beta = (\\gamma W) x + (\\gamma b + \\beta)$); with `film_site="lora"`, the user's adapter is merged.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy. An adapter is merged into the copy that is saved.
        user (`torch.Tensor` of shape `(1, Z)`, or an object with such `latents`):
            The user, such as a [`UserProfile`].
        path (`str` or `Path`):
            Folder of the checkpoint, new or empty. It appears when it is complete.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Saved beside it.

    Raises:
        `ValueError`: if the modulation cannot be folded into the weights of this architecture, the policy is quantised, or
        there is not one user.
        `FileExistsError`: if there is something in the folder.
    """
    modulation, base = policy.config.modulation, _base(policy)
    if "model" not in modulation.exports:
        raise ValueError(
            f'With `film_site="{policy.config.film_site}"` a user scales and shifts what a whole decoder block adds up, which no weight of a plain '
            'model does. Train with `film_site="lora"` or `film_site="attention"` to export users.'
        )
    if modulation.needs_bias and not hasattr(base.config, "attention_bias"):
        raise ValueError(
            f"A shift of the attention's output needs a bias there, and the architecture of {type(base).__name__} has none. "
            'Train with `film_site="lora"`, which exports users of every architecture.'
        )
    if hasattr(base.config, "quantization_config"):
        raise ValueError(
            "The weights of this policy are quantised, and what a user changes would be rounded away. Load it without "
            "`quantization_config`."
        )
    values = _modulation(policy, user)
    with whole_folder(path) as folder:
        folded = _FOLDS[modulation](copy.deepcopy(policy), values)
        _to_plain(folded).save_pretrained(folder)
        if tokenizer is not None:
            tokenizer_without_code(tokenizer).save_pretrained(folder)


@torch.no_grad()
def export_adapter(policy: PeftModel, users, path: str | Path) -> None:
    """
    Save users as ordinary LoRA adapters of the plain base model, which PEFT and multi-adapter servers load.

    Args:
        policy ([`~peft.PeftModel`]):
            A policy with `film_site="lora"`.
        users (`torch.Tensor` of shape `(1, Z)`, an object with such `latents`, or a `dict` of these by name):
            The user, or users with their names.
        path (`str` or `Path`):
            Folder of the user's adapter; of several users, the folder in which each has one with the user's name. Each
            appears when it is complete.

    Raises:
        `ValueError`: if users of this policy are no adapters, a profile is of another model, or a name cannot be that of a
        folder. Nothing is written then.
        `FileExistsError`: if there is something in the folder of an adapter.

    Example:
    ```python
    >>> export_adapter(policy, {"ada": ada, "bob": bob}, "adapters")
    >>> model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "adapters/ada", adapter_name="ada")
    >>> model.load_adapter("adapters/bob", adapter_name="bob")
    >>> model.set_adapter("bob")
    ```
    """
    if "adapter" not in policy.config.modulation.exports:
        raise ValueError(
            f"With `film_site={policy.config.film_site!r}` a user shifts activations, which no LoRA adapter does. Train with "
            '`film_site="lora"`, or export the user as a model: `export_model` takes `film_site="attention"`.'
        )
    if not isinstance(users, dict):
        _save_adapter(policy, _modulation(policy, users), Path(path))
        return
    if not users:
        raise ValueError("`users` is empty. Give a user, or users by their names.")
    for name in users:
        _check_name(name)
    gates = {name: _modulation(policy, user) for name, user in users.items()}  # of all, before any is written
    for name, gate in gates.items():
        _save_adapter(policy, gate, Path(path, name))


def _check_name(name: str) -> None:
    """Check that the name of a user can be that of a folder."""
    is_text = isinstance(name, str)
    if not is_text or name in ("", ".", "..") or "\0" in name or Path(name).name != name or not _fits_a_name(name):
        raise ValueError(
            f"The name {str(name)[:60]!r} of a user cannot be that of a folder. Give a text of at most 255 bytes without '/', "
            "such as 'ada'."
        )


def _fits_a_name(name: str) -> bool:
    try:
        return len(name.encode()) <= 255
    except UnicodeEncodeError:
        return False


def _save_adapter(policy: PeftModel, gates: torch.Tensor, path: Path) -> None:
    layers = _gated_layers(policy)
    adapter = policy.active_adapter
    state = get_peft_model_state_dict(policy, adapter_name=adapter, save_embedding_layers=False)
    state = {name: weight for name, weight in state.items() if not _is_ours(name)}
    for name, output, gate in layers:
        state[f"{name}.lora_B.weight"] = output.weight * gates[:, gate.part].to(output.weight)  # (out, r)
    config = copy.deepcopy(policy.peft_config[adapter])
    config.modules_to_save = [name for name in config.modules_to_save if name not in NP_MODULES] or None
    config.inference_mode = True
    with whole_folder(path) as folder:
        config.save_pretrained(folder)
        weights = {name: weight.cpu().contiguous() for name, weight in state.items()}
        save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})


def _is_ours(weight: str) -> bool:
    """Whether a weight is one of the context encoder or the hypernetwork, by its name."""
    return not set(NP_MODULES).isdisjoint(weight.split("."))


def _base(policy: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy


def _modulation(policy: PreTrainedModel | PeftModel, user) -> torch.Tensor:
    """What the hypernetwork says of one user: `(1, L, 2, H)`, or gates `(1, G)`."""
    latents = stack_latents([user], policy)
    if latents.shape[0] != 1:
        raise ValueError(f"`user` has latents of {latents.shape[0]} users. Export one at a time: `latents[:1]`.")
    return _base(policy).model.infer_modulation(latents)


def _gated_layers(policy: PreTrainedModel | PeftModel) -> list[tuple[str, nn.Module, DirectionGate]]:
    """Name, module B and gate of every LoRA layer that a latent gates."""
    layers = []
    if isinstance(policy, PeftModel):
        adapter = policy.active_adapter
        layers = [
            (name, layer.lora_B[adapter], layer.lora_A[adapter].gate)
            for name, layer in policy.named_modules()
            if isinstance(layer, LoraLayer) and adapter in layer.lora_A and hasattr(layer.lora_A[adapter], "gate")
        ]
    if not layers:
        raise ValueError(
            "This policy has no LoRA adapter that a user gates. Load it with `np_trl.load_policy` from the adapter's folder."
        )
    return layers


def _merge(policy: PreTrainedModel | PeftModel) -> PreTrainedModel:
    return policy.base_model.merge_and_unload() if isinstance(policy, PeftModel) else policy


def _fold_gates(policy: PeftModel, gates: torch.Tensor) -> PreTrainedModel:
    """Scale the directions of the LoRA adapter by gates `(1, G)`, and merge it."""
    for _, output, gate in _gated_layers(policy):
        output.weight.mul_(gates[:, gate.part].to(output.weight.device))
    return _merge(policy)


def _fold_attention(policy: PreTrainedModel | PeftModel, film: torch.Tensor) -> PreTrainedModel:
    """Fold scales and shifts `(1, L, 2, H)` into the output projections. All four projections get biases, or none."""
    model = _merge(policy)
    model.config.attention_bias = True
    for layer in model.model.layers:
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            if projection.bias is None:
                projection.bias = nn.Parameter(projection.weight.new_zeros(projection.out_features))
    for layer, (scale, shift) in zip(model.model.layers[model.config.first_film_layer :], film[0], strict=True):
        output = layer.self_attn.o_proj
        scale, shift = scale.to(output.weight.device), shift.to(output.weight.device)
        output.weight.mul_(scale.unsqueeze(1))
        output.bias.mul_(scale).add_(shift)
    return model


_FOLDS = {AttentionFiLM: _fold_attention, LoRAGate: _fold_gates}


def _to_plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model of transformers that a policy is built on, with its weights."""
    plain_class = next(parent for parent in type(model).__mro__ if parent.__module__.startswith("transformers."))
    # training turns `use_cache` off
    ours = {*FILM_FIELDS, "auto_map", "format_version", "model_type", "use_cache"}
    fields = {name: value for name, value in model.config.to_dict().items() if name not in ours}
    state = {name: weight for name, weight in model.state_dict().items() if not _is_ours(name)}
    plain = plain_class.from_pretrained(
        None, config=plain_class.config_class.from_dict(fields), state_dict=state, dtype=model.dtype
    )
    plain.generation_config = model.generation_config
    return plain
