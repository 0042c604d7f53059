"""
The context encoder: a user's context set in, the user's latent z out (eq. 5 and 21 of the paper).

A Deep Set over preference pairs, with a learned vector for the empty set, beside the memory channel of `memory.py`.
"""

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from .configuration_context_encoder import ContextEncoderConfig
from .layers import SkipMLP, Standardizer, spread
from .memory import GatedMemory, PosteriorMemory
from .pooling import POOLINGS


class ContextEncoder(nn.Module):
    """
    Infer latents from context sets.

    Args:
        config ([`ContextEncoderConfig`]):
            Sizes and variant.
    """

    def __init__(self, config: ContextEncoderConfig):
        super().__init__()
        self.config = config
        hidden_size, set_size = config.hidden_size, config.latent_size - config.memory_size
        self.standardizer = Standardizer(config.embed_size)
        self.embed_dropout, self.dropout = nn.Dropout(config.embed_dropout), nn.Dropout(config.dropout)
        self.option_encoder = SkipMLP(config.embed_size, hidden_size, hidden_size, config.linear_skip)
        self.pair_encoder = SkipMLP(2 * hidden_size, hidden_size, hidden_size, config.linear_skip)
        self.empty_set = nn.Parameter(torch.empty(hidden_size))
        self.pooling = POOLINGS[config.pooling]()
        if self.pooling.has_attention:
            self.attention = nn.MultiheadAttention(hidden_size, num_heads=8, batch_first=True)
        num_moments = 2 if config.latent_distribution == "gaussian" else 1
        pooled_size = hidden_size * self.pooling.num_vectors
        self.set_encoder = SkipMLP(pooled_size, hidden_size, num_moments * set_size, config.linear_skip)
        if config.memory_size:
            memory_class = PosteriorMemory if config.memory_weights == "posterior" else GatedMemory
            self.memory = memory_class(config.embed_size, hidden_size, config.memory_size)
        # under ZeRO-3 the weights are spread over the processes by now, and filled where they are gathered
        if not is_deepspeed_zero3_enabled():
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start the memory channel as a scorer that needs no training, every other layer as torch does."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, Standardizer)):
                module.reset_parameters()
            elif isinstance(module, nn.MultiheadAttention):
                module._reset_parameters()
        nn.init.normal_(self.empty_set, std=0.02)
        if self.config.memory_size:
            self.memory.reset_parameters()

    def forward(
        self,
        context_embeds: torch.Tensor,
        context_mask: torch.Tensor,
        item_embeds: torch.Tensor | None = None,
        return_moments: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        Summarise each user's context set in one latent (eq. 5): [`ContextEncoder.moments`], sampled in training.

        Returns:
            `torch.Tensor` of shape `(U, Z)`: the latents; in evaluation their means. With `return_moments` what
            [`ContextEncoder.moments`] returns.
        """
        mean, std = self.moments(context_embeds, context_mask, item_embeds)
        if return_moments:  # by a call of the module, which brings weights that were offloaded
            return mean, std
        return mean + std * torch.randn_like(mean) if self.training and self.is_gaussian else mean

    @property
    def is_gaussian(self) -> bool:
        """Whether latents are distributions rather than points."""
        return self.config.latent_distribution == "gaussian"

    def moments(
        self, context_embeds: torch.Tensor, context_mask: torch.Tensor, item_embeds: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Infer the distribution q(z | D^C) of each user's latent, a diagonal normal.

        Args:
            context_embeds (`torch.Tensor` of shape `(U, C, 2, E)`):
                Embeddings of the chosen and the rejected option of every context pair.
            context_mask (`torch.Tensor` of shape `(U, C)`):
                `True` where a pair is present. A row may be all `False`: a user without context.
            item_embeds (`torch.Tensor` of shape `(U, C, 2, E)`, *optional*):
                What to add to the standardised embeddings: learned vectors of options that recur.

        Returns:
            `tuple` of two `torch.Tensor` of shape `(U, Z)`: means and standard deviations, independent of the order of
            the pairs. The deviations are 0 in the memory channel, and everywhere for deterministic latents.

        Raises:
            `ValueError`: if the shapes disagree with each other or with `embed_size`.
        """
        self._check_shapes(context_embeds, context_mask)
        present = context_mask.bool()  # (U, C)
        mask = present.unsqueeze(-1)  # (U, C, 1)
        # the P pairs that are present: where users differ in their numbers of pairs, half of a batch is padding
        options = self.embed_dropout(self.standardizer(context_embeds[present]))  # (P, 2, E)
        if item_embeds is not None:
            options = options + item_embeds[present]
        hidden = spread(self.option_encoder(self.dropout(options)), present)  # (U, C, 2, hidden)
        pairs = self._encode_pairs(hidden)  # (U, C, hidden)
        mean = self.set_encoder(self.pooling(pairs, mask, self))  # (U, set), or both moments
        if self.is_gaussian:
            mean, log_std = mean.chunk(2, dim=-1)
            std = log_std.clamp(-5, 2).exp()
        else:
            std = torch.zeros_like(mean)
        if self.config.memory_size:
            memory = self.memory(options, hidden, pairs, mask)  # (U, memory)
            mean, std = torch.cat([mean, memory], dim=-1), torch.cat([std, torch.zeros_like(memory)], dim=-1)
        return mean, std  # (U, Z) each

    def _encode_pairs(self, hidden: torch.Tensor) -> torch.Tensor:
        chosen, rejected = hidden.unbind(dim=2)  # (U, C, hidden) each
        if self.config.pair_features == "difference_sum":
            chosen, rejected = chosen - rejected, chosen + rejected
        return self.pair_encoder(torch.cat([chosen, rejected], dim=-1))

    def _check_shapes(self, context_embeds: torch.Tensor, context_mask: torch.Tensor) -> None:
        embed_size = self.config.embed_size
        if context_embeds.dim() != 4 or context_embeds.shape[2:] != (2, embed_size):
            raise ValueError(
                f"`context_embeds` has shape {tuple(context_embeds.shape)}, but this encoder takes (users, pairs, 2, "
                f"{embed_size}): chosen and rejected embeddings of size {embed_size}. Embed the options as in training."
            )
        if context_mask.shape != context_embeds.shape[:2]:
            raise ValueError(
                f"`context_mask` has shape {tuple(context_mask.shape)}, but `context_embeds` holds "
                f"{tuple(context_embeds.shape[:2])} (users, pairs). Pass one flag for each pair."
            )
