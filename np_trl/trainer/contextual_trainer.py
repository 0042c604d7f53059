"""The common part of the two trainers: users become tasks at the dataloader."""

from collections.abc import Iterator
from functools import cached_property

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, Sampler

from np_trl.data import PreferenceRows, TaskSampler, TrainingTasks
from np_trl.data.pair_codes import TOKEN_COLUMNS
from np_trl.data.task_stream import TaskStream, stream_embeddings
from np_trl.data.user_selection import UserSelection
from np_trl.data.validation import check_embed_size
from np_trl.metrics.num_context_curve import check_group_names
from np_trl.models.layers import fit_standardizers
from np_trl.trainer.divergence import DivergenceMixin
from np_trl.trainer.resumable_trainer import ResumableTrainerMixin
from np_trl.trainer.sharing_trainer import SharingTrainerMixin
from np_trl.trainer.user_evaluation import UserEvaluationMixin


class ContextualTrainerMixin(UserEvaluationMixin, SharingTrainerMixin, ResumableTrainerMixin, DivergenceMixin):
    """
    Mix into a TRL trainer of preference pairs.

    TRL sees flat rows, in their order, so its tokenisation, precomputed reference log-probs and cache work unchanged.
    Tasks exist from the dataloader on: items are users, and the [`ContextualCollator`] draws their sets.

    Both trainers resolve methods in this order, up to TRL's own trainer. The second column is what a class overrides, the
    third what it asks of the trainer's class:

        WarmStartMixin (policies)           train                                            load_context_encoder
        PolicyLossMixin or RewardLossMixin  compute_loss, evaluation_loop                    -
        TokenizingTrainerMixin (policies)   _prepare_dataset, _precompute_ref_logps, train   -
        ContextualTrainerMixin              _get_dataloader, _get_train_sampler              _embed_size, _read_rows
        UserEvaluationMixin                 evaluation_loop, prediction_step                 _user_metrics
        SharingTrainerMixin                 create_model_card, evaluate, _save               _card_facts, _settings
        UploadingTrainerMixin               save_metrics, _push_from_checkpoint              -
        ResumableTrainerMixin               train, _save_checkpoint, _init_training_state    _base_weights
        DivergenceMixin                     training_step                                    -
    """

    def _check_arguments(self, args, config_class: type) -> None:
        """Check the type of the training arguments, and what cannot be asked of an evaluation of users."""
        if not isinstance(args, config_class):
            raise TypeError(
                f"`args` is a {type(args).__name__}, but {type(self).__name__} takes `{config_class.__name__}`: the same fields, "
                "and those of tasks and users."
            )
        if args.batch_eval_metrics:
            raise ValueError(
                "`batch_eval_metrics=True` computes metrics batch by batch, but those of users need all of their pairs. Leave it out."
            )

    def _check_dataset(self, dataset, name: str) -> None:
        if not isinstance(dataset, (Dataset, IterableDataset)):
            raise TypeError(
                f"The {name} dataset is a {type(dataset).__name__}, but must be a `Dataset` or an `IterableDataset`, such as "
                "`Dataset.from_list(rows)`."
            )

    def _select_users(self, dataset: Dataset, args, name: str, text_columns: tuple[str, ...] = ()) -> Dataset:
        """Check a dataset, and leave out ties and users with too few pairs: [`UserSelection.select`]."""
        dataset, size = _selection(args, name).select(dataset, name, text_columns)
        if name != "train":
            check_group_names(args.evaluation_protocol.groups(PreferenceRows(dataset)) or [])
        if size is not None:
            self._checked[dataset._fingerprint] = size
        return dataset

    def _select_by_counts(self, dataset: Dataset, args, name: str) -> Dataset:
        return _selection(args, name).select_by_counts(dataset, name)

    def _with_embeddings(self, dataset: Dataset, name: str) -> Dataset:
        """Return the dataset with embedding columns, checked once, since that reads all of them."""
        if dataset._fingerprint not in self._checked:
            num_rows, has_texts = len(dataset), set(TOKEN_COLUMNS) <= set(dataset.column_names)
            size, dataset = _selection(self.args, name).check_embeddings(dataset, name, has_texts)
            if len(dataset) < num_rows:
                dataset = self._select_by_counts(dataset, self.args, name)
            self._checked[dataset._fingerprint] = size
        check_embed_size(self._checked[dataset._fingerprint], name, self._embed_size)
        return dataset

    @cached_property
    def _checked(self) -> dict[str, int]:
        """By their fingerprints, the sizes of the embeddings that were checked."""
        return {}

    @property
    def _embed_size(self) -> int:
        return self.accelerator.unwrap_model(self.model).config.context_config.embed_size

    def _set_up_contexts(self) -> None:
        """Embed the datasets, and take the statistics of the embeddings unless the model has some. After `__init__`."""
        self.train_dataset = self._embed(self.train_dataset, "train")
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: self._embed(dataset, name) for name, dataset in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = self._embed(self.eval_dataset, "eval")
        fit_standardizers(self.model, self._read_embeddings())  # where the model has no statistics yet

    def _embed(self, dataset: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
        return dataset if isinstance(dataset, IterableDataset) else self._with_embeddings(dataset, name)

    def _read_embeddings(self, max_rows: int = 50_000) -> Iterator[torch.Tensor]:
        """Embeddings of the training set, `(N, E)` at a time: of rows spread over all, or of the first tasks of a stream."""
        if isinstance(self.train_dataset, IterableDataset):
            yield from stream_embeddings(self.train_dataset, max_rows // 10)  # which may come from afar
            return
        yield from PreferenceRows(self.train_dataset).sample_embeds(max_rows)

    # Override: the one place through which training and evaluation sets pass on their way to the model.
    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ) -> DataLoader:
        if isinstance(dataset, Dataset):
            name = "train" if is_training else description.lower()
            rows = self._read_rows(self._with_embeddings(dataset, name))
            dataset = self._training_tasks(rows) if is_training else self.args.evaluation_protocol.tasks(rows)
        elif isinstance(dataset, IterableDataset):
            dataset = TaskStream(dataset)
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def _read_rows(self, dataset: Dataset) -> PreferenceRows:
        return PreferenceRows(dataset)

    def _training_tasks(self, rows: PreferenceRows) -> TrainingTasks:
        return TrainingTasks(rows, self.args.task_sampling, self.args.task_seed)

    # Override: tasks come shuffled, and depend on the epoch.
    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        if isinstance(train_dataset, TrainingTasks):
            return TaskSampler(len(train_dataset), epoch=lambda: int(self.state.epoch or 0))
        return super()._get_train_sampler(train_dataset)

    # Override: keep the columns of rows that are tasks already.
    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for column in ("user_id", "context", "target", "task_number"):
            if column not in self._signature_columns:
                self._signature_columns.append(column)


def _selection(args, name: str) -> UserSelection:
    """How the users of the training set, or of another, are selected by training arguments."""
    drops = (args.drop_short_users, args.drop_ties)
    if name == "train":
        return UserSelection.of_training(args.task_sampling, *drops)
    return UserSelection.of_evaluation(args.evaluation_protocol, *drops)
