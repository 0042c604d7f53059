"""Log-probabilities of completions, a few rows at a time: logits of a large vocabulary fill the memory."""

import torch
from torch import nn


# at a time: the largest number of sequences, and of logits, which are half a GiB in float32
MAX_ROWS, MAX_LOGITS = 64, 2**27

TOKENS = ("input_ids", "attention_mask", "completion_mask")


@torch.no_grad()
def completion_log_probs(
    model: nn.Module, tokens: dict[str, torch.Tensor], latents: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Sum the log-probabilities of the tokens of completions.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy, or its reference policy.
        tokens (`dict[str, torch.Tensor]`):
            `input_ids`, `attention_mask` and `completion_mask`, each of shape `(B, T)`.
        latents (`torch.Tensor` of shape `(B, Z)`, *optional*):
            The latent of each row's user. Without, the model runs without users.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32.
    """
    num_rows, length = tokens["input_ids"].shape
    batch_size = min(MAX_ROWS, max(1, MAX_LOGITS // (length * model.config.vocab_size)))
    return torch.cat(
        [
            _sum_log_probs(
                model,
                {name: values[start : start + batch_size] for name, values in tokens.items()},
                {} if latents is None else {"latents": latents[start : start + batch_size]},
            )
            for start in range(0, num_rows, batch_size)
        ]
    )


def _sum_log_probs(model: nn.Module, tokens: dict[str, torch.Tensor], users: dict[str, torch.Tensor]) -> torch.Tensor:
    input_ids, mask = tokens["input_ids"], tokens["completion_mask"][:, 1:]
    logits = model(input_ids=input_ids, attention_mask=tokens["attention_mask"], **users, use_cache=False).logits
    log_probs = -nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), input_ids[:, 1:], reduction="none"
    )  # (B, T - 1)
    return (log_probs * mask).sum(dim=1)
