"""What the two trainers share: users become tasks at the dataloader, and evaluation runs over numbers of contexts."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, Sampler
from transformers import EvalPrediction

from np_trl.data import EvaluationTasks, PreferenceRows, TaskSampler, TrainingTasks
from np_trl.data.contextual_collator import pad_pairs
from np_trl.data.embedding_columns import EMBED_COLUMNS
from np_trl.data.pair_codes import TOKEN_COLUMNS
from np_trl.data.task_stream import TaskStream, stream_embeddings
from np_trl.data.validation import (
    check_embed_size,
    check_option_embeddings,
    check_preferences,
    drop_foreign_columns,
    drop_ties,
    leave_out_embedding_ties,
    read_embeddings,
    select_users,
)
from np_trl.metrics import num_context_curve
from np_trl.metrics.num_context_curve import check_group_names
from np_trl.models.layers import Standardizer
from np_trl.trainer.resumable_trainer import ResumableTrainerMixin
from np_trl.trainer.sharing_trainer import SharingTrainerMixin


class ContextualTrainerMixin(SharingTrainerMixin, ResumableTrainerMixin):
    """
    Mix into a TRL trainer of preference pairs.

    TRL sees flat rows, in their order, so its tokenisation, precomputed reference log-probs and cache work unchanged.
    Tasks exist from the dataloader on: items are users, and the [`ContextualCollator`] draws their sets.
    """

    # margins of the last batch: log-odds of each chosen option, (P,)
    _margins: torch.Tensor
    # number of target pairs of the last batch, without those that were repeated
    _num_pairs: int
    # log-likelihood of each user's targets together, (U,), where they are not independent given the margins
    _joint_log_likelihood: torch.Tensor | None = None
    # rows of the target pairs of the last batch in the set that is evaluated, (P,); none in training
    _target_rows: torch.LongTensor | None = None
    # the group of each user of the set that is evaluated
    _groups: list[str] | None = None

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

    def _select_users(self, dataset: Dataset, args, name: str, required: tuple[str, ...] = ()) -> Dataset:
        """
        Check a dataset and leave out ties and the users who are too short for a task, or raise. `required` are the columns
        of texts, where the model sees those too.
        """
        dataset = drop_foreign_columns(dataset, name)
        dataset = drop_ties(dataset, name) if args.drop_ties else dataset
        check_preferences(dataset, name, required)
        if set(EMBED_COLUMNS).isdisjoint(dataset.column_names):
            return self._select_by_counts(dataset, args, name)
        size, ties = read_embeddings(dataset, name)
        # of texts that differ they are ties in the context alone
        dataset = leave_out_embedding_ties(dataset, ties, name, drop=args.drop_ties or bool(required))
        check_option_embeddings(dataset, name, has_texts=bool(required))
        dataset = self._select_by_counts(dataset, args, name)
        self._checked[dataset._fingerprint] = size
        return dataset

    def _select_by_counts(self, dataset: Dataset, args, name: str) -> Dataset:
        if name != "train" and args.eval_group_column is not None:
            check_group_names(PreferenceRows(dataset).groups(args.eval_group_column))
        # a user who is dropped from the evaluation is dropped where it is too short, and kept where it is not
        num_context = min(args.eval_num_contexts) if args.drop_short_users else max(args.eval_num_contexts)
        required = args.task_sampling.required_pairs if name == "train" else num_context + 1
        return select_users(dataset, name, required, drop=args.drop_short_users, evaluation=name != "train")

    def _with_embeddings(self, dataset: Dataset, name: str) -> Dataset:
        """Return the dataset with embedding columns, checked once, since that reads all of them."""
        if dataset._fingerprint not in self._checked:
            size, ties = read_embeddings(dataset, name)
            if ties.any():
                has_texts = set(TOKEN_COLUMNS) <= set(dataset.column_names)
                dataset = leave_out_embedding_ties(dataset, ties, name, drop=self.args.drop_ties or has_texts)
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
        self._fit_standardizers()

    def _embed(self, dataset: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
        return dataset if isinstance(dataset, IterableDataset) else self._with_embeddings(dataset, name)

    def _fit_standardizers(self, max_rows: int = 50_000) -> None:
        standardizers = [
            module for module in self.model.modules() if isinstance(module, Standardizer) and not module.is_fitted
        ]
        batches = self._read_embeddings(max_rows) if standardizers else iter(())
        start = next(batches, None)
        if start is None:  # statistics are there, or the first tasks of a stream have no context
            return
        first, *others = standardizers
        first.fit(itertools.chain([start], batches))
        for standardizer in others:
            standardizer.load_state_dict(first.state_dict())

    def _read_embeddings(self, max_rows: int) -> Iterator[torch.Tensor]:
        """Embeddings of the training set, `(N, E)` at a time: of rows spread over all, or of the first tasks of a stream."""
        if isinstance(self.train_dataset, IterableDataset):
            yield from stream_embeddings(self.train_dataset, max_rows // 10)  # which may come from afar
            return
        rows = PreferenceRows(self.train_dataset)
        indices = range(0, len(self.train_dataset), -(-len(self.train_dataset) // max_rows))
        for start in range(0, len(indices), 1024):
            yield rows.embeds(indices[start : start + 1024]).flatten(0, 1)

    # Override: the one place through which training and evaluation sets pass on their way to the model.
    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ) -> DataLoader:
        if isinstance(dataset, Dataset):
            name = "train" if is_training else description.lower()
            rows = self._read_rows(self._with_embeddings(dataset, name))
            dataset = self._training_tasks(rows) if is_training else self.evaluation_tasks(rows)
        elif isinstance(dataset, IterableDataset):
            dataset = TaskStream(dataset)
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def _read_rows(self, dataset: Dataset) -> PreferenceRows:
        return PreferenceRows(dataset)

    def _training_tasks(self, rows: PreferenceRows) -> TrainingTasks:
        return TrainingTasks(rows, self.args.task_sampling, self._data_seed)

    def evaluation_tasks(self, rows: PreferenceRows, shuffled_contexts: list[int] | None = None) -> EvaluationTasks:
        """The tasks that `evaluate` draws from rows of users; with `shuffled_contexts`, those of the control."""
        return EvaluationTasks(
            rows,
            num_contexts=self.args.eval_num_contexts,
            num_targets=self.args.eval_num_targets,
            seed=self._data_seed,
            shuffled_contexts=shuffled_contexts,
            num_draws=self.args.eval_num_draws,
            disjoint_prompts=self.args.eval_disjoint_prompts,
        )

    # Override: after the evaluation, the control in which every user is shown with others' contexts. Its loss and
    # TRL's metrics on it are left out.
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        tasks, self._groups = dataloader.dataset, None
        if isinstance(tasks, EvaluationTasks) and self.args.eval_group_column is not None:
            self._groups = tasks.rows.groups(self.args.eval_group_column)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if isinstance(tasks, EvaluationTasks) and self.args.eval_shuffled_contexts:
            shuffled = self.evaluation_tasks(tasks.rows, self.args.eval_shuffled_contexts)
            if len(shuffled) == 0:  # nobody has enough pairs, or there is nobody else
                return output
            metrics, self._metrics["eval"] = self._metrics["eval"], defaultdict(list)
            dataloader = self._get_dataloader(shuffled, description, self.args.eval_batch_size)
            control = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, "control")
            self._metrics["eval"] = metrics
            for num_context in self.args.eval_shuffled_contexts:
                for key in ("accuracy", "accuracy_se"):
                    value = control.metrics.get(f"control_nc{num_context}_{key}")
                    if value is not None:
                        output.metrics[f"{metric_key_prefix}_nc{num_context}_shuffled_{key}"] = value
        return output

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    # Override: tasks come shuffled, and the epoch is part of what they hold.
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

    # Override: conditions and the like are for the metrics, not for the model. And TRL gathers a figure of every pair, for
    # which all processes must have the same number of them: in training they have, unless tasks are streamed; in an
    # evaluation users have what they have.
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {key: value for key, value in inputs.items() if key not in ("conditions", "new_options")}
        self._num_pairs = len(inputs["context_index"]) // 2
        may_differ = not self.model.training or isinstance(self.train_dataset, IterableDataset)
        if self.accelerator.num_processes > 1 and may_differ:
            sizes = torch.tensor([self._num_pairs], device=self.accelerator.device)
            sizes = self.accelerator.gather(sizes)
            if self.model.training and sizes.unique().numel() > 1:
                raise ValueError(
                    f"The tasks of one training step have {sizes.tolist()} target pairs in the processes, and their losses "
                    "would not count alike. Give every task of the streamed training set the same number of targets."
                )
            inputs = pad_pairs(inputs, int(sizes.max()))
        self._target_rows = inputs.pop("target_rows", None)
        outputs = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._margins = self._margins[: self._num_pairs]
        return outputs

    # Override: return what `num_context_curve` takes: margins, joint log-likelihoods and which options are new as
    # predictions, conditions as labels.
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, _, _ = super().prediction_step(model, inputs, prediction_loss_only=True, ignore_keys=ignore_keys)
        conditions = inputs["conditions"].to(loss.device)  # (U, 2)
        users = inputs["context_index"][: len(self._margins)].to(loss.device)  # (P,)
        first = torch.searchsorted(users, torch.arange(len(conditions), device=users.device))  # (U,)
        targets = torch.arange(len(users), device=users.device) - first[users]  # position of a pair in its task
        if targets.max() >= self.args.eval_num_targets:
            raise ValueError(
                f"A streamed evaluation task has {int(targets.max()) + 1} targets, more than "
                f"`eval_num_targets={self.args.eval_num_targets}`. Raise `eval_num_targets`, or leave targets out."
            )
        margins = loss.new_full((len(conditions), self.args.eval_num_targets), torch.nan)
        new_options = torch.zeros_like(margins, dtype=torch.bool)
        margins[users, targets] = self._margins.to(margins)
        joint = self._joint_log_likelihood
        if joint is None:
            joint = torch.nn.functional.logsigmoid(margins).nansum(dim=1)
        # a margin would be left out as if there were no target
        if not (self._margins.isfinite().all() and joint.isfinite().all()):
            raise ValueError(
                "The log-odds of some choices are not finite, so the model has diverged or overflows in its precision. Lower the "
                "learning rates, or evaluate in float32."
            )
        new_options[users, targets] = inputs["new_options"].to(users.device)
        return loss, (margins, joint.to(margins), new_options), conditions

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
