"""
Modulations of a decoder by a user's latent. The field `film_site` names one of them.

| `film_site` | class | changes | a user can be exported as |
|---|---|---|---|
| `"block"` | [`BlockFiLM`] | scale and shift of the output of each decoder block, as the paper's code does | - |
| `"attention"` | [`AttentionFiLM`] | those of the output of its attention, before the residual (eq. 23 read literally) | a model |
| `"lora"` | [`LoRAGate`] | the scale of each direction of a LoRA adapter | an adapter, a model |
"""

from collections.abc import Callable

import torch
from torch import nn

from .hypernetwork import Hypernetwork


class Modulation(Hypernetwork):
    """
    A hypernetwork from a latent to a modulation, and how that acts on a decoder layer.

    Attributes:
        needs_lora (`bool`): whether it acts on a LoRA adapter, so that the adapter differs from user to user.
        exports (`tuple[str, ...]`): what a user can be exported as: an `"adapter"`, a `"model"`.
        needs_bias (`bool`): whether an exported model needs a bias at the output of its attention.
    """

    needs_lora = False
    exports: tuple[str, ...] = ()
    needs_bias = False

    @classmethod
    def of(cls, config) -> "Modulation":
        """Make the modulation of a policy's configuration."""
        raise NotImplementedError

    @classmethod
    def check_config(cls, config) -> None:
        """Check the fields of a policy's configuration that are its own."""

    @staticmethod
    def run(
        layer: nn.Module, forward: Callable, modulation: torch.Tensor, hidden_states: torch.Tensor, *args, **kwargs
    ):
        """
        Run a decoder layer for users.

        Args:
            layer (`nn.Module`):
                The decoder layer, whose `film_index` is its number among those that are modulated.
            forward (`Callable`):
                Runs the layer without users.
            modulation (`torch.Tensor`):
                The output of the hypernetwork for each row of the batch.
            hidden_states (`torch.Tensor` of shape `(B, T, H)`), args, kwargs:
                Arguments of the layer.
        """
        raise NotImplementedError


class FiLM(Modulation):
    """
    The hypernetwork of eq. 23: a latent in, a FiLM scale and shift for every modulated layer out. At the start they are the
    identity.

    Args:
        latent_size (`int`):
            Size Z of the latent.
        num_layers (`int`):
            Number of modulated layers L.
        hidden_size (`int`):
            Size H of the hidden states.
        is_bounded (`bool`, *optional*, defaults to `False`):
            That of a [`Hypernetwork`].
        units (`list[float]`, *optional*):
            What shifts of each layer are multiplied by.
    """

    def __init__(
        self,
        latent_size: int,
        num_layers: int,
        hidden_size: int,
        is_bounded: bool = False,
        units: list[float] | None = None,
    ):
        super().__init__(latent_size, num_layers * 2 * hidden_size, is_bounded)
        self.sizes, self.units = (num_layers, 2, hidden_size), units

    @classmethod
    def of(cls, config) -> "FiLM":
        sizes = (config.context_config.latent_size, config.num_film_layers, config.hidden_size)
        return cls(*sizes, is_bounded=config.is_film_bounded, units=config.film_units)

    @staticmethod
    def find_site(layer: nn.Module) -> nn.Module:
        """The module of a decoder layer whose output is modulated."""
        raise NotImplementedError

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """
        Args:
            latents (`torch.Tensor` of shape `(B, Z)`):
                One latent for each row of the batch.

        Returns:
            `torch.Tensor` of shape `(B, L, 2, H)`: along axis 2, scale and shift.
        """
        scale, shift = super().forward(latents).view(-1, *self.sizes).unbind(dim=2)
        if self.units is not None:
            shift = shift * shift.new_tensor(self.units).unsqueeze(1)
        return torch.stack([1 + scale, shift], dim=2)


class BlockFiLM(FiLM):
    """FiLM of the output of a whole decoder block."""

    @staticmethod
    def find_site(layer):
        return layer

    @staticmethod
    def run(layer, forward, modulation, hidden_states, *args, **kwargs):
        return modulate(forward(hidden_states, *args, **kwargs), modulation[:, layer.film_index])


class AttentionFiLM(FiLM):
    """FiLM of the output of a block's attention: a [`FiLMAttentionMixin`] applies it."""

    exports = ("model",)
    needs_bias = True

    @staticmethod
    def find_site(layer):
        return layer.self_attn

    @staticmethod
    def run(layer, forward, modulation, hidden_states, *args, **kwargs):
        return forward(hidden_states, *args, film=modulation[:, layer.film_index], **kwargs)


class LoRAGate(Modulation):
    """
    Latent-gated LoRA: a latent in, a gate for every LoRA direction out. All gates start at 1. A [`DirectionGate`] applies each.

    Args:
        latent_size (`int`):
            Size Z of the latent.
        num_gates (`int`):
            Number G of LoRA directions in all decoder layers.
    """

    needs_lora = True
    exports = ("adapter", "model")

    @classmethod
    def of(cls, config) -> "LoRAGate":
        return cls(config.context_config.latent_size, config.num_gates, is_bounded=config.is_film_bounded)

    @classmethod
    def check_config(cls, config) -> None:
        if not config.num_gates:
            raise ValueError(
                f'`film_site="lora"` scales the directions of a LoRA adapter, but `num_gates={config.num_gates}`. Give '
                "`NPDPOTrainer` the path of the base model and `peft_config=LoraConfig(...)`: it counts them."
            )
        if config.film_layers != "all":
            raise ValueError(
                f'`film_layers={config.film_layers!r}` chooses the layers of FiLM, but with `film_site="lora"` the gates are '
                "where LoRA is. Choose its layers by `layers_to_transform` in `peft_config`."
            )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Map latents `(B, Z)` to the gates `(B, G)` of each row of the batch."""
        return 1 + super().forward(latents)

    @staticmethod
    def run(layer, forward, modulation, hidden_states, *args, **kwargs):
        """Run the layer with gates `(B, G)` on its LoRA, and leave none behind."""
        if not layer.gates.is_attached:
            raise ValueError(
                '`film_site="lora"` scales the directions of a LoRA adapter, and this model has none, or one that does not '
                "know of it. Load the adapter with `np_trl.load_policy`, or train one with `NPDPOTrainer`."
            )
        layer.gates.values = modulation
        try:
            return forward(hidden_states, *args, **kwargs)
        finally:
            layer.gates.values = None


# `film_site` -> its class
MODULATIONS = {"block": BlockFiLM, "attention": AttentionFiLM, "lora": LoRAGate}


def needs_lora(film_site) -> bool:
    """Whether a modulation, given by the value of a field that may be wrong, acts on a LoRA adapter."""
    return film_site in tuple(MODULATIONS) and MODULATIONS[film_site].needs_lora


def modulate(hidden_states: torch.Tensor, film: torch.Tensor) -> torch.Tensor:
    """
    Scale and shift hidden states (eq. 23).

    Args:
        hidden_states (`torch.Tensor` of shape `(B, T, H)`):
            What a layer computed.
        film (`torch.Tensor` of shape `(B, 2, H)`):
            Scale and shift of this layer, a row for each row of the batch.

    Returns:
        `torch.Tensor` of shape `(B, T, H)`.
    """
    scale, shift = film.to(hidden_states.dtype).unsqueeze(2).unbind(dim=1)  # (B, 1, H) each
    return torch.addcmul(shift, hidden_states, scale)
