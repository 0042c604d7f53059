"""Tokenised preference pairs for a policy's trainer: TRL's preparation, on rows of users and on rows that are tasks."""

import logging
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset, disable_progress_bars, enable_progress_bars, load_from_disk

from np_trl.data import PreferenceRows
from np_trl.data.distinct_options import DistinctOptions
from np_trl.data.task_stream import check_tasks
from np_trl.models.text_context import check_end_token
from np_trl.models.texts import SIDES
from np_trl.trainer.token_ties import drop_token_ties, find_token_ties


logger = logging.getLogger(__name__)


REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


class TokenizingTrainerMixin:
    """Mix into a trainer of a policy, before [`ContextualTrainerMixin`]."""

    # Override: check the rows, and tokenise rows that are tasks already.
    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        self._check_dataset(dataset, dataset_name)
        if isinstance(dataset, IterableDataset):
            return check_tasks(dataset, dataset_name, ("prompt", *SIDES)).map(
                self._tokenize_tasks,
                fn_kwargs={"processing_class": processing_class, "args": args, "name": dataset_name},
                batched=True,
                batch_size=16,
            )
        if dataset._fingerprint in self._prepared:
            return dataset
        dataset = self._select_users(dataset, args, dataset_name, SIDES)
        prepared = self._tokenize(dataset, processing_class, args, dataset_name)
        kept = drop_token_ties(prepared, args.max_length, args.truncation_mode, args.drop_ties, dataset_name)
        if len(kept) < len(prepared):
            kept = self._select_by_counts(kept, args, dataset_name)
        return self._remember(kept)

    def _read_rows(self, dataset: Dataset) -> PreferenceRows:
        # of which pairs that are alike once truncated are one
        return PreferenceRows(dataset, self.args.max_length, self.args.truncation_mode)

    @cached_property
    def _prepared(self) -> set[str]:
        """Fingerprints of the datasets that this trainer prepared itself. Columns of the same names may be another's."""
        return set()

    def _remember(self, dataset: Dataset) -> Dataset:
        self._prepared.add(dataset._fingerprint)
        return dataset

    def _tokenize(self, dataset: Dataset, processing_class, args, name: str) -> Dataset:
        """Tokenise pairs with TRL's own preparation."""
        if isinstance(dataset[0]["chosen"], str):
            check_end_token(processing_class)
            if name == "train" and getattr(processing_class, "chat_template", None):
                logger.warning(
                    "The pairs are strings, so the chat template of the tokenizer is not used, and after a bare prompt a chat "
                    "model may write nothing. Pass conversations (lists of messages), or `--conversational true`."
                )
        prepared = super()._prepare_dataset(dataset, processing_class, args, name)
        if len(prepared) < len(dataset):
            raise ValueError(
                f"{len(dataset) - len(prepared)} of {len(dataset)} prompts of the {name} dataset fill "
                f"`max_length={args.max_length}` and leave no room for the completion. Raise `max_length`, shorten the "
                'prompts, or set `truncation_mode="keep_end"`.'
            )
        return prepared

    def _tokenize_tasks(self, tasks: dict[str, list], processing_class, args, name: str) -> dict[str, list]:
        """Tokenise the target pairs of a batch of tasks."""
        pairs = [pair for target in tasks["target"] for pair in target]
        if not pairs:
            return tasks
        disable_progress_bars()
        try:
            prepared = self._tokenize(Dataset.from_list(pairs), processing_class, args, name)
        finally:
            enable_progress_bars()
        ties = set(find_token_ties(prepared, args.max_length, args.truncation_mode, args.drop_ties, name))
        tokenized = iter(prepared.to_list())
        targets = [[next(tokenized) for _ in target] for target in tasks["target"]]
        if ties:
            numbers = iter(range(len(pairs)))
            targets = [[pair for pair in target if next(numbers) not in ties] for target in targets]
        kept = [index for index, target in enumerate(targets) if target]
        tasks = {**tasks, "target": targets}
        return {key: [values[index] for index in kept] for key, values in tasks.items()}

    # Override: batch sizes count tasks, of many sequences each.
    def train(self, *args, **kwargs):
        if isinstance(self.train_dataset, Dataset):
            self.accelerator.print(self._describe_step())
        return super().train(*args, **kwargs)

    def _describe_step(self) -> str:
        args = self.args
        users = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        longest = "" if args.max_length is None else f" of at most {args.max_length} tokens"
        return (
            f"A step: {users} users x {args.num_targets} pairs = {2 * users * args.num_targets} sequences{longest}. Fewer with "
            "`per_device_train_batch_size`, which counts users, or `num_targets`."
        )

    # Override: of options that recur the log-probs are computed once.
    def _precompute_ref_logps(self, dataset, name, batch_size):
        if not isinstance(dataset, Dataset) or self.ld_alpha is not None:  # by which they depend on the other option
            return self._compute_ref_logps(dataset, name, batch_size)
        distinct = DistinctOptions(dataset)
        if distinct.pairs is dataset:
            return self._compute_ref_logps(dataset, name, batch_size)
        computed = self._compute_ref_logps(distinct.pairs, name, batch_size).with_format("numpy")
        log_probs = distinct.spread(np.stack([computed[column][:] for column in REFERENCE_COLUMNS], axis=1))
        for side, column in enumerate(REFERENCE_COLUMNS):
            dataset = dataset.add_column(column, log_probs[:, side].tolist())
        return self._remember(dataset)

    def _compute_ref_logps(self, dataset: Dataset | IterableDataset, name: str, batch_size: int) -> Dataset:
        # TRL's processes exchange log-probs by a file beside that of the dataset, and one in memory has none that they share
        if self.accelerator.num_processes > 1 and isinstance(dataset, Dataset) and not dataset.cache_files:
            path = Path(self.args.output_dir, "_reference", name)  # which is not pushed
            if self.accelerator.is_main_process:
                dataset.save_to_disk(path)
            self.accelerator.wait_for_everyone()
            dataset = load_from_disk(path)
        # TRL's cache of log-probs knows the model by this hash, but not the lengths that tokens are cut to
        args, weights = self.args, self._precompute_model_hash
        self._precompute_model_hash = (weights, args.max_length, args.truncation_mode, args.ld_alpha)
        try:
            return self._remember(super()._precompute_ref_logps(dataset, name, batch_size))
        finally:
            self._precompute_model_hash = weights
