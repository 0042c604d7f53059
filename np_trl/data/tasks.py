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


MAX_STRANGERS = 4


@dataclass(frozen=True)
class TaskSampling:
    """
    How training tasks are drawn.

    Args:
        min_context (`int`), max_context (`int`):
            Bounds of N_C, which every task draws uniformly.
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
        return self.num_targets if self.context_in_target else self.num_targets + self.max_context


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

    def draw(self, sampling: TaskSampling) -> tuple[np.ndarray, np.ndarray]:
        """Draw the row numbers of the context set and of the target set."""
        rng = np.random.default_rng(self.key)
        num_context = int(rng.integers(sampling.min_context, sampling.max_context, endpoint=True))
        if sampling.context_in_target:
            targets = _choose(self.rows.of_user(self.user), sampling.num_targets, rng)
            return targets[:num_context], targets
        pairs = _choose(self.rows.of_user(self.user), sampling.num_targets + num_context, rng)
        return pairs[:num_context], pairs[num_context:]


@dataclass(frozen=True)
class EvaluationTask(Task):
    """
    A user under one condition of the evaluation: N_C context pairs, its own or another user's.

    The targets of a user are the same under every condition and never among its contexts; contexts are nested.

    Args:
        num_context (`int`):
            N_C.
        max_context (`int`), num_targets (`int`):
            Largest N_C of the evaluation, and the largest number of targets.
        context_user (`int`):
            The user whose context is shown: `user`, or another one for the shuffled control.
        share (`slice`):
            Which of the user's targets are in the task: all of them, or a part for the shuffled control.
    """

    num_context: int
    max_context: int
    num_targets: int
    context_user: int
    share: slice

    def draw(self, sampling: TaskSampling) -> tuple[np.ndarray, np.ndarray]:
        contexts, _ = self._split(self.context_user)
        _, targets = self._split(self.user)
        return contexts[: self.num_context], targets[self.share]

    def _split(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((*self.key, user))
        pairs = self.rows.of_user(user)
        pairs = _choose(pairs, min(len(pairs), self.max_context + self.num_targets), rng)
        return pairs[: self.max_context], pairs[self.max_context :]


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
        self.rows, self.seed = rows, seed
        self._users = np.repeat(np.arange(len(rows)), np.maximum(1, rows.counts // sampling.num_targets))
        self._order = (-1, self._users)  # an epoch and its users

    def __len__(self) -> int:
        return len(self._users)

    def __getitem__(self, item: int) -> Task:
        epoch, position = divmod(item, len(self))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self._users))
        return Task(self.rows, int(self._order[1][position]), (self.seed, epoch, position))


class EvaluationTasks(Dataset):
    """
    The tasks of an evaluation set: every user at every N_C.

    Args:
        rows ([`PreferenceRows`]):
            The evaluation pairs.
        num_contexts (`list[int]`):
            The values of N_C.
        max_context (`int`):
            The pairs of a user that are kept apart from the targets, the same for every N_C.
        num_targets (`int`):
            Largest number of target pairs of a user.
        seed (`int`):
            Seed of everything drawn.
        shuffled (`bool`, *optional*, defaults to `False`):
            Whether every user is shown with the contexts of others, as a control. Up to `MAX_STRANGERS` others share
            the user's targets among them, so that the control does not hang on one likeness.
    """

    def __init__(
        self,
        rows: PreferenceRows,
        num_contexts: list[int],
        max_context: int,
        num_targets: int,
        seed: int,
        shuffled: bool = False,
    ):
        self.rows, self.num_contexts, self.seed = rows, num_contexts, seed
        self.max_context, self.num_targets = max_context, num_targets
        self.shuffled = shuffled
        self._shares = np.ones(len(rows), dtype=int)  # tasks of each user at one N_C
        if shuffled:
            targets = np.minimum(rows.counts - max_context, num_targets)
            self._shares = np.minimum(targets, min(MAX_STRANGERS, len(rows) - 1))
        self._users = np.repeat(np.arange(len(rows)), self._shares)
        self._circle = np.random.default_rng(seed).permutation(len(rows))
        self._place = np.argsort(self._circle)

    def __len__(self) -> int:
        return len(self._users) * len(self.num_contexts)

    def __getitem__(self, item: int) -> EvaluationTask:
        index, position = divmod(item, len(self._users))
        user = int(self._users[position])
        share = position - int(np.searchsorted(self._users, user))
        # a few steps along a random circle: nobody meets himself
        steps = share + 1 if self.shuffled else 0
        return EvaluationTask(
            self.rows,
            user,
            (self.seed,),
            self.num_contexts[index],
            self.max_context,
            self.num_targets,
            context_user=int(self._circle[(self._place[user] + steps) % len(self.rows)]),
            share=slice(share, None, int(self._shares[user])),
        )


class TaskSampler(Sampler):
    """
    Hand out the items of one epoch of [`TrainingTasks`], in order: they are shuffled already.

    Args:
        num_tasks (`int`):
            Tasks in an epoch.
        epoch (`Callable[[], int]`):
            Tells the current epoch, asked whenever an iteration starts.
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
