"""The reward head: `shared(h) + MLP([h, z]) + <h, B z>` (eq. 22 of the paper, with a shared and a bilinear term)."""

import torch
from torch import nn

from .layers import ZeroLinear


class RewardHead(nn.Module):
    """
    Score encoded options, for users given by latents or for one population. Every term starts at zero.

    Args:
        hidden_size (`int`):
            Size of an encoded option.
        num_outputs (`int`):
            1 for a reward, 2 for its mean and the logarithm of its standard deviation.
        latent_size (`int`):
            Size Z of the latent; 0 for a head without users.
    """

    def __init__(self, hidden_size: int, num_outputs: int, latent_size: int):
        super().__init__()
        self.shared = ZeroLinear(hidden_size, num_outputs)
        if latent_size:
            self.option_hidden = nn.Linear(hidden_size, hidden_size)
            self.latent_hidden = nn.Linear(latent_size, hidden_size, bias=False)
            self.conditional = ZeroLinear(hidden_size, num_outputs, bias=False)
            self.bilinear = ZeroLinear(latent_size, hidden_size, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        latents: torch.Tensor | None = None,
        context_index: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden (`torch.Tensor` of shape `(N, hidden)`):
                Encoded options.
            latents (`torch.Tensor` of shape `(U, Z)` or `(S, U, Z)`, *optional*):
                Latents of the users, or S samples of them. What depends on them alone is computed once for each user.
            context_index (`torch.LongTensor` of shape `(N,)`, *optional*):
                The user of each option. Not needed when there is one user an option, in order.

        Returns:
            `torch.Tensor` of shape `(N, num_outputs)` or `(S, N, num_outputs)`.
        """
        outputs = self.shared(hidden)
        if latents is None:
            return outputs
        latent_hidden, direction = self.latent_hidden(latents), self.bilinear(latents)  # (U, hidden) each
        if context_index is not None:
            # (..., N, hidden) each
            latent_hidden, direction = latent_hidden[..., context_index, :], direction[..., context_index, :]
        outputs = outputs + self.conditional(nn.functional.gelu(self.option_hidden(hidden) + latent_hidden))
        return add_reward(outputs, (hidden * direction).mean(dim=-1))


def add_reward(outputs: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Add `rewards` `(..., N)` to the first column of `outputs` `(..., N, num_outputs)`."""
    return outputs + nn.functional.pad(rewards.unsqueeze(-1), (0, outputs.shape[-1] - 1))
