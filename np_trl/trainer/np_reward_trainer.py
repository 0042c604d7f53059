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
from np_trl.models.weights import read_path
from np_trl.trainer.contextual_trainer import ContextualTrainerMixin
from np_trl.trainer.model_card import describe_context_encoder, public_name
from np_trl.trainer.np_reward_config import NPRewardConfig
from np_trl.trainer.trl_loss import RewardLossMixin


logger = logging.getLogger(__name__)


class NPRewardTrainer(RewardLossMixin, ContextualTrainerMixin, RewardTrainer):
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
            data_collator=ContextualCollator(EmbeddingTargets(), self._option_ids, model.config.embed_size),
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


def _empty_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that TRL's reward trainer asks for: a padding token and nothing else."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>")
