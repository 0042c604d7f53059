"""The map from a latent to the modulation of a decoder: linear in the latent, or in the latent brought into the unit ball."""

import torch
from torch import nn


class Hypernetwork(nn.Module):
    """
    A map of a latent whose outputs start at zero: at the start no latent changes anything.

    Latents have any length: those of an encoder that started from a reward model have entries of 50 and more, and a step of
    Adam on a linear map of these changes every output by more than 1. Bounded, the map is `W b(z) + c` with
    `b(z) = z / sqrt(Z + |z|^2)`, which has a length below 1 and keeps small latents apart.

    Args:
        latent_size (`int`):
            Size Z of the latent.
        output_size (`int`):
            Number of outputs.
        is_bounded (`bool`, *optional*, defaults to `False`):
            Whether latents are brought into the unit ball. Otherwise the map is `W z + c`.
    """

    def __init__(self, latent_size: int, output_size: int, is_bounded: bool = False):
        super().__init__()
        self.is_bounded = is_bounded
        # plain parameters, so that LoRA on all linear layers passes them by
        self.weight = nn.Parameter(torch.empty(output_size, latent_size))
        self.bias = nn.Parameter(torch.empty(output_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with zeros."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Map latents `(B, Z)` to the outputs of each row of the batch, in the precision of the weights."""
        latents = latents.to(self.weight)
        return nn.functional.linear(bound(latents) if self.is_bounded else latents, self.weight, self.bias)


def bound(latents: torch.Tensor) -> torch.Tensor:
    """Bring latents `(B, Z)` into the unit ball, in their direction: `z / sqrt(Z + |z|^2)`."""
    return latents * (latents.shape[-1] + latents.square().sum(dim=-1, keepdim=True)).rsqrt()
