"""
The context encoder's pooling: the encoded pairs of a user in, one vector out, in which their order has no part (eq. 5, 21).

A pooling is a class, and its name in `ContextEncoderConfig` is a line of `POOLINGS`.
"""

import torch
from torch import nn


MAX_PAIR = 1e15  # entries of an encoded pair, whose products in attention stay finite in float32


class Pooling(nn.Module):
    """
    A pooling without weights of its own. A subclass with weights takes `hidden_size` and has `reset_parameters`.

    Args:
        hidden_size (`int`):
            Width of an encoded pair.

    Attributes:
        saved_as (`str`): name of this module in the context encoder, and of its weights in a checkpoint.
        num_parts (`int`): width of what is pooled, in multiples of `hidden_size`.
    """

    saved_as = "pooling"
    num_parts = 1

    def __init__(self, hidden_size: int):
        super().__init__()

    def reset_parameters(self) -> None:
        """Draw the initial weights."""

    def forward(self, pairs: torch.Tensor, mask: torch.Tensor, empty_set: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pairs (`torch.Tensor` of shape `(U, C, hidden)`):
                Encoded pairs.
            mask (`torch.Tensor` of shape `(U, C, 1)`):
                `True` where a pair is present.
            empty_set (`torch.Tensor` of shape `(hidden,)`):
                Learned vector of a user without context.

        Returns:
            `torch.Tensor` of shape `(U, num_parts * hidden)`.
        """
        raise NotImplementedError


class SumPooling(Pooling):
    """The sum of the pairs."""

    def forward(self, pairs: torch.Tensor, mask: torch.Tensor, empty_set: torch.Tensor) -> torch.Tensor:
        return unless_empty((pairs * mask).sum(dim=1), mask, empty_set)


class MeanPooling(Pooling):
    """The mean of the pairs (eq. 5)."""

    def forward(self, pairs: torch.Tensor, mask: torch.Tensor, empty_set: torch.Tensor) -> torch.Tensor:
        return unless_empty((pairs * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1), mask, empty_set)


class AttentionPooling(Pooling, nn.MultiheadAttention):
    """Self-attention among the pairs, then their sum (eq. 21)."""

    saved_as = "attention"  # the weights lie where policies of np_trl 0.1.0 have them

    def __init__(self, hidden_size: int):
        nn.MultiheadAttention.__init__(self, hidden_size, num_heads=8, batch_first=True)

    def reset_parameters(self) -> None:
        self._reset_parameters()

    def forward(self, pairs: torch.Tensor, mask: torch.Tensor, empty_set: torch.Tensor) -> torch.Tensor:
        absent = ~mask.squeeze(-1) & mask.any(dim=1)  # (U, C); attention over nothing would be NaN
        limit = min(MAX_PAIR, torch.finfo(pairs.dtype).max)
        pairs = pairs.clamp(-limit, limit)
        pairs, _ = nn.MultiheadAttention.forward(
            self, pairs, pairs, pairs, key_padding_mask=absent, need_weights=False
        )
        return unless_empty((pairs * mask).sum(dim=1), mask, empty_set)


class PosteriorPooling(Pooling):
    """
    Bayes' rule, with every hidden unit a type of user: the empty set is the log-prior, a pair gives log-likelihoods.

    The posterior, 1 on average, stands beside the sum of the pairs.
    """

    num_parts = 2

    def forward(self, pairs: torch.Tensor, mask: torch.Tensor, empty_set: torch.Tensor) -> torch.Tensor:
        log_likelihood = (nn.functional.logsigmoid(pairs) * mask).sum(dim=1)  # (U, hidden)
        posterior = (empty_set + log_likelihood).softmax(dim=-1) * log_likelihood.shape[-1]
        return torch.cat([posterior, (pairs * mask).sum(dim=1)], dim=-1)  # (U, 2 * hidden)


POOLINGS = {
    "sum": SumPooling,
    "mean": MeanPooling,
    "attention": AttentionPooling,
    "posterior": PosteriorPooling,
}


def unless_empty(pooled: torch.Tensor, mask: torch.Tensor, empty_set: torch.Tensor) -> torch.Tensor:
    """Replace what was pooled `(U, hidden)` by the vector of the empty set for users without any pair."""
    return torch.where(mask.any(dim=1), pooled, empty_set.to(pooled.dtype))
