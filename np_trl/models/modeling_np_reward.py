"""
NP-BTL: a Bradley-Terry reward model conditioned on a user's latent (eq. 4, 7 and 22 of the paper).

`r(y; z) = shared(h) + MLP([h, z]) + <h, B z> + <code(y), z_memory>` with h an encoding of the embedded option y. What
depends on z alone is computed once for each user. Every term but the last starts at zero.

Where z is a normal distribution, the probability of a choice is its mean over samples of z.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_np_reward import NPRewardModelConfig
from .context_encoder import ContextEncoder
from .layers import OptionVectors, SkipMLP, Standardizer
from .reward_head import RewardHead, add_reward
from .text_scoring import TextScoringMixin
from .weights import WholeWeightsMixin


@dataclass
class NPRewardOutput(ModelOutput):
    """
    Args:
        logits (`torch.Tensor` of shape `(N, 1)`, or `(S, N, 1)` for S samples of the latents):
            Rewards; for the mean-variance head, their means.
        log_stds (`torch.Tensor`, *optional*):
            Logarithms of the rewards' standard deviations, from the mean-variance head.
        context_moments (`tuple` of two `torch.Tensor` of shape `(U, Z)`, *optional*):
            Means and standard deviations of q(z | D^C), where latents were inferred.
        target_moments (`tuple` of two `torch.Tensor` of shape `(U, Z)`, *optional*):
            Those of q(z | D^T), where target sets were given.
    """

    logits: torch.Tensor | None = None
    log_stds: torch.Tensor | None = None
    context_moments: tuple[torch.Tensor, torch.Tensor] | None = None
    target_moments: tuple[torch.Tensor, torch.Tensor] | None = None


class NPRewardModel(TextScoringMixin, WholeWeightsMixin, PreTrainedModel):
    """
    Reward of embedded options for users given by a context set (NP-BTL), or for one population (BTL, DPL). Texts are
    scored through the embedder that the config names: [`TextScoringMixin`].

    Args:
        config ([`NPRewardModelConfig`]):
            Sizes and variant.

    Example:
    ```python
    >>> latents = model.infer_latents(context_embeds, context_mask)  # (U, Z)
    >>> model(option_embeds, latents=latents, context_index=torch.tensor([0, 0, 1])).logits  # (3, 1)
    >>> model.score([{"completion": "take it slow"}], model.infer_user(pairs))  # (1,)
    ```
    """

    config_class = NPRewardModelConfig
    base_model_prefix = ""
    main_input_name = "option_embeds"

    def __init__(self, config: NPRewardModelConfig):
        super().__init__(config)
        hidden_size, context = config.hidden_size, config.context_config
        num_outputs = 2 if config.head == "mean_variance" else 1
        self.standardizer = Standardizer(config.embed_size)
        self.embed_dropout, self.dropout = nn.Dropout(config.embed_dropout), nn.Dropout(config.dropout)
        self.option_encoder = SkipMLP(config.embed_size, hidden_size, hidden_size)
        self.head = RewardHead(hidden_size, num_outputs, context.latent_size if config.conditional else 0)
        if config.conditional:
            self.context_encoder = ContextEncoder(context)
        if config.option_ids:
            self.option_vectors = OptionVectors(len(config.option_ids), config.embed_size, config.option_dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, Standardizer, ContextEncoder, OptionVectors)):
            module.reset_parameters()

    @property
    def has_gaussian_latents(self) -> bool:
        """Whether a user's latent is a normal distribution."""
        return self.config.conditional and self.context_encoder.is_gaussian

    def infer_latents(
        self,
        context_embeds: torch.Tensor,
        context_mask: torch.Tensor,
        context_option_ids: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """
        Infer latents `(U, Z)` from context sets: [`ContextEncoder.forward`].

        `context_option_ids` `(U, C, 2)`, *optional*, are the numbers of the options in `config.option_ids`, from 1.
        """
        return self._sample(self.infer_moments(context_embeds, context_mask, context_option_ids), None, None)

    def infer_moments(
        self,
        context_embeds: torch.Tensor,
        context_mask: torch.Tensor,
        context_option_ids: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Infer means and standard deviations of the latents, `(U, Z)` each: [`ContextEncoder.moments`]."""
        kept = self.option_vectors.kept(context_embeds.device) if self.config.option_ids else None
        return self._moments(context_embeds, context_mask, context_option_ids, kept)

    def forward(
        self,
        option_embeds: torch.Tensor,
        latents: torch.Tensor | None = None,
        context_embeds: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        context_index: torch.LongTensor | None = None,
        option_ids: torch.LongTensor | None = None,
        context_option_ids: torch.LongTensor | None = None,
        target_embeds: torch.Tensor | None = None,
        target_mask: torch.Tensor | None = None,
        target_option_ids: torch.LongTensor | None = None,
        latent_noise: torch.Tensor | None = None,
        **kwargs,
    ) -> NPRewardOutput:
        """
        Score options.

        Args:
            option_embeds (`torch.Tensor` of shape `(N, E)`):
                Embedded options.
            latents (`torch.Tensor` of shape `(U, Z)` or `(S, U, Z)`, *optional*):
                Latents of the users, or S samples of them; inferred from their context sets if not given.
            context_embeds (`torch.Tensor` of shape `(U, C, 2, E)`, *optional*), context_mask (`torch.Tensor` of shape
                `(U, C)`, *optional*):
                Context sets.
            context_index (`torch.LongTensor` of shape `(N,)`, *optional*):
                The user of each option. Not needed when there is one user an option, in order.
            option_ids (`torch.LongTensor` of shape `(N,)`, *optional*), context_option_ids (`torch.LongTensor` of shape
                `(U, C, 2)`, *optional*):
                Numbers of the options in `config.option_ids`, from 1; 0 for an option that is not there.
            target_embeds (`torch.Tensor` of shape `(U, T, 2, E)`, *optional*), target_mask (`torch.Tensor` of shape
                `(U, T)`, *optional*), target_option_ids (`torch.LongTensor` of shape `(U, T, 2)`, *optional*):
                Target sets, laid out as context sets, for training on a variational bound: latents are then samples of
                q(z | D^T), but for the memory channel.
            latent_noise (`torch.Tensor` of shape `(S, U, Z)` or `(S, 1, Z)`, *optional*):
                Standard normal draws: scores are then given for S samples of the latents.
            kwargs:
                Ignored; trainers pass `attention_mask` and `use_cache` to every model.

        Returns:
            [`NPRewardOutput`]

        Raises:
            `ValueError`: if the options are not of size E, or no user is given to a conditional model.
        """
        self._check_options(option_embeds)
        kept = self.option_vectors.kept(option_embeds.device) if self.config.option_ids else None
        options = self.embed_dropout(self.standardizer(option_embeds))  # (N, E)
        if kept is not None and option_ids is not None:
            options = options + self.option_vectors(option_ids, kept)
        hidden = self.option_encoder(self.dropout(options))  # (N, hidden)
        context_moments = target_moments = None
        if self.config.conditional and latents is None:
            if context_embeds is None:
                raise ValueError("Pass `latents`, or `context_embeds` and `context_mask`: this model is conditional.")
            context_moments = self._moments(context_embeds, context_mask, context_option_ids, kept)
            if target_embeds is not None:
                target_moments = self._moments(target_embeds, target_mask, target_option_ids, kept)
            latents = self._sample(context_moments, target_moments, latent_noise)  # (U, Z) or (S, U, Z)
        outputs = self.head(hidden, latents, context_index)  # (..., N, 1 or 2)
        if self.config.conditional and self.config.context_config.memory_size:
            outputs = add_reward(outputs, self._recall(options, latents, context_index))
        rewards, *log_stds = outputs.split(1, dim=-1)
        # without a bound, choices without noise drive the standard deviation to 0 and its inverse to infinity
        log_stds = log_stds[0].clamp(-5, 5) if log_stds else None
        return NPRewardOutput(rewards, log_stds, context_moments, target_moments)

    def _moments(self, embeds, mask, option_ids, kept) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = None if kept is None or option_ids is None else self.option_vectors(option_ids, kept)
        return self.context_encoder(embeds, mask, vectors, return_moments=True)

    def _sample(self, context_moments, target_moments, latent_noise: torch.Tensor | None) -> torch.Tensor:
        mean, std = context_moments
        if target_moments is not None:
            # the memory is no random variable, and the context's: in use there are no targets to remember
            set_size = mean.shape[-1] - self.config.context_config.memory_size
            mean = torch.cat([target_moments[0][:, :set_size], mean[:, set_size:]], dim=-1)
            std = target_moments[1]
        if latent_noise is not None:
            return mean + std * latent_noise
        return mean + std * torch.randn_like(mean) if self.training and self.has_gaussian_latents else mean

    def _recall(self, options: torch.Tensor, latents: torch.Tensor, context_index: torch.LongTensor | None):
        """Read the memory channel: the inner product of each option's code with its user's memory, `(..., N)`."""
        memory = latents[..., -self.config.context_config.memory_size :]  # (..., U, memory)
        memory = memory if context_index is None else memory[..., context_index, :]  # (..., N, memory)
        return (self.context_encoder.memory.code(options) * memory).mean(dim=-1)

    def choice_logits(self, outputs: NPRewardOutput) -> torch.Tensor:
        """
        Log-odds that the first half of the scored options is preferred to the second half, pair by pair.

        Args:
            outputs ([`NPRewardOutput`]):
                Scores of 2P options, those of the pairs' first options first.

        Returns:
            `torch.Tensor` of shape `(P,)`, or `(S, P)` for S samples of the latents: the difference of rewards (eq. 7),
            or the logit of `Phi((mu - mu') / sqrt(sigma^2 + sigma'^2))` for the mean-variance head.
        """
        first, second = outputs.logits.squeeze(-1).chunk(2, dim=-1)
        if outputs.log_stds is None:
            return first - second
        std = torch.logsumexp(2 * torch.stack(outputs.log_stds.squeeze(-1).chunk(2, dim=-1)), dim=0).div(2).exp()
        standard = (first - second) / std
        return torch.special.log_ndtr(standard) - torch.special.log_ndtr(-standard)

    def _check_options(self, option_embeds: torch.Tensor) -> None:
        if option_embeds.dim() != 2 or option_embeds.shape[1] != self.config.embed_size:
            raise ValueError(
                f"`option_embeds` has shape {tuple(option_embeds.shape)}, but this model takes (options, "
                f"{self.config.embed_size}). Embed the options as in training."
            )
