"""The layers that the context encoder and the reward head are made of."""

import torch
from torch import nn


class Standardizer(nn.Module):
    """
    Shift and scale embeddings by statistics of the training set, which are kept in the checkpoint.

    Args:
        embed_size (`int`):
            Size E of an embedding.
    """

    def __init__(self, embed_size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(embed_size))
        self.register_buffer("scale", torch.ones(embed_size))

    def reset_parameters(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.mean)
        nn.init.ones_(self.scale)

    @property
    def is_fitted(self) -> bool:
        """Whether there are statistics, from a training set or a checkpoint."""
        return bool(self.mean.any() or (self.scale != 1).any())

    def fit(self, embeds: torch.Tensor) -> None:
        """
        Take the statistics of `embeds`. A dimension that is (almost) constant is centred and not scaled.

        Args:
            embeds (`torch.Tensor` of shape `(N, E)`):
                Embeddings of the training set.
        """
        embeds = embeds.to(self.mean)
        std = embeds.std(dim=0, correction=0)
        constant = std <= 1e-4 * std.max()
        self.mean.copy_(embeds.mean(dim=0))
        self.scale.copy_(torch.where(constant, torch.ones_like(std), 1 / std.clamp_min(1e-12)))

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        # in place on one copy: a third of the time at E = 4096
        return embeds.to(self.mean, copy=True).sub_(self.mean).mul_(self.scale)


class SkipMLP(nn.Module):
    """
    A two-layer GELU MLP with a linear map beside it: `output(gelu(W x)) + S x`.

    W and S share one matrix product.

    Args:
        in_features (`int`), hidden_features (`int`), out_features (`int`):
            Sizes.
        linear_skip (`bool`, *optional*, defaults to `True`):
            Whether S exists.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, linear_skip: bool = True):
        super().__init__()
        self.sizes = [hidden_features, out_features if linear_skip else 0]
        self.input = nn.Linear(in_features, sum(self.sizes))
        self.output = nn.Linear(hidden_features, out_features)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden, skip = self.input(inputs).split(self.sizes, dim=-1)
        outputs = self.output(nn.functional.gelu(hidden))
        return outputs + skip if self.sizes[1] else outputs


class ZeroLinear(nn.Linear):
    """A linear map that starts at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
