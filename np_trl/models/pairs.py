"""Users, given by latents or by profiles: how a model takes and checks them."""

from typing import Protocol, runtime_checkable

import torch


# far beyond the latents of trained models, whose largest value was a few hundred where embeddings are standardised
MAX_LATENT = 1e6


@runtime_checkable
class Profile(Protocol):
    """A user whose latents are those of one model, such as a `UserProfile`."""

    def check_model(self, model) -> None:
        """Raise a `ValueError` if the latents are another model's."""


def check_conditions(**conditions) -> None:
    """
    Check that users are given once, and whole.

    Args:
        conditions (`dict`):
            By their names those of `users`, `latents`, `context_embeds`, `context_mask`, `context_index` and `modulation` that the
            method takes; `None` where one is not given.

    Raises:
        `ValueError`: if users are given in two ways, or not whole.
    """
    given = [name for name, value in conditions.items() if value is not None]
    sources = [name for name in given if name not in ("context_mask", "context_index")]
    if len(sources) > 1:
        raise ValueError(f"{sources} are given, and each says for whom to run. Pass one of them.")
    if ("context_mask" in given) != ("context_embeds" in given):
        raise ValueError(f"Of a context, {given} are given. Pass both `context_embeds` and `context_mask`.")
    if "context_index" in given and sources in ([], ["modulation"]):
        raise ValueError(
            "`context_index` says whose row each one is, but no users are given beside it. Pass `latents`, `users` or "
            "`context_embeds` and `context_mask`, or leave it out."
        )


def stack_latents(users: list, model) -> torch.Tensor:
    """
    Stack the latents of users.

    Args:
        users (`list`):
            U latents of shape `(1, Z)`, or objects that have such `latents`. A profile is checked to be one of the model.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model that takes the latents.

    Returns:
        `torch.Tensor` of shape `(U, Z)`, where the model is.

    Raises:
        `ValueError`: if there are none, or one is no user, or a profile is of another model.
    """
    if not isinstance(users, (list, tuple)):
        raise ValueError(
            f"`users` is a {type(users).__name__}, but takes a list: one user for each row, such as `[ada]`."
        )
    if not users:
        raise ValueError("`users` is empty. Pass one for each row, or leave it out.")
    return torch.cat([_read_latents(user, model) for user in users])


def _read_latents(user, model) -> torch.Tensor:
    if isinstance(user, Profile):
        user.check_model(model)
    latents = user if isinstance(user, torch.Tensor) else getattr(user, "latents", None)
    if not isinstance(latents, torch.Tensor):
        raise ValueError(
            f"A user is a {type(user).__name__}, but must be a latent of shape (1, Z), or have such `latents`, as a "
            "`UserProfile` has."
        )
    check_latents(latents, model.config.context_config.latent_size)
    return latents.to(model.device)


def check_latents(latents: torch.Tensor, latent_size: int, samples: bool = False) -> None:
    """
    Check latents before they are used.

    Args:
        latents (`torch.Tensor` of shape `(U, Z)`):
            Latents of users.
        latent_size (`int`):
            Size Z of the model's latents.
        samples (`bool`, *optional*, defaults to `False`):
            Whether several samples of each, `(S, U, Z)`, are allowed.

    Raises:
        `ValueError`: if they are of another shape, not finite, or beyond `MAX_LATENT`.
    """
    if not isinstance(latents, torch.Tensor):
        raise ValueError(
            f"`latents` is a {type(latents).__name__}, but must be a tensor of shape (rows, {latent_size}). Pass profiles as "
            "`users`, a list with one for each row."
        )
    if latents.dim() not in ((2, 3) if samples else (2,)) or latents.shape[-1] != latent_size:
        raise ValueError(
            f"`latents` has shape {tuple(latents.shape)}, but this model takes (rows, {latent_size}): one latent a row. Infer "
            "them with this model's `infer_latents`."
        )
    # not while a graph is recorded: a value would have to be read back
    if not torch.compiler.is_compiling() and not (latents.abs() <= MAX_LATENT).all():
        raise ValueError(
            f"`latents` holds NaN, infinite values, or values beyond {MAX_LATENT:g}, which no choices lead to. Check what they "
            "were computed from: the weight of a blend, the embeddings, or the model itself."
        )
