"""
Tasks: one draw of one user's context set and target set (Algorithm 1 of the paper).

What a task holds is a pure function of (seed, epoch, position): not of the number of workers or ranks, not of
evaluation, not of where a run was resumed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset, Sampler

from np_trl.data.preference_rows import PreferenceRows


@dataclass(frozen=True)
class TaskSampling:
    """
    How training tasks are drawn.

    Args:
        min_context (`int`), max_context (`int`):
            Bounds of N_C, which every task draws uniformly. Where contexts are disjoint from the targets, a user with fewer
            pairs draws at most as many as are left beside the targets.
        num_targets (`int`):
            Number of target pairs N_T.
        context_in_target (`bool`):
            Whether the context set is a part of the target set (as in the paper) or disjoint from it.
    """

    min_context: int
    max_context: int
    num_targets: int
    context_in_target: bool

    @property
    def required_pairs(self) -> int:
        """Number of pairs a user needs for one task."""
        return self.num_targets if self.context_in_target else self.num_targets + self.min_context

    def max_context_of(self, num_pairs: int) -> int:
        """Largest N_C of a user with `num_pairs` pairs."""
        return self.max_context if self.context_in_target else min(self.max_context, num_pairs - self.num_targets)


@dataclass(frozen=True)
class Task:
    """
    A user handed to the collator, with all that its draw depends on.

    Args:
        rows ([`PreferenceRows`]):
            Where the pairs are.
        user (`int`):
            Position of the user in `rows`.
        key (`tuple[int, ...]`):
            Seed of the draw.
    """

    rows: PreferenceRows
    user: int
    key: tuple[int, ...]

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw the row numbers of the context set and of the target set."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrainingTask(Task):
    """
    A user in training.

    Args:
        sampling ([`TaskSampling`]):
            How the sets are drawn.
    """

    sampling: TaskSampling

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        rng, sampling = np.random.default_rng(self.key), self.sampling
        own = self.rows.of_user(self.user)
        num_context = int(rng.integers(sampling.min_context, sampling.max_context_of(len(own)), endpoint=True))
        if sampling.context_in_target:
            targets = _choose(own, sampling.num_targets, rng)
            return targets[:num_context], targets
        pairs = _choose(own, sampling.num_targets + num_context, rng)
        return pairs[:num_context], pairs[num_context:]


class TrainingTasks(Dataset):
    """
    The tasks of a training set: item `epoch * len(self) + k` is task k of that epoch.

    In an epoch a user is drawn once for every `num_targets` of its pairs, at least once.

    Args:
        rows ([`PreferenceRows`]):
            The training pairs.
        sampling ([`TaskSampling`]):
            How tasks are drawn.
        seed (`int`):
            Seed of everything drawn.
    """

    def __init__(self, rows: PreferenceRows, sampling: TaskSampling, seed: int):
        self.rows, self.sampling, self.seed = rows, sampling, seed
        self._users = np.repeat(np.arange(len(rows)), np.maximum(1, rows.counts // sampling.num_targets))
        self._order = (-1, self._users)  # an epoch and its users

    def __len__(self) -> int:
        return len(self._users)

    def __getitem__(self, item: int) -> TrainingTask:
        epoch, position = divmod(item, len(self))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self._users))
        return TrainingTask(self.rows, int(self._order[1][position]), (self.seed, epoch, position), self.sampling)


class TaskSampler(Sampler):
    """
    Hand out the items of one epoch of [`TrainingTasks`], in order: they are shuffled already.

    Args:
        num_tasks (`int`):
            Tasks in an epoch.
        epoch (`Callable[[], int]`):
            Returns the current epoch. Called whenever an iteration starts.
    """

    def __init__(self, num_tasks: int, epoch: Callable[[], int]):
        self.num_tasks, self.epoch = num_tasks, epoch

    def __len__(self) -> int:
        return self.num_tasks

    def __iter__(self) -> Iterator[int]:
        start = self.epoch() * self.num_tasks
        return iter(range(start, start + self.num_tasks))


def _choose(pairs: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return pairs[rng.choice(len(pairs), size=size, replace=False)]
