"""
Objectives of a reward model whose latents are normal distributions. Each is a loss in nats a target pair.

With q(z | D) the distribution that the context encoder infers from a set and p(D^T | z) the likelihood of a task's choices:

- `"maximum_likelihood"`: `-log E[p(D^T | z)]` over samples of q(z | D^C) (the log-mean-exp over the task);
- `"elbo"`: `-E[log p(D^T | z)] + w KL(q(z | D^T) || q(z | D^C))` over samples of q(z | D^T) (Garnelo et al., 2018);
- `"vpl"`: `-E[log p(D^T | z)] + w KL(q(z | D^C) || N(0, I))` over samples of q(z | D^C) (Poddar et al., 2024).
"""

import math

import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from np_trl.models.modeling_np_reward import NPRewardOutput


LATENT_OBJECTIVES = ("maximum_likelihood", "elbo", "vpl")


def latent_loss(
    objective: str,
    log_likelihood: torch.Tensor,
    outputs: NPRewardOutput,
    num_targets: torch.Tensor,
    memory_size: int,
    kl_weight: float,
) -> torch.Tensor:
    """
    Compute an objective.

    Args:
        objective (`str`):
            One of [`LATENT_OBJECTIVES`].
        log_likelihood (`torch.Tensor` of shape `(S, U)`):
            log p(D^T | z) of each user's targets under S samples, from [`joint_log_likelihood`].
        outputs ([`NPRewardOutput`]):
            With the moments of q(z | D^C), and of q(z | D^T) for the `"elbo"`.
        num_targets (`torch.Tensor` of shape `(U,)`):
            Number of targets of each user.
        memory_size (`int`):
            Size of the memory channel, which is no random variable.
        kl_weight (`float`):
            Weight w of the divergence.

    Returns:
        `torch.Tensor`: a scalar.
    """
    if objective == "maximum_likelihood":
        bound = mean_log_likelihood(log_likelihood)  # (U,)
    else:
        context = _normal(outputs.context_moments, memory_size)
        if objective == "elbo":
            divergence = kl_divergence(_normal(outputs.target_moments, memory_size), context)  # (U, set)
        else:
            divergence = kl_divergence(context, Normal(torch.zeros_like(context.mean), torch.ones_like(context.mean)))
        bound = log_likelihood.mean(dim=0) - kl_weight * divergence.sum(dim=-1)  # (U,)
    return -bound.sum() / num_targets.sum()


def joint_log_likelihood(margins: torch.Tensor, users: torch.LongTensor, num_users: int) -> torch.Tensor:
    """
    Sum the log-likelihoods of each user's choices.

    Args:
        margins (`torch.Tensor` of shape `(S, P)`):
            Log-odds of the choices under S samples.
        users (`torch.LongTensor` of shape `(P,)`):
            The user of each choice.
        num_users (`int`):
            Number U of users.

    Returns:
        `torch.Tensor` of shape `(S, U)`.
    """
    log_likelihood = nn.functional.logsigmoid(margins)
    return log_likelihood.new_zeros(len(margins), num_users).index_add(1, users, log_likelihood)


def mean_log_likelihood(log_likelihood: torch.Tensor) -> torch.Tensor:
    """Logarithm of the mean likelihood over samples: `(S, ...)` to `(...)`."""
    return log_likelihood.logsumexp(dim=0) - math.log(len(log_likelihood))


def predictive_margins(margins: torch.Tensor) -> torch.Tensor:
    """Log-odds of the mean probability of each choice over samples: `(S, P)` to `(P,)`."""
    chosen, rejected = nn.functional.logsigmoid(margins), nn.functional.logsigmoid(-margins)
    return chosen.logsumexp(dim=0) - rejected.logsumexp(dim=0)


def target_sets(inputs: dict[str, torch.Tensor], context_in_target: bool) -> dict[str, torch.Tensor]:
    """
    Lay the targets of a batch out as sets, with the context where that is not among them.

    Args:
        inputs (`dict[str, torch.Tensor]`):
            A batch of the [`ContextualCollator`].
        context_in_target (`bool`):
            Whether the context pairs are among the targets.

    Returns:
        `dict[str, torch.Tensor]`: `target_embeds` `(U, T, 2, E)`, `target_mask` `(U, T)` and, if options are numbered,
        `target_option_ids` `(U, T, 2)`.
    """
    users = inputs["context_index"].chunk(2)[0]  # (P,)
    counts = torch.bincount(users, minlength=len(inputs["context_mask"]))  # (U,)
    mask = torch.arange(int(counts.max()), device=users.device) < counts.unsqueeze(1)  # (U, T)
    sets = {"target_mask": mask if context_in_target else torch.cat([inputs["context_mask"], mask], dim=1)}
    for option_key, context_key, key in (
        ("option_embeds", "context_embeds", "target_embeds"),
        ("option_ids", "context_option_ids", "target_option_ids"),
    ):
        if option_key in inputs:
            pairs = torch.stack(inputs[option_key].chunk(2), dim=1)  # (P, 2, ...)
            padded = pairs.new_zeros(*mask.shape, *pairs.shape[1:])
            padded[mask] = pairs
            sets[key] = padded if context_in_target else torch.cat([inputs[context_key], padded], dim=1)
    return sets


def _normal(moments: tuple[torch.Tensor, torch.Tensor], memory_size: int) -> Normal:
    mean, std = (moment[:, : moment.shape[-1] - memory_size] for moment in moments)
    return Normal(mean, std)
