r"""
Latent-gated LoRA: a latent scales each direction of an adapter, $y = W x + s B (g(z) \odot A x)$.

A user is then an ordinary LoRA adapter, with the columns of $B$ scaled by $g(z)$. What applies the gates is attached to the
adapter where it is made or loaded; the shelf, which imports no PEFT, holds its parts.
"""

import threading

import torch
from torch import nn


class LayerGates:
    """
    What a decoder layer tells the LoRA in it: the gates of the batch, while the layer runs.

    Attributes:
        values (`torch.Tensor` of shape `(B, G)` or `None`): the gates of all layers, in this thread. `None`: the adapter as
            it is.
        is_attached (`bool`): whether there is LoRA in the model that reads them.
    """

    def __init__(self, is_attached: bool = False):
        self._running = threading.local()  # every thread runs the layer for users of its own
        self.is_attached = is_attached

    @property
    def values(self) -> torch.Tensor | None:
        return getattr(self._running, "values", None)

    @values.setter
    def values(self, gates: torch.Tensor | None) -> None:
        self._running.values = gates

    def __reduce__(self) -> tuple:
        """Copied and pickled without what runs."""
        return type(self), (self.is_attached,)


class DirectionGate:
    """
    A forward hook of the module $A$ of a LoRA layer: scales the directions that it computes.

    Args:
        gates ([`LayerGates`]):
            Those of the decoder layer around it.
        start (`int`), stop (`int`):
            Which of the G gates are its own.
    """

    def __init__(self, gates: LayerGates, start: int, stop: int):
        self.gates, self.part = gates, slice(start, stop)

    def __call__(self, module: nn.Module, inputs: tuple, directions: torch.Tensor) -> torch.Tensor:
        if self.gates.values is None:
            return directions
        gates = self.gates.values[:, self.part].to(directions.dtype)  # (B, r)
        return directions * gates.unsqueeze(1)  # (B, T, r)
