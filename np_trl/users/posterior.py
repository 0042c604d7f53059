"""The posterior of a user's latent: draws of latents that agree with the choices."""

import torch

from np_trl.data.ranges import check_at_least
from np_trl.users.choices import join_contexts
from np_trl.users.questions import QuestionPool, as_pool


@torch.no_grad()
def sample_latents(
    user,
    num_samples: int = 64,
    pool: QuestionPool | list[dict] | None = None,
    num_imagined: int = 4,
    seed: int = 0,
) -> torch.Tensor:
    """
    Draw latents of a user, as far as the choices leave them open.

    A normal latent is drawn from its moments. Latents that are points are those of an ensemble of drawn context sets: the
    user answers simulated questions of the pool, each as the model predicts from all answers before it, and the
    latent is inferred from the choices and these answers (a martingale posterior: Fong, Holmes and Walker, 2023).

    Args:
        user ([`UserProfile`]):
            The user.
        num_samples (`int`, *optional*, defaults to `64`):
            Number of draws S.
        pool ([`QuestionPool`] or `list[dict]`, *optional*):
            Questions of which each draw simulates some answers. Not needed, and not used, for normal latents.
        num_imagined (`int`, *optional*, defaults to `4`):
            Number of answers that each draw simulates; all that are not answered yet, if they are fewer.
            Policies were found to select better questions with 4 than with 10.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `torch.Tensor` of shape `(S, Z)`.

    Raises:
        `ValueError`: if latents are points and there is no pool, or the user was asked all of it, or a number is below 1.
    """
    model, generator = user.model, torch.Generator().manual_seed(seed)
    check_at_least(1, num_samples=num_samples, num_imagined=num_imagined)
    if is_gaussian(model):
        mean, std = model.infer_moments(**user.context_set)
        return mean + std * torch.randn(num_samples, mean.shape[1], generator=generator).to(std)
    if pool is None:
        raise ValueError("This model infers a latent that is a point. Pass `pool`: pairs whose answers are simulated.")
    pool = as_pool(pool, user)
    unanswered = torch.tensor(pool.unanswered(user))
    if len(unanswered) == 0:
        raise ValueError(f"The user has answered all {len(pool)} pairs of the pool. Pass others.")
    order = torch.rand(num_samples, len(unanswered), generator=generator).argsort(dim=1)
    numbers = unanswered[order[:, :num_imagined]]  # (S, num_imagined)
    context = {name: values.expand(num_samples, *values.shape[1:]) for name, values in user.context_set.items()}
    latents = user.latents.expand(num_samples, -1)
    for asked in numbers.unbind(dim=1):
        context = join_contexts([context, pool.draw_answers(latents, asked, generator)], model.device)
        latents = model.infer_latents(**context)
    return latents


def is_gaussian(model) -> bool:
    """Whether a model infers a normal distribution of a user's latent, rather than a point."""
    return model.config.context_config.latent_distribution == "gaussian"
