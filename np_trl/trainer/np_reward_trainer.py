"""NP-BTL training (Algorithm 1 of the paper) on TRL's reward trainer."""

import torch
from datasets import IterableDataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import RewardTrainer

from np_trl.data import ContextualCollator, EmbeddingTargets
from np_trl.models import NPRewardModel
from np_trl.trainer.contextual_trainer import ContextualTrainerMixin
from np_trl.trainer.np_reward_config import NPRewardConfig


class NPRewardTrainer(ContextualTrainerMixin, RewardTrainer):
    """
    Train an [`NPRewardModel`] on the embedded choices of many users.

    Args:
        model ([`NPRewardModel`] or `str`):
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
        model: NPRewardModel | str,
        args: NPRewardConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        compute_metrics=None,
        **kwargs,
    ):
        args = NPRewardConfig("NP-BTL") if args is None else args
        model = NPRewardModel.from_pretrained(model) if isinstance(model, str) else model
        self._user_metrics = compute_metrics
        super().__init__(
            model,
            args=args,
            data_collator=ContextualCollator(EmbeddingTargets(), args.task_sampling),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=_empty_tokenizer(),
            compute_metrics=self._compute_metrics,
            **kwargs,
        )
        self.processing_class = None  # options come embedded: there is no tokenizer to save
        self._set_up_contexts()

    # Override: options are embedded already.
    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset if isinstance(dataset, IterableDataset) else self._select_users(dataset, args, dataset_name)

    # Override: the loss is TRL's, of the log-odds that the model's head gives to each choice.
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        choice_logits = self.accelerator.unwrap_model(model).choice_logits

        def forward(**kwargs):
            outputs = model(**kwargs)
            margins = choice_logits(outputs)  # (P,)
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            correction = (margins - (chosen - rejected)) / 2  # zero for a Bradley-Terry head
            outputs.logits = outputs.logits + torch.cat([correction, -correction]).unsqueeze(-1)
            self._margins = margins.detach()
            return outputs

        return super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)


def _empty_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that TRL's reward trainer asks for: a padding token and nothing else."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>")
