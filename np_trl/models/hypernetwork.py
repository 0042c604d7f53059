"""The linear map from a latent to the modulation of a decoder."""

import torch
from torch import nn


class Hypernetwork(nn.Module):
    """
    A linear map of a latent whose outputs start at zero: at the start no latent changes anything.

    Args:
        latent_size (`int`):
            Size Z of the latent.
        output_size (`int`):
            Number of outputs.
    """

    def __init__(self, latent_size: int, output_size: int):
        super().__init__()
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
        return nn.functional.linear(latents.to(self.weight), self.weight, self.bias)
