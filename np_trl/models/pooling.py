"""
Pooling: what the context encoder makes of the pairs of a set (eq. 5 and 21), and an embedder of the tokens of a text.

Every pooling of pairs is a class; the field `pooling` names one. A user without pairs gets the learned vector of the empty set.
"""

import torch
from torch import nn


MAX_PAIR = 1e15  # entries of an encoded pair, whose products in attention stay finite in float32


class Pooling:
    """
    Pool the encoded pairs of each user. Instances have no weights of their own: those are the context encoder's.

    Attributes:
        num_vectors (`int`): how many vectors of the size of a pair come out.
        has_attention (`bool`): whether it uses the encoder's attention.
    """

    num_vectors = 1
    has_attention = False

    def __call__(self, pairs: torch.Tensor, mask: torch.Tensor, encoder: nn.Module) -> torch.Tensor:
        """
        Args:
            pairs (`torch.Tensor` of shape `(U, C, hidden)`):
                Encoded pairs.
            mask (`torch.Tensor` of shape `(U, C, 1)`):
                `True` where a pair is present.
            encoder ([`ContextEncoder`]):
                The encoder, with its vector of the `empty_set`.

        Returns:
            `torch.Tensor` of shape `(U, num_vectors * hidden)`.
        """
        counts = mask.sum(dim=1)  # (U, 1)
        pooled = self.pool(pairs, mask, counts, encoder)  # (U, hidden)
        return torch.where(counts > 0, pooled, encoder.empty_set.to(pooled.dtype))

    def pool(self, pairs: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor, encoder: nn.Module) -> torch.Tensor:
        """Pool the pairs of users who have some; `counts` `(U, 1)` are their numbers."""
        raise NotImplementedError


class SumPooling(Pooling):
    """The sum: evidence adds up."""

    def pool(self, pairs, mask, counts, encoder):
        return (pairs * mask).sum(dim=1)


class MeanPooling(SumPooling):
    """The mean."""

    def pool(self, pairs, mask, counts, encoder):
        return super().pool(pairs, mask, counts, encoder) / counts.clamp_min(1)


class AttentionPooling(SumPooling):
    """The sum after self-attention among the pairs (eq. 21)."""

    has_attention = True

    def pool(self, pairs, mask, counts, encoder):
        absent = ~mask.squeeze(-1) & (counts > 0)  # (U, C); attention over nothing would be NaN
        limit = min(MAX_PAIR, torch.finfo(pairs.dtype).max)
        pairs = pairs.clamp(-limit, limit)
        pairs, _ = encoder.attention(pairs, pairs, pairs, key_padding_mask=absent, need_weights=False)
        return super().pool(pairs, mask, counts, encoder)


class PosteriorPooling(Pooling):
    """Bayes' rule, every hidden unit a type of user: the empty set is the log-prior, a pair gives log-likelihoods."""

    num_vectors = 2

    def __call__(self, pairs, mask, encoder):
        log_likelihood = (nn.functional.logsigmoid(pairs) * mask).sum(dim=1)  # (U, hidden)
        posterior = (encoder.empty_set + log_likelihood).softmax(dim=-1) * log_likelihood.shape[-1]  # 1 on average
        return torch.cat([posterior, (pairs * mask).sum(dim=1)], dim=-1)  # (U, 2 * hidden)


# `pooling` -> its class
POOLINGS = {"sum": SumPooling, "mean": MeanPooling, "attention": AttentionPooling, "posterior": PosteriorPooling}


def pool_tokens(hidden_states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """
    Pool the hidden states of the tokens that are there.

    Args:
        hidden_states (`torch.Tensor` of shape `(B, T, H)`):
            What a layer computed.
        mask (`torch.Tensor` of shape `(B, T)`):
            1 where a token is to be pooled, at least once a row.
        pooling (`str`):
            `"mean"` or `"last"`.

    Returns:
        `torch.Tensor` of shape `(B, H)`.
    """
    if pooling == "last":
        positions = torch.arange(mask.shape[1], device=mask.device)  # (T,)
        last = (positions * mask).argmax(dim=1)  # (B,)
        return hidden_states[torch.arange(len(last), device=last.device), last]
    weights = mask.unsqueeze(-1).to(hidden_states)  # (B, T, 1)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1)
