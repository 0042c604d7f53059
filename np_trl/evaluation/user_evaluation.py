"""Evaluation of a model on users, without a trainer: what both kinds of model share."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EvalPrediction

from np_trl.data import ContextualCollator, EvaluationProtocol, EvaluationTasks, PreferenceRows
from np_trl.metrics import num_context_curve
from np_trl.trainer.trl_loss import LossRecord
from np_trl.trainer.user_evaluation import control_metrics, lay_out_targets


class UserEvaluation(ABC):
    """
    A model, and the users of an evaluation.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy or a reward model. It is put in evaluation mode, and runs where it is.
        rows ([`PreferenceRows`]):
            Pairs of the users, checked and embedded.
        protocol ([`EvaluationProtocol`]):
            How they are evaluated.
        collator ([`ContextualCollator`]):
            Makes the batches.
        batch_size (`int`, *optional*, defaults to `32`):
            Tasks that a process evaluates at once.
        accelerator ([`~accelerate.Accelerator`], *optional*):
            The processes, which share the tasks.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: PreferenceRows,
        protocol: EvaluationProtocol,
        collator: ContextualCollator,
        batch_size: int = 32,
        accelerator: Accelerator | None = None,
    ):
        self.model, self.rows, self.protocol = model.eval(), rows, protocol
        self.collator, self.batch_size = collator, batch_size
        self.accelerator = Accelerator() if accelerator is None else accelerator

    @abstractmethod
    def predict(self, batch: dict[str, torch.Tensor]) -> LossRecord:
        """Predict the choices of a batch of the [`ContextualCollator`], where the model is."""

    def evaluate(self, prefix: str = "eval") -> dict[str, float]:
        """
        Evaluate at every N_C, and the control.

        Args:
            prefix (`str`, *optional*, defaults to `"eval"`):
                What the metrics begin with.

        Returns:
            `dict[str, float]`: `{prefix}_nc{N}_accuracy` and the like, those of [`num_context_curve`], and
            `{prefix}_nc{N}_shuffled_accuracy`.

        Raises:
            `ValueError`: if no user has pairs enough, or log-odds are not finite.
        """
        groups = self.protocol.groups(self.rows)
        curve = num_context_curve(self._predict_tasks(self.protocol.tasks(self.rows)), groups)
        metrics = {f"{prefix}_{key}": value for key, value in curve.items()}
        control = self.protocol.control_tasks(self.rows) if self.protocol.shuffled_contexts else ()
        if len(control) == 0:  # none is asked for, or nobody has enough pairs, or there is nobody else
            return metrics
        shuffled = num_context_curve(self._predict_tasks(control), groups)
        return metrics | control_metrics(shuffled, self.protocol, prefix)

    @torch.no_grad()
    def _predict_tasks(self, tasks: EvaluationTasks) -> EvalPrediction:
        loader = DataLoader(tasks, batch_size=self.batch_size, collate_fn=self.collator)
        loader = self.accelerator.prepare_data_loader(loader, device_placement=False)
        parts = []
        for batch in tqdm(loader, desc="Evaluating", disable=not self.accelerator.is_main_process):
            record = self.predict(send_to_device(batch, self.model.device))
            found = (*lay_out_targets(record, batch, self.protocol.num_targets), batch["conditions"])
            found = tuple(values.to(self.accelerator.device) for values in found)
            parts.append([values.cpu().numpy() for values in self.accelerator.gather_for_metrics(found)])
        *predictions, conditions = (np.concatenate(part) for part in zip(*parts, strict=True))
        return EvalPrediction(tuple(predictions), conditions)
