"""Training arguments that both trainers add to TRL's: how tasks are drawn, and how users are evaluated."""

from dataclasses import dataclass, field

from np_trl.data import EvaluationProtocol, TaskSampling
from np_trl.data.evaluation_protocol import PROTOCOL_FIELDS, check_protocol
from np_trl.data.ranges import check_at_least


@dataclass
class ContextConfigMixin:
    """
    Arguments of contextual training. Batch sizes count tasks.

    Args:
        num_targets (`int`, *optional*, defaults to `9`):
            Number of target pairs N_T of a task.
        min_context (`int`, *optional*, defaults to `0`), max_context (`int`, *optional*, defaults to `6`):
            Bounds of the number of context pairs N_C, which each task draws uniformly; a user with few pairs draws at most as
            many as are left beside the targets.
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
        self._check_at_least("min_context", 0)
        self._check_at_least("max_context", 0)
        for name in ("context_in_target", "drop_short_users", "drop_ties"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}={getattr(self, name)!r}` must be `True` or `False`.")
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
        self._check_at_least("eval_num_draws", 1)
        check_protocol("eval_", **self._protocol_fields)
        if self.eval_shuffled_contexts is None:
            self.eval_shuffled_contexts = [max(self.eval_num_contexts)]

    @property
    def evaluation_protocol(self) -> EvaluationProtocol:
        """How users are evaluated."""
        return EvaluationProtocol(seed=self.task_seed, **self._protocol_fields)

    @property
    def _protocol_fields(self) -> dict:
        return {name: getattr(self, f"eval_{name}") for name in PROTOCOL_FIELDS}

    @property
    def task_seed(self) -> int:
        """The seed of tasks: `data_seed`, or `seed`."""
        return self.seed if self.data_seed is None else self.data_seed

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
        check_at_least(limit, **{name: getattr(self, name)})
