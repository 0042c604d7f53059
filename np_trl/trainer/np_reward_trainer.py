"""NP-BTL training (Algorithm 1 of the paper) on TRL's reward trainer."""

import logging
import os
from pathlib import Path

import torch
from datasets import IterableDataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import RewardTrainer

from np_trl.data import ContextualCollator, EmbeddingTargets
from np_trl.data.preference_rows import ID_COLUMNS
from np_trl.data.task_stream import check_tasks
from np_trl.models import NPRewardModel
from np_trl.models.modeling_np_reward import NPRewardOutput
from np_trl.models.weights import read_path
from np_trl.trainer.contextual_trainer import ContextualTrainerMixin
from np_trl.trainer.latent_objectives import (
    joint_log_likelihood,
    latent_loss,
    mean_log_likelihood,
    predictive_margins,
    target_sets,
)
from np_trl.trainer.model_card import describe_context_encoder, public_name
from np_trl.trainer.np_reward_config import NPRewardConfig


logger = logging.getLogger(__name__)


class NPRewardTrainer(ContextualTrainerMixin, RewardTrainer):
    """
    Train an [`NPRewardModel`] on the embedded choices of many users.

    Args:
        model ([`NPRewardModel`], `str` or `os.PathLike`):
            The reward model, or the path of one.
        args ([`NPRewardConfig`], *optional*):
            Training arguments.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Preference pairs with `user_id`, `chosen_embeds` and `rejected_embeds`; or, iterable, tasks with `user_id`,
            `context` and `target`.
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*):
            The same, of other users. Evaluated at every N_C of `eval_num_contexts`, on pairs that are not in the context.
        compute_metrics (`Callable`, *optional*):
            Further metrics, of margins and conditions as in [`num_context_curve`].
        processing_class (*optional*):
            Not used: options come embedded. TRL's scripts pass one to every trainer.
        kwargs:
            Passed to [`~trl.RewardTrainer`].

    Example:
    ```python
    >>> trainer = NPRewardTrainer(NPRewardModel(NPRewardModelConfig(embed_size=384)), train_dataset=dataset)
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "np-btl"]
    _name = "NP-BTL"

    def __init__(
        self,
        model: NPRewardModel | str | os.PathLike,
        args: NPRewardConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        compute_metrics=None,
        processing_class=None,
        **kwargs,
    ):
        if processing_class is not None:
            logger.warning("`processing_class` is not used: the options of an NP-BTL model come embedded.")
        if kwargs.get("data_collator") is not None:
            raise ValueError("`data_collator` cannot be replaced: it draws the tasks of the users. Leave it out.")
        args = NPRewardConfig("NP-BTL") if args is None else args
        self._check_arguments(args, NPRewardConfig)
        model = model if isinstance(model, torch.nn.Module) else NPRewardModel.from_pretrained(read_path(model))
        self._user_metrics = compute_metrics
        self._option_ids = model.config.option_ids
        super().__init__(
            model,
            args=args,
            data_collator=ContextualCollator(
                EmbeddingTargets(), args.task_sampling, self._option_ids, model.config.embed_size
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=_empty_tokenizer(),
            compute_metrics=self._compute_metrics,
            **kwargs,
        )
        self.processing_class = None  # options come embedded: there is no tokenizer to save
        self._set_up_contexts()

    @property
    def _embed_size(self) -> int:
        return self.accelerator.unwrap_model(self.model).config.embed_size

    def _card_facts(self) -> dict:
        config = self.accelerator.unwrap_model(self.model).config
        embedder = config.embedder
        return {
            "kind": "reward",
            "base": None if embedder is None else embedder["name_or_path"],
            "base_revision": None if embedder is None else embedder["revision"],
            "embedder": None
            if embedder is None
            else {**embedder, "name_or_path": public_name(embedder["name_or_path"])},
            "embed_size": config.embed_size,
            "conditional": config.conditional,
        }

    def _settings(self) -> dict:
        model = self.accelerator.unwrap_model(self.model)
        config = model.config
        fields = ("head", "embed_size", "hidden_size", "dropout", "embed_dropout")
        settings = super()._settings() | {name: getattr(config, name) for name in fields}
        if model.has_gaussian_latents:
            names = ("latent_objective", "kl_weight", "num_latent_samples")
            settings |= {name: getattr(self.args, name) for name in names}
        return settings | (describe_context_encoder(config.context_config) if config.conditional else {})

    def push_to_hub(self, *args, **kwargs):
        """Share the reward model: [`~transformers.Trainer.push_to_hub`]. Its embedder is named, not pushed."""
        embedder = self.accelerator.unwrap_model(self.model).config.embedder
        if embedder is not None and Path(embedder["name_or_path"]).is_dir():
            logger.warning(
                "The embedder is the folder %r, which nobody else has: the model will score no texts elsewhere. Push the "
                "embedder too, and name it in `model.config.embedder`.", embedder["name_or_path"],
            )  # fmt: skip
        return super().push_to_hub(*args, **kwargs)

    # Override: options are embedded already.
    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        self._check_dataset(dataset, dataset_name)
        if isinstance(dataset, IterableDataset):
            return check_tasks(dataset, dataset_name)
        missing = [column for column in ID_COLUMNS if column not in dataset.column_names]
        if self._option_ids and missing:
            logger.warning(
                "The %s dataset has no %s column, so all its options go without the learned vectors that the model has "
                "for %d of them.", dataset_name, missing, len(self._option_ids),
            )  # fmt: skip
        return self._select_users(dataset, args, dataset_name)

    # Override: the loss is TRL's, of the log-odds that the model's head gives to each choice; with Gaussian latents, of
    # the log-odds of its mean probability, and in training the objective that was named.
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        reward_model = self.accelerator.unwrap_model(model)
        gaussian = reward_model.has_gaussian_latents
        if gaussian:
            inputs = {**inputs, **self._latent_inputs(reward_model, inputs)}
        objective = None

        def forward(**kwargs):
            nonlocal objective
            outputs = model(**kwargs)
            margins = reward_model.choice_logits(outputs)  # (P,) or (S, P)
            if gaussian:
                objective = self._latent_loss(reward_model, inputs, outputs, margins)
                margins, outputs.logits = predictive_margins(margins), outputs.logits.mean(dim=0)
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            correction = (margins - (chosen - rejected)) / 2  # zero for a Bradley-Terry head
            outputs.logits = outputs.logits + torch.cat([correction, -correction]).unsqueeze(-1)
            self._margins = margins.detach()
            return outputs

        loss, outputs = super().compute_loss(forward, inputs, True, num_items_in_batch)
        if gaussian and self.model.training:
            loss = objective
        return (loss, outputs) if return_outputs else loss

    def _latent_inputs(self, model: NPRewardModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Draw noise for samples of the latents, the same for all users of an evaluation; lay out target sets."""
        embeds, latent_size = inputs["context_embeds"], model.config.context_config.latent_size
        if not self.model.training:
            generator = torch.Generator().manual_seed(self._data_seed)
            noise = torch.randn(self.args.eval_num_latent_samples, 1, latent_size, generator=generator)
            return {"latent_noise": noise.to(embeds.device)}
        noise = torch.randn(self.args.num_latent_samples, len(embeds), latent_size, device=embeds.device)
        sets = target_sets(inputs, self.args.context_in_target) if self.args.latent_objective == "elbo" else {}
        return {"latent_noise": noise, **sets}

    def _latent_loss(self, model: NPRewardModel, inputs, outputs: NPRewardOutput, margins: torch.Tensor):
        users = inputs["context_index"][: self._num_pairs]  # (P,)
        num_users = len(inputs["context_mask"])
        log_likelihood = joint_log_likelihood(margins[:, : self._num_pairs], users, num_users)  # (S, U)
        self._joint_log_likelihood = mean_log_likelihood(log_likelihood).detach()
        if not self.model.training:
            return None
        return latent_loss(
            self.args.latent_objective,
            log_likelihood,
            outputs,
            torch.bincount(users, minlength=num_users),
            model.config.context_config.memory_size,
            self.args.kl_weight,
        )


def _empty_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that TRL's reward trainer asks for: a padding token and nothing else."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>")
