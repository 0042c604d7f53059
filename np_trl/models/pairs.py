"""A user's choices, given as preference pairs of texts; and users, given as what was inferred from their choices."""

import torch


SIDES = ("chosen", "rejected")


def check_pairs(pairs: list[dict], required: tuple[str, ...]) -> None:
    """
    Check that preference pairs have what is read of them.

    Args:
        pairs (`list[dict]`):
            Preference pairs.
        required (`tuple[str, ...]`):
            Keys that every pair must have.

    Raises:
        `ValueError`: if a pair lacks a key.
    """
    for index, pair in enumerate(pairs):
        missing = [key for key in required if key not in pair]
        if missing:
            raise ValueError(f"Pair {index} has no {missing}. Each pair needs {list(required)}.")


def empty_context(embed_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    """
    Make the context set of a user without choices.

    Args:
        embed_size (`int`):
            Size E of an option's embedding.
        device (`torch.device`):
            Where the model is.

    Returns:
        `dict[str, torch.Tensor]`: `context_embeds` `(1, 1, 2, E)` and `context_mask` `(1, 1)`, all `False`.
    """
    mask = torch.zeros(1, 1, dtype=torch.bool, device=device)
    return {"context_embeds": torch.zeros(1, 1, len(SIDES), embed_size, device=device), "context_mask": mask}


def stack_latents(users: list, device: torch.device) -> torch.Tensor:
    """
    Stack the latents of users.

    Args:
        users (`list`):
            U latents of shape `(1, Z)`, or objects that have such `latents`.
        device (`torch.device`):
            Where the model is.

    Returns:
        `torch.Tensor` of shape `(U, Z)`.

    Raises:
        `ValueError`: if there are none.
    """
    if not users:
        raise ValueError("`users` is empty. Pass one for each row, or leave it out.")
    return torch.cat([getattr(user, "latents", user).to(device) for user in users])
