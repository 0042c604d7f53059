"""
What CPUs need not compute of a batch of a policy: most of the padding, and the vocabulary's scores of prompts.

GPUs run one padded batch at once, and TRL's head scores completions alone there; on CPUs it scores every position.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import trl.trainer.utils
from torch import nn


ROWS_AT_ONCE = 8


def in_length_groups(model: nn.Module) -> Callable:
    """
    Run the rows of a batch in groups of like lengths, each cut to its longest row.

    Args:
        model (`nn.Module`):
            A policy or its reference policy with TRL's fused head.

    Returns:
        `Callable`: takes the arguments of `model`, with `input_ids` `(B, T)` padded on the right, and returns
        of its outputs those that have a value for each token.
    """

    def forward(attention_mask: torch.Tensor, **kwargs):
        lengths = attention_mask.sum(dim=1)
        order = lengths.argsort(stable=True)
        per_row = [
            name
            for name, value in kwargs.items()
            if name == "context_index" or (torch.is_tensor(value) and value.shape == attention_mask.shape)
        ]
        outputs = []
        for rows in order.split(ROWS_AT_ONCE):
            length = int(lengths[rows].max())
            group = {**kwargs, **{name: _cut(kwargs[name][rows], length) for name in per_row}}
            outputs.append(model(attention_mask=_cut(attention_mask[rows], length), **group))
        return _join(outputs, order.argsort(), attention_mask.shape[1] - 1)

    return forward


def _cut(values: torch.Tensor, length: int) -> torch.Tensor:
    return values if values.dim() == 1 else values[:, :length]


def _join(outputs: list, places: torch.LongTensor, length: int):
    """Join the outputs of groups, a value for each token of each row, in the order of the batch."""
    fields = {name: [output[name] for output in outputs] for name in outputs[0]}
    joined = {
        name: torch.cat([nn.functional.pad(part, (0, length - part.shape[1])) for part in parts])[places]
        for name, parts in fields.items()
        if parts[0].dim() == 2
    }
    return type(outputs[0])(**joined)


@contextmanager
def scoring_completions_alone(device: torch.device) -> Iterator[None]:
    """Have TRL's head leave out, on a CPU too, the positions whose labels are ignored."""
    original = trl.trainer.utils._use_triton
    if device.type == "cpu":
        trl.trainer.utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl.trainer.utils._use_triton = original
