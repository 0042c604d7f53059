"""Evaluation of a reward model on users."""

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn

from np_trl.data import ContextualCollator, EmbeddingTargets, EvaluationProtocol, PreferenceRows
from np_trl.data.embeddings import add_option_ids
from np_trl.data.user_selection import UserSelection
from np_trl.data.validation import check_embeddings
from np_trl.evaluation.user_evaluation import UserEvaluation
from np_trl.trainer.latent_objectives import joint_log_likelihood, mean_log_likelihood, predictive_margins
from np_trl.trainer.trl_loss import LossRecord, evaluation_noise


# samples of each Gaussian latent, over which probabilities are averaged: the default of the trainer
NUM_LATENT_SAMPLES = 64


class RewardEvaluation(UserEvaluation):
    """
    A reward model, and the users of an evaluation.

    Args:
        model ([`NPRewardModel`]):
            The reward model.
        rows ([`PreferenceRows`]):
            Embedded pairs.
        protocol ([`EvaluationProtocol`]):
            How users are evaluated.
        kwargs:
            Passed to [`UserEvaluation`].
    """

    def __init__(self, model: nn.Module, rows: PreferenceRows, protocol: EvaluationProtocol, **kwargs):
        config = model.config
        collator = ContextualCollator(EmbeddingTargets(), config.option_ids, config.embed_size)
        super().__init__(model, rows, protocol, collator, **kwargs)

    @classmethod
    def of_users(
        cls,
        model: nn.Module,
        users: Dataset,
        protocol: EvaluationProtocol,
        selection: UserSelection,
        batch_size: int,
        accelerator: Accelerator,
    ) -> "RewardEvaluation":
        """Check the pairs of users, and evaluate a reward model on them."""
        if model.config.option_ids and "chosen" in users.column_names:
            users = add_option_ids(users)
        check_embeddings(users, "eval", model.config.embed_size)
        users, _ = selection.select(users, "eval")
        return cls(model, PreferenceRows(users), protocol, batch_size=batch_size, accelerator=accelerator)

    def predict(self, batch: dict[str, torch.Tensor]) -> LossRecord:
        inputs = {
            key: value for key, value in batch.items() if key not in ("conditions", "new_options", "target_rows")
        }
        record = LossRecord(len(batch["context_index"]) // 2)
        if not self.model.has_gaussian_latents:
            record.keep(self.model.choice_logits(self.model(**inputs)))
            return record
        latent_size = self.model.config.context_config.latent_size
        noise = evaluation_noise(self.protocol.seed, NUM_LATENT_SAMPLES, latent_size).to(self.model.device)
        margins = self.model.choice_logits(self.model(**inputs, latent_noise=noise))  # (S, P)
        users = batch["context_index"][: record.num_pairs]
        record.joint = mean_log_likelihood(joint_log_likelihood(margins, users, len(batch["conditions"])))
        record.keep(predictive_margins(margins))
        return record
