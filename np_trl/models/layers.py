"""The layers that the context encoder, the reward model and the embedders are made of."""

from collections.abc import Iterable
from itertools import chain

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

    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """
        Take the statistics of embeddings. A dimension that is (almost) constant is centred and not scaled.

        Args:
            batches (iterable of `torch.Tensor` of shape `(N, E)`):
                Embeddings of the training set, a part at a time.
        """
        start, count, total, squares = None, 0, 0.0, 0.0
        for embeds in batches:
            embeds = embeds.double()
            start = embeds[0] if start is None else start  # sums of differences, which do not cancel at large offsets
            embeds = embeds - start
            count, total, squares = (
                count + len(embeds),
                total + embeds.sum(dim=0),
                squares + embeds.square().sum(dim=0),
            )
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        constant = std <= 1e-4 * std.max()
        self.mean.copy_(mean + start)
        # of huge embeddings, also what varies little beside other dimensions has to become small
        self.scale.copy_(torch.where(constant, 1 / std.clamp_min(1), 1 / std.clamp_min(1e-12)))

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        # in place on one copy: a third of the time at E = 4096
        return embeds.to(self.mean, copy=True).sub_(self.mean).mul_(self.scale)


def fit_standardizers(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """
    Fit the [`Standardizer`]s of a model that have no statistics, all alike.

    Args:
        model (`nn.Module`):
            A reward model or a policy.
        batches (iterable of `torch.Tensor` of shape `(N, E)`):
            Embeddings of the training set, a part at a time. Not read where there is nothing to fit; without any, nothing is
            fitted.
    """
    found = [module for module in model.modules() if isinstance(module, Standardizer) and not module.is_fitted]
    batches = iter(batches) if found else iter(())
    start = next(batches, None)
    if start is None:
        return
    first, *others = found
    first.fit(chain([start], batches))
    for standardizer in others:
        standardizer.load_state_dict(first.state_dict())


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


class OptionVectors(nn.Module):
    """
    A learned vector for each option that recurs, to be added to its embedding. They start at zero.

    In training, an option loses its vector in a whole batch with probability `dropout`, as if it had never been seen.

    Args:
        num_options (`int`):
            Number of options with a vector. They are numbered from 1; 0 is an option without one.
        embed_size (`int`):
            Size E of an embedding.
        dropout (`float`):
            Probability between 0 and 1.
    """

    def __init__(self, num_options: int, embed_size: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(torch.zeros(num_options, embed_size))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def kept(self, device: torch.device | None = None) -> torch.Tensor:
        """
        Draw which options keep their vectors: `(num_options + 1, 1)`, 0 or 1. All but the unknown one in evaluation.

        `device` is where the options are, for weights that are offloaded.
        """
        kept = torch.ones(len(self.weight) + 1, 1, device=self.weight.device if device is None else device)
        if self.training:
            kept.bernoulli_(1 - self.dropout)
        kept[0] = 0
        return kept

    def forward(self, option_ids: torch.LongTensor, kept: torch.Tensor) -> torch.Tensor:
        """
        Args:
            option_ids (`torch.LongTensor` of shape `(...)`):
                Numbers of options.
            kept (`torch.Tensor` of shape `(num_options + 1, 1)`):
                From [`OptionVectors.kept`], one draw for all options of a batch.

        Returns:
            `torch.Tensor` of shape `(..., E)`.
        """
        return nn.functional.embedding(option_ids, nn.functional.pad(self.weight, (0, 0, 1, 0)) * kept)


class ZeroLinear(nn.Linear):
    """A linear map that starts at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def spread(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """
    Lay out values in their places, zeros elsewhere.

    Args:
        values (`torch.Tensor` of shape `(P, ...)`):
            One entry for each `True`, in their order.
        present (`torch.BoolTensor` of shape `(U, C)`):
            Where they belong.

    Returns:
        `torch.Tensor` of shape `(U, C, ...)`.
    """
    return values.new_zeros(*present.shape, *values.shape[1:]).index_put((present,), values)
