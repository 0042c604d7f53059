"""A trainer that survives being killed: it resumes from the newest checkpoint of its own run that is whole."""

import logging
import os
from pathlib import Path
from uuid import uuid4

from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from np_trl.trainer.checkpoints import (
    SEAL,
    damaged_files,
    is_sealed,
    is_unfinished,
    last_start,
    open_checkpoint,
    read_run,
    remove_old_checkpoints,
    seal_checkpoint,
    whole_checkpoints,
)
from np_trl.trainer.film_adapter import FiLMPeftModel
from np_trl.trainer.run_facts import complete_facts, describe_run, find_differences, show_differences


logger = logging.getLogger(__name__)


class ResumableTrainerMixin:
    """Mix into a trainer of transformers whose arguments are those of [`ContextConfigMixin`]."""

    # the run as its checkpoints describe it: an id, the number of starts in its folder, and `describe_run`
    _run: dict | None = None
    # hashes of the weights that training starts from and does not keep, where there are some
    _base_weights: dict[str, str | None] | None = None

    # Override: a checkpoint is sealed when all of it is there, and older ones are deleted only then.
    def _save_checkpoint(self, model, trial):
        run_dir = self._get_output_dir(trial=trial)
        checkpoint = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            open_checkpoint(checkpoint, self._run)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if not seal_checkpoint(checkpoint, self._run):
                logger.warning(
                    "Another run saves in %r too, so %r may hold files of both: it cannot be resumed from. Give each run an "
                    "`output_dir` of its own.", self.args.output_dir, checkpoint,
                )  # fmt: skip
                return
            remove_old_checkpoints(run_dir, checkpoint, self.state.best_model_checkpoint, limit)

    # Override: a checkpoint that was not written to its end, was damaged since, or is another run's, is not resumed from.
    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        Train: [`~transformers.Trainer.train`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint to resume from, or `True` (`"true"` on a command line): the newest one of this run in
                `output_dir` that is whole.
            args, kwargs:
                Passed to [`~transformers.Trainer.train`].

        Raises:
            `ValueError`: if there is no whole checkpoint, the one that was named is damaged, or its run had other data,
            another model or base, or drew other tasks.
        """
        if resume_from_checkpoint or self.args.save_strategy != SaveStrategy.NO:
            resume_from_checkpoint, self._run, error = self._ask_first_process(
                lambda: self._begin_run(resume_from_checkpoint)
            )
            if error is not None:
                raise ValueError(error)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # Override: transformers trains a run that is finished for one step more; and it takes one pass over a stream, whose length
    # nobody knows, to be as long as the run, and would resume in the first pass. The best checkpoint is looked for where the
    # others are now.
    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        trained = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None and self.state.best_global_step:
            beside = Path(resume_from_checkpoint).with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            if beside.is_dir():
                self.state.best_model_checkpoint = str(beside)
        if self.state.global_step >= max_steps:
            return num_train_epochs, 0
        if not isinstance(self.train_dataset, IterableDataset) or not self.state.global_step:
            return trained
        epochs, share = divmod(self.state.epoch, 1)
        steps = round(share * num_update_steps_per_epoch) * self.args.gradient_accumulation_steps
        return int(epochs), 0 if self.args.ignore_data_skip else steps

    # Override: the best checkpoint must be whole, and of this run. Transformers takes any folder of its name.
    def _load_best_model(self):
        best = self.state.best_model_checkpoint
        if self._ask_first_process(lambda: self._is_own(best)):
            return super()._load_best_model()
        logger.warning(
            "The checkpoint %r of the best step is not whole, or was saved by another run. The weights stay those of the last "
            "step. Set `save_steps` to `eval_steps`, and keep the best checkpoint.", best,
        )  # fmt: skip
        self.state.best_global_step = self.state.global_step

    def _ask_first_process(self, question):
        """The answer of the first process, which reads the files, for all."""
        answer = [question() if self.is_world_process_zero() else None]
        return broadcast_object_list(answer)[0]

    def _is_own(self, checkpoint: str) -> bool:
        if not is_sealed(checkpoint) or damaged_files(checkpoint):
            return False
        run = read_run(checkpoint)
        return run is None or self._run is None or run["id"] == self._run["id"]

    def _begin_run(self, asked: str | bool | None) -> tuple[str | None, dict | None, str | None]:
        """The checkpoint to resume from, the description of the run for new checkpoints, and an error."""
        model = self.accelerator.unwrap_model(self.model)
        base_weights = model.base_weights if isinstance(model, FiLMPeftModel) else self._base_weights
        facts = describe_run(self.args, self.train_dataset, model, base_weights)
        checkpoint, error = self._find_checkpoint(asked, facts) if asked else (None, None)
        if error is not None:
            return None, None, error
        former = None if checkpoint is None else read_run(checkpoint)
        name = uuid4().hex if former is None else former["id"]
        run = {"id": name, "start": last_start(self.args.output_dir) + 1, "facts": facts}
        if former is not None:
            learning = find_differences(
                {"learning": former["facts"].get("learning", {})}, {"learning": facts["learning"]}
            )
            if learning:
                logger.warning(
                    "The run of %r learned otherwise: %s. Learning rate, its schedule and the optimizer continue as they were "
                    "saved, and the loss changes from here on. Start without `resume_from_checkpoint` for a run that learns "
                    "so from its start.", checkpoint, show_differences(learning),
                )  # fmt: skip
        return checkpoint, run, None

    def _find_checkpoint(self, asked: str | bool, facts: dict) -> tuple[str | None, str | None]:
        """The checkpoint to resume from, or an error."""
        if str(asked).lower() != "true":
            return asked, self._find_damage(asked) or _find_foreign(asked, facts)
        foreign = None
        for checkpoint in whole_checkpoints(self.args.output_dir):
            error = _find_foreign(checkpoint, facts)
            if error is None:
                logger.warning("Going on from %r.", checkpoint)
                return checkpoint, None
            foreign = foreign or error
        return None, foreign or (
            f"There is no whole checkpoint in {self.args.output_dir!r}: none, or none that was written to its end. "
            "Start without `resume_from_checkpoint`, or name a checkpoint's folder."
        )

    def _find_damage(self, checkpoint: str) -> str | None:
        fix = "Resume from another one; `resume_from_checkpoint=True` takes the newest that is whole."
        if is_unfinished(checkpoint):
            return f"The checkpoint {checkpoint!r} was not written to its end. {fix}"
        if not is_sealed(checkpoint):
            logger.warning("%r has no `%s`, so that it cannot be checked whether it is whole.", checkpoint, SEAL)
        elif damaged := damaged_files(checkpoint):
            return f"The checkpoint {checkpoint!r} is damaged: {damaged} are absent or not as they were saved. {fix}"
        return None


def _find_foreign(checkpoint: str, facts: dict) -> str | None:
    """An error if the run of a checkpoint is another than the facts describe."""
    run = read_run(checkpoint)
    if run is None:
        if is_sealed(checkpoint):
            logger.warning(
                "%r does not say what it was trained on: it cannot be checked whether it is of this run.", checkpoint
            )
        return None
    differences = find_differences(complete_facts(run["facts"]), facts)
    differences = {name: values for name, values in differences.items() if not name.startswith("learning.")}
    if not differences:
        return None
    return (
        f"The checkpoint {checkpoint!r} is of another run: {show_differences(differences)}. Give the trainer what that run had; "
        "or start without `resume_from_checkpoint`, in another `output_dir`."
    )
