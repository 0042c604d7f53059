"""Evaluation of users in a trainer: the layout of predictions, the control, and the curve over numbers of context pairs."""

from collections import defaultdict

import numpy as np
import torch
from transformers import EvalPrediction

from np_trl.data import EvaluationProtocol, EvaluationTasks
from np_trl.metrics import num_context_curve
from np_trl.trainer.trl_loss import LossRecord


def lay_out_targets(
    record: LossRecord, batch: dict[str, torch.Tensor], num_targets: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Lay out the log-odds of a batch of P pairs by the tasks of its U users: what [`num_context_curve`] takes as predictions.

    Args:
        record ([`LossRecord`]):
            The log-odds.
        batch (`dict[str, torch.Tensor]`):
            A batch of the [`ContextualCollator`], with `conditions`.
        num_targets (`int`):
            Largest number of targets T of a task.

    Returns:
        `tuple` of three `torch.Tensor`: margins `(U, T)`, NaN where there is no target; log-likelihoods of all targets of a
        task together `(U,)`; and whether a target is of options that no context has `(U, T)`.

    Raises:
        `ValueError`: if a task has more targets, or log-odds are not finite.
    """
    margins, num_users = record.margins, len(batch["conditions"])
    users = batch["context_index"][: len(margins)].to(margins.device)  # (P,)
    first = torch.searchsorted(users, torch.arange(num_users, device=users.device))  # (U,)
    targets = torch.arange(len(users), device=users.device) - first[users]  # position of a pair in its task
    if targets.max() >= num_targets:
        raise ValueError(
            f"A streamed evaluation task has {int(targets.max()) + 1} targets, more than "
            f"`eval_num_targets={num_targets}`. Raise `eval_num_targets`, or leave targets out."
        )
    laid = margins.new_full((num_users, num_targets), torch.nan)
    new_options = torch.zeros_like(laid, dtype=torch.bool)
    laid[users, targets] = margins
    joint = torch.nn.functional.logsigmoid(laid).nansum(dim=1) if record.joint is None else record.joint
    # a margin would be left out as if there were no target
    if not (margins.isfinite().all() and joint.isfinite().all()):
        raise ValueError(
            "The log-odds of some choices are not finite, so the model has diverged or overflows in its precision. Lower the "
            "learning rates, or evaluate in float32."
        )
    new_options[users, targets] = batch["new_options"].to(users.device)
    return laid, joint.to(laid), new_options


def control_metrics(metrics: dict[str, float], protocol: EvaluationProtocol, prefix: str) -> dict[str, float]:
    """
    Name the metrics of the control, in which users are shown with the contexts of others.

    Args:
        metrics (`dict[str, float]`):
            Metrics of the [`EvaluationProtocol.control_tasks`], such as `nc10_accuracy`.
        protocol ([`EvaluationProtocol`]):
            With the numbers of contexts of the control.
        prefix (`str`):
            What the metrics of the evaluation begin with, such as `"eval"`.

    Returns:
        `dict[str, float]`: `{prefix}_nc{N}_shuffled_accuracy` and its standard error.
    """
    found = {}
    for num_context in protocol.shuffled_contexts:
        for key in ("accuracy", "accuracy_se"):
            if f"nc{num_context}_{key}" in metrics:
                found[f"{prefix}_nc{num_context}_shuffled_{key}"] = metrics[f"nc{num_context}_{key}"]
    return found


class UserEvaluationMixin:
    """
    Mix into a trainer with [`PairLossMixin`]: `evaluate` follows the [`EvaluationProtocol`] of the arguments. The loss and
    TRL's metrics come from the same pass.
    """

    # the group of each user of the set that is evaluated
    _groups: list[str] | None = None

    # Override: after the evaluation, the control in which every user is shown with others' contexts. Its loss and
    # TRL's metrics on it are left out.
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        tasks, protocol, self._groups = dataloader.dataset, self.args.evaluation_protocol, None
        if isinstance(tasks, EvaluationTasks):
            self._groups = protocol.groups(tasks.rows)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if isinstance(tasks, EvaluationTasks) and protocol.shuffled_contexts:
            shuffled = protocol.control_tasks(tasks.rows)
            if len(shuffled) == 0:  # nobody has enough pairs, or there is nobody else
                return output
            metrics, self._metrics["eval"] = self._metrics["eval"], defaultdict(list)
            dataloader = self._get_dataloader(shuffled, description, self.args.eval_batch_size)
            try:
                control = super().evaluation_loop(
                    dataloader, description, prediction_loss_only, ignore_keys, "control"
                )
            finally:
                self._metrics["eval"] = metrics
            control = {key.removeprefix("control_"): value for key, value in control.metrics.items()}
            output.metrics.update(control_metrics(control, protocol, metric_key_prefix))
        return output

    # Override: return what `num_context_curve` takes: margins, joint log-likelihoods and which options are new as
    # predictions, conditions as labels.
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, _, _ = super().prediction_step(model, inputs, prediction_loss_only=True, ignore_keys=ignore_keys)
        targets = lay_out_targets(self.record, inputs, self.args.eval_num_targets)
        return loss, targets, inputs["conditions"].to(loss.device)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute our metrics and, beside them, those of the `compute_metrics` that was passed."""
        prediction = _drop_repeated_tasks(_join_batches(prediction))
        metrics = num_context_curve(prediction, self._groups)
        others = {} if self._user_metrics is None else self._user_metrics(prediction)
        if both := sorted(metrics.keys() & others.keys()):
            raise ValueError(f"`compute_metrics` returns {both}, which np_trl reports too. Give them other names.")
        return {**metrics, **others}


def _join_batches(prediction: EvalPrediction) -> EvalPrediction:
    """Join what `eval_do_concat_batches=False` leaves apart."""
    if not isinstance(prediction.label_ids, list):
        return prediction
    predictions = tuple(np.concatenate(parts) for parts in zip(*prediction.predictions, strict=True))
    return EvalPrediction(predictions, np.concatenate(prediction.label_ids))


def _drop_repeated_tasks(prediction: EvalPrediction) -> EvalPrediction:
    """Leave out the streamed tasks that were repeated so that all processes have equally many."""
    conditions = prediction.label_ids  # (tasks, 2), or (tasks, 3) of a stream
    if conditions.shape[1] == 2:
        return prediction
    _, first = np.unique(conditions[:, 2], return_index=True)
    return EvalPrediction(tuple(values[first] for values in prediction.predictions), conditions[first, :2])
