"""The protocol of an evaluation: at which numbers of context pairs users are evaluated, and on which targets."""

from dataclasses import dataclass, field

from np_trl.data.evaluation_tasks import EvaluationTasks
from np_trl.data.preference_rows import PreferenceRows
from np_trl.data.ranges import check_at_least, is_whole


# the fields of a protocol but its seed, which training arguments repeat with the prefix `eval_`
PROTOCOL_FIELDS = ("num_contexts", "num_targets", "num_draws", "disjoint_prompts", "shuffled_contexts", "group_column")
# draws of context and target sets, over all users, that an evaluation makes if `num_draws` is not set
MIN_DRAWS = 400


@dataclass(frozen=True)
class EvaluationProtocol:
    """
    How users are evaluated: at every N_C of `num_contexts`, on pairs that are not in the context.

    Args:
        num_contexts (`list[int]`, *optional*, defaults to `[0, 1, 3, 5, 10]`):
            Numbers of context pairs N_C. As many pairs as the largest are kept apart from the targets.
        num_targets (`int`, *optional*, defaults to `20`):
            Largest number of target pairs of a user in one draw.
        num_draws (`int`, *optional*):
            How often contexts and targets of a user are drawn. If not set, 4 times, and more often for less than 100 users.
        disjoint_prompts (`bool`, *optional*, defaults to `False`):
            Whether target pairs must have other prompts than the context pairs.
        shuffled_contexts (`list[int]`, *optional*):
            Values of `num_contexts` at which other users' contexts are shown too, as a control. The largest if not set.
        group_column (`str`, *optional*):
            Column that says which group a user is in. The accuracy of each group is reported too.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything drawn.

    Raises:
        `ValueError`: if a value is out of its range or of another type.
    """

    num_contexts: list[int] = field(
        default_factory=lambda: [0, 1, 3, 5, 10], metadata={"help": "Numbers of context pairs N_C."}
    )
    num_targets: int = field(default=20, metadata={"help": "Largest number of target pairs of a user in one draw."})
    num_draws: int | None = field(
        default=None,
        metadata={"help": "Draws of each user's contexts and targets. Default: 4, and more for less than 100 users."},
    )
    disjoint_prompts: bool = field(
        default=False, metadata={"help": "Whether targets must have other prompts than the context."}
    )
    shuffled_contexts: list[int] | None = field(
        default=None,
        metadata={
            "help": "Values of N_C at which other users' contexts are shown as a control. Default: the largest."
        },
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Column that says which group a user is in, to report each group too."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draws of contexts and targets."})

    def __post_init__(self):
        check_protocol("", **{name: getattr(self, name) for name in PROTOCOL_FIELDS})
        if self.shuffled_contexts is None:
            object.__setattr__(self, "shuffled_contexts", [max(self.num_contexts)])

    def tasks(self, rows: PreferenceRows) -> EvaluationTasks:
        """The tasks of an evaluation: every user at every N_C."""
        return self._tasks(rows, None)

    def control_tasks(self, rows: PreferenceRows) -> EvaluationTasks:
        """The tasks of the control: every user with the contexts of others."""
        return self._tasks(rows, self.shuffled_contexts)

    def _tasks(self, rows: PreferenceRows, shuffled_contexts: list[int] | None) -> EvaluationTasks:
        return EvaluationTasks(
            rows,
            num_contexts=self.num_contexts,
            num_targets=self.num_targets,
            seed=self.seed,
            shuffled_contexts=shuffled_contexts,
            num_draws=max(4, -(-MIN_DRAWS // len(rows))) if self.num_draws is None else self.num_draws,
            disjoint_prompts=self.disjoint_prompts,
        )

    def groups(self, rows: PreferenceRows) -> list[str] | None:
        """The group of each user; `None` without a `group_column`."""
        return None if self.group_column is None else rows.groups(self.group_column)

    def as_arguments(self) -> dict:
        """The protocol as training arguments, `eval_num_contexts` and the like, but for its seed."""
        return {f"eval_{name}": getattr(self, name) for name in PROTOCOL_FIELDS}

    def required_pairs(self, drop_short_users: bool) -> int:
        """Pairs that a user needs: at the smallest N_C where short users are left out elsewhere, else at the largest."""
        return (min if drop_short_users else max)(self.num_contexts) + 1


def check_protocol(
    prefix: str,
    num_contexts: list[int],
    num_targets: int,
    num_draws: int | None,
    disjoint_prompts: bool,
    shuffled_contexts: list[int] | None,
    group_column: str | None,
) -> None:
    """
    Check the fields of an [`EvaluationProtocol`].

    Args:
        prefix (`str`):
            What their names begin with in an error, such as `"eval_"` for training arguments.

    Raises:
        `ValueError`: if a value is out of its range or of another type.
    """
    for name, number in (("num_targets", num_targets), ("num_draws", num_draws)):
        if number is not None or name == "num_targets":
            check_at_least(1, **{f"{prefix}{name}": number})
    if not isinstance(disjoint_prompts, bool):
        raise ValueError(f"`{prefix}disjoint_prompts={disjoint_prompts!r}` must be `True` or `False`.")
    if not isinstance(group_column, (str, type(None))):
        raise ValueError(f"`{prefix}group_column={group_column!r}` must be the name of a column, or `None`.")
    _check_numbers(f"{prefix}num_contexts", num_contexts)
    if len(num_contexts) == 0:
        raise ValueError(f"`{prefix}num_contexts=[]` must hold at least one number, each 0 or more.")
    if shuffled_contexts is None:
        return
    _check_numbers(f"{prefix}shuffled_contexts", shuffled_contexts)
    if not set(shuffled_contexts) <= set(num_contexts):
        raise ValueError(
            f"`{prefix}shuffled_contexts={shuffled_contexts}` must be among `{prefix}num_contexts={num_contexts}`."
        )


def _check_numbers(name: str, values: list[int]) -> None:
    if not isinstance(values, (list, tuple)) or not all(is_whole(value) and value >= 0 for value in values):
        raise ValueError(f"`{name}={values!r}` must be a list of whole numbers, each 0 or more, such as [0, 1, 3].")
