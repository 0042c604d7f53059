"""
Tasks of an evaluation: every user at every number of context pairs, on the same targets, and the shuffled-user control.

What a task holds is a pure function of the seed, the draw and the user.
"""

import logging
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from np_trl.data.preference_rows import PreferenceRows, most_contexts
from np_trl.data.tasks import Task


logger = logging.getLogger(__name__)

MAX_STRANGERS = 4


@dataclass(frozen=True)
class EvaluationTask(Task):
    """
    A user under one condition of the evaluation: N_C context pairs, its own or another user's.

    In one draw the targets of a user are the same under every condition and never among its contexts; contexts are
    nested.

    Args:
        num_context (`int`):
            N_C.
        context_user (`int`):
            The user whose context is shown: `user`, or another one for the shuffled control.
        share (`slice`):
            Which of the user's targets are in the task: all of them, or a part for the shuffled control.
        protocol ([`EvaluationTasks`]):
            How pairs are split.
    """

    num_context: int
    context_user: int
    share: slice
    protocol: "EvaluationTasks"

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        contexts, targets = self.protocol.split(self.user, self.key)
        targets = targets[self.share]
        if self.context_user != self.user:
            contexts = self.protocol.contexts_of_stranger(self.context_user, self.key, targets)
        return contexts[: self.num_context], targets

    def has_new_options(self) -> np.ndarray:
        """Whether each target is of options that no context pair of this draw has, at its largest N_C: `(targets,)`."""
        contexts, targets = self.protocol.split(self.user, self.key)
        return self.protocol.has_new_options(contexts, targets[self.share])


class EvaluationTasks(Dataset):
    """
    The tasks of an evaluation set: every user at every N_C that leaves one of its pairs as a target.

    A pair that a user has several times, in either order, counts once in a draw: it never is both a context and a target.

    Args:
        rows ([`PreferenceRows`]):
            The evaluation pairs. A column `role` may say which of them are for contexts and which for targets.
        num_contexts (`list[int]`):
            The values of N_C. As many pairs as the largest of them are kept apart from the targets, the same at every
            N_C; of a user with too few pairs, as many as the largest that fits.
        num_targets (`int`):
            Largest number of target pairs of a user in one draw.
        seed (`int`):
            Seed of everything drawn.
        shuffled_contexts (`list[int]`, *optional*):
            For a control: the values of N_C at which every user is shown with the contexts of others, and none else. Up
            to `MAX_STRANGERS` others share the user's targets among them, so that it does not hang on one likeness.
        num_draws (`int`, *optional*, defaults to `1`):
            How often contexts and targets of a user are drawn.
        disjoint_prompts (`bool`, *optional*, defaults to `False`):
            Whether the prompts of the targets, too, must be others than those of the contexts.

    Raises:
        `ValueError`: if no user has pairs enough, or prompts are to be compared and there are none.
    """

    def __init__(
        self,
        rows: PreferenceRows,
        num_contexts: list[int],
        num_targets: int,
        seed: int,
        shuffled_contexts: list[int] | None = None,
        num_draws: int = 1,
        disjoint_prompts: bool = False,
    ):
        self.rows, self.num_targets, self.seed = rows, num_targets, seed
        self._prompts = rows.prompt_codes() if disjoint_prompts else None
        self._options = rows.option_codes()
        sizes = np.unique(num_contexts)
        self._limits = most_contexts(rows.pair_counts)  # (users,)
        # whether each of a user's rows is a pair of its own that may be either: most are
        self._is_plain = rows.pair_counts[:, 1] == rows.counts
        fitting = np.searchsorted(sizes, self._limits, side="right")
        self._max_context = sizes[np.maximum(fitting - 1, 0)]  # (users,)
        circle = np.random.default_rng(seed).permutation(len(rows))
        shuffled = shuffled_contexts is not None
        if not shuffled:
            self._tell_who_is_left_out(sizes)
        num_contexts = shuffled_contexts if shuffled else num_contexts
        # the tasks of one draw, (tasks, 5)
        self._tasks = np.concatenate([self._conditions(number, circle, shuffled) for number in num_contexts])
        self.num_draws = num_draws

    def _tell_who_is_left_out(self, sizes: np.ndarray) -> None:
        if not (self._limits >= sizes[0]).any():
            raise ValueError(
                f"No user has enough different pairs for an evaluation at {sizes[0]} context pairs and a target: the largest "
                f"number of context pairs that leaves one is {self._limits.max(initial=-1)}. Lower `eval_num_contexts`, or give "
                "more pairs of each user. A pair that is repeated, in either order, counts once."
            )
        fewer = np.searchsorted(sizes, self._limits, "right") < np.searchsorted(sizes, self.rows.max_contexts, "right")
        if fewer.any():
            user = int(np.argmax(fewer))
            logger.warning(
                "%d of %d users are left out at some numbers of context pairs, since they have the same pair several times, "
                "such as user %r: %d different ones of %d.", fewer.sum(), len(fewer), self.rows.user_ids[user],
                self.rows.pair_counts[user].sum(), self.rows.counts[user],
            )  # fmt: skip

    def _conditions(self, num_context: int, circle: np.ndarray, shuffled: bool) -> np.ndarray:
        """Columns: N_C, user, the user whose context is shown, and which of how many shares of the targets."""
        users = np.flatnonzero(self._limits >= num_context)
        circle = circle[np.isin(circle, users)]
        place = np.empty(len(self.rows), dtype=int)
        place[circle] = np.arange(len(circle))
        shares = np.ones(len(users), dtype=int)
        if shuffled:
            shares = np.minimum(self._num_targets(users), min(MAX_STRANGERS, len(users) - 1))
        user = np.repeat(users, shares)
        share = np.arange(len(user)) - np.repeat(np.cumsum(shares) - shares, shares)
        # a few steps along a random circle: nobody meets himself
        steps = share + 1 if shuffled else 0
        context_user = circle[(place[user] + steps) % max(1, len(circle))]
        columns = np.broadcast_arrays(num_context, user, context_user, share, np.repeat(shares, shares))
        return np.stack(columns, axis=1)

    def _num_targets(self, users: np.ndarray) -> np.ndarray:
        contexts, either, targets = self.rows.pair_counts[users].T
        used = np.maximum(self._max_context[users] - contexts, 0)  # of those that may be either
        return np.minimum(either + targets - used, self.num_targets)

    def __len__(self) -> int:
        return self.num_draws * len(self._tasks)

    def __getitem__(self, item: int) -> EvaluationTask:
        draw, index = divmod(item, len(self._tasks))
        num_context, user, context_user, share, num_shares = self._tasks[index].tolist()
        return EvaluationTask(
            self.rows, user, (self.seed, draw), num_context, context_user, slice(share, None, num_shares), self
        )

    def split(self, user: int, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Draw the row numbers of a user's contexts, nested, and of its targets, all of them different pairs."""
        contexts, targets = self._split(user, self._permute(user, key))
        if self._prompts is not None:
            targets = targets[~np.isin(self._prompts[targets], self._prompts[contexts])]
            if len(targets) == 0:
                raise ValueError(
                    f"Every pair of user {self.rows.user_ids[user]!r} has a prompt that is in its context of "
                    f"{len(contexts)}. Evaluate without `eval_disjoint_prompts`, or at fewer context pairs."
                )
        return contexts, targets[: self.num_targets]

    def contexts_of_stranger(self, stranger: int, key: tuple[int, ...], targets: np.ndarray) -> np.ndarray:
        """
        Draw a user's contexts, nested, to be shown with the targets of another user, without pairs that are among these: a
        person under two names is a stranger who gives the answers away.
        """
        pairs, codes = self._permute(stranger, key), self.rows.pair_codes
        return self._split(stranger, pairs[~np.isin(codes[pairs], codes[targets])])[0]

    def _permute(self, user: int, key: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng((*key, user)).permutation(self.rows.of_user(user))

    def _split(self, user: int, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._is_plain[user]:
            contexts, targets = np.split(pairs, [self._max_context[user]])
            return contexts, targets
        return self._split_different(pairs, self._max_context[user])

    def _split_different(self, pairs: np.ndarray, num_context: int) -> tuple[np.ndarray, np.ndarray]:
        """Split such that no pair comes twice, and that contexts are first those that cannot be targets."""
        all_codes, codes = self.rows.pair_codes, self.rows.pair_codes[pairs]
        is_context, is_target = self.rows.is_context[pairs], self.rows.is_target[pairs]
        order = np.argsort(np.isin(codes, codes[~is_context]), kind="stable")
        contexts = _different(pairs[order][~is_target[order]], all_codes)[:num_context]
        is_shown = np.isin(codes, all_codes[contexts])
        return contexts, _different(pairs[~is_context & ~is_shown], all_codes)

    def has_new_options(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Whether each target is of options that no context has; everywhere where options cannot be compared."""
        if self._options is None:
            return np.ones(len(targets), dtype=bool)
        seen = self._options[contexts]
        return ~np.isin(self._options[targets], seen[seen >= 0]).any(axis=1)


def _different(pairs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The first of those that are the same, in their order."""
    _, first = np.unique(codes[pairs], return_index=True)
    return pairs[np.sort(first)]
