"""Binary attributes of texts, and the types of users who want each of them or its opposite."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Attributes:
    """
    Binary attributes of texts.

    Args:
        likes (`tuple[str, ...]`), opposites (`tuple[str, ...]`):
            Name of each attribute, and what a text without it is called.
        detect (`Callable`):
            Reads the attributes off a text: for each 1 or -1, or 0 where the text shows neither.
        requests (`tuple[tuple[str, str], ...]`):
            For each attribute what a user would say who wants it, and who wants its opposite.
    """

    likes: tuple[str, ...]
    opposites: tuple[str, ...]
    detect: Callable[[str], tuple[int, ...]]
    requests: tuple[tuple[str, str], ...]

    @property
    def styles(self) -> tuple[tuple[int, ...], ...]:
        """The types of users: all ways to want 1 or -1 of each attribute."""
        return tuple(itertools.product((-1, 1), repeat=len(self.likes)))

    def name(self, style: tuple[int, ...]) -> str:
        """Name a type of users by its preferences: `long_list_casual_sure`."""
        return "_".join(self.values(style))

    def values(self, style: tuple[int, ...]) -> list[str]:
        """The names of the attributes, or their opposites, that a type of users wants."""
        return [
            like if sign > 0 else other for sign, like, other in zip(style, self.likes, self.opposites, strict=True)
        ]

    def instruct(self, style: tuple[int, ...]) -> str:
        """Say in words what a type of users wants."""
        return " ".join(requests[0 if sign > 0 else 1] for sign, requests in zip(style, self.requests, strict=True))

    def match(self, texts: list[str], styles: np.ndarray) -> np.ndarray:
        """Whether the attributes of N texts are those of `styles`, of shape `(N, A)`: `(N, A)`, boolean."""
        return np.array([self.detect(text) for text in texts]).reshape(-1, len(self.likes)) == np.asarray(styles)
