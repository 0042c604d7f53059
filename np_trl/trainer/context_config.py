"""Training arguments that both trainers add to TRL's: how tasks are drawn, and how users are evaluated."""

from dataclasses import dataclass, field

from np_trl.data import TaskSampling


@dataclass
class ContextConfigMixin:
    """
    Arguments of contextual training. Batch sizes count tasks.

    Args:
        num_targets (`int`, *optional*, defaults to `9`):
            Number of target pairs N_T of a task.
        min_context (`int`, *optional*, defaults to `0`), max_context (`int`, *optional*, defaults to `6`):
            Bounds of the number of context pairs N_C, which each task draws uniformly.
        context_in_target (`bool`, *optional*, defaults to `True`):
            Whether the context set is a part of the target set, or disjoint from it. Evaluation is always disjoint.
        drop_short_users (`bool`, *optional*, defaults to `False`):
            Whether to leave out users with too few pairs for a task, or to raise. In evaluation a user is left out at
            those numbers of context pairs that leave no target.
        drop_ties (`bool`, *optional*, defaults to `False`):
            Whether to leave out pairs of identical options, or to raise.
        eval_num_contexts (`list[int]`, *optional*, defaults to `[0, 1, 3, 5, 10]`):
            Numbers of context pairs at which users are evaluated.
        eval_shuffled_contexts (`list[int]`, *optional*):
            Those of them at which other users' contexts are shown too, as a control. The largest one if not set.
        eval_num_targets (`int`, *optional*, defaults to `20`):
            Largest number of target pairs of a user in one draw of the evaluation.
        eval_num_draws (`int`, *optional*, defaults to `1`):
            How often contexts and targets of a user are drawn in evaluation. For few users with many pairs.
        eval_disjoint_prompts (`bool`, *optional*, defaults to `False`):
            Whether target pairs must, in evaluation, have other prompts than the context pairs.
        eval_group_column (`str`, *optional*):
            Column of the evaluation set that says which group a user is in. The accuracy of each is reported too.
    """

    num_targets: int = field(default=9, metadata={"help": "Number of target pairs N_T of a task."})
    min_context: int = field(default=0, metadata={"help": "Smallest number of context pairs N_C of a task."})
    max_context: int = field(default=6, metadata={"help": "Largest number of context pairs N_C of a task."})
    context_in_target: bool = field(
        default=True,
        metadata={"help": "Whether the context set is a part of the target set (True) or disjoint from it (False)."},
    )
    drop_short_users: bool = field(
        default=False,
        metadata={"help": "Whether to leave out users with too few pairs for a task, instead of raising an error."},
    )
    drop_ties: bool = field(
        default=False,
        metadata={"help": "Whether to leave out pairs of identical options, instead of raising an error."},
    )
    eval_num_contexts: list[int] = field(
        default_factory=lambda: [0, 1, 3, 5, 10],
        metadata={"help": "Numbers of context pairs N_C at which users are evaluated."},
    )
    eval_shuffled_contexts: list[int] | None = field(
        default=None,
        metadata={
            "help": "Values of N_C at which other users' contexts are shown as a control. Default: the largest."
        },
    )
    eval_num_targets: int = field(
        default=20, metadata={"help": "Largest number of target pairs of a user in one draw of the evaluation."}
    )
    eval_num_draws: int = field(
        default=1, metadata={"help": "How often contexts and targets of a user are drawn in evaluation."}
    )
    eval_disjoint_prompts: bool = field(
        default=False, metadata={"help": "Whether targets must, in evaluation, have other prompts than the context."}
    )
    eval_group_column: str | None = field(
        default=None,
        metadata={"help": "Column that says which group a user is in. The accuracy of each group is reported too."},
    )

    def __post_init__(self):
        self.output_dir = self.output_dir or None  # an empty one is none
        super().__post_init__()
        self._share_out_streams()
        self._check_at_least("num_targets", 1)
        self._check_at_least("eval_num_targets", 1)
        self._check_at_least("eval_num_draws", 1)
        self._check_at_least("min_context", 0)
        self._check_at_least("max_context", 0)
        for name in ("context_in_target", "drop_short_users", "drop_ties", "eval_disjoint_prompts"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}={getattr(self, name)!r}` must be `True` or `False`.")
        if not isinstance(self.eval_group_column, (str, type(None))):
            raise ValueError(
                f"`eval_group_column={self.eval_group_column!r}` must be the name of a column, or `None`."
            )
        if self.min_context > self.max_context:
            raise ValueError(
                f"`min_context={self.min_context}` exceeds `max_context={self.max_context}`. Lower `min_context` or raise "
                "`max_context`."
            )
        if self.context_in_target and self.max_context > self.num_targets:
            raise ValueError(
                f"`max_context={self.max_context}` exceeds `num_targets={self.num_targets}`, but the context set is drawn "
                "from the target set. Lower `max_context`, raise `num_targets`, or set `context_in_target=False`."
            )
        self._check_numbers("eval_num_contexts")
        if len(self.eval_num_contexts) == 0:
            raise ValueError("`eval_num_contexts=[]` must hold at least one number, each 0 or more.")
        if self.eval_shuffled_contexts is None:
            self.eval_shuffled_contexts = [max(self.eval_num_contexts)]
        self._check_numbers("eval_shuffled_contexts")
        if not set(self.eval_shuffled_contexts) <= set(self.eval_num_contexts):
            raise ValueError(
                f"`eval_shuffled_contexts={self.eval_shuffled_contexts}` must be among "
                f"`eval_num_contexts={self.eval_num_contexts}`."
            )

    @property
    def task_sampling(self) -> TaskSampling:
        """How training tasks are drawn."""
        return TaskSampling(self.min_context, self.max_context, self.num_targets, self.context_in_target)

    def _share_out_streams(self) -> None:
        """Let every process read its own tasks of a stream, instead of one process that cuts batches into pieces."""
        if self.accelerator_config.dispatch_batches:
            raise ValueError(
                "`accelerator_config={'dispatch_batches': True}` cuts batches into pieces of equal numbers of rows, but the "
                "tensors of a batch of tasks have rows of users, of pairs and of options. Leave `dispatch_batches` out."
            )
        self.accelerator_config.dispatch_batches = False

    def _check_at_least(self, name: str, limit: int) -> None:
        value = getattr(self, name)
        if not _is_whole(value):
            raise ValueError(f"`{name}={value!r}` must be a whole number, such as {limit}.")
        if value < limit:
            raise ValueError(f"`{name}={value}` must be at least {limit}.")

    def _check_numbers(self, name: str) -> None:
        values = getattr(self, name)
        if not isinstance(values, (list, tuple)) or not all(_is_whole(value) and value >= 0 for value in values):
            raise ValueError(
                f"`{name}={values!r}` must be a list of whole numbers, each 0 or more, such as [0, 1, 3]."
            )


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
