"""A trainer that survives being killed: it goes on from the newest checkpoint that is whole."""

import logging
import os

from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from np_trl.trainer.checkpoints import SEAL, damaged_files, is_sealed, last_whole_checkpoint, seal_checkpoint


logger = logging.getLogger(__name__)


class ResumableTrainerMixin:
    """Mix into a trainer of transformers."""

    # Override: a checkpoint is sealed when all of it is there, and older ones are deleted only then.
    def _save_checkpoint(self, model, trial):
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        run_dir = self._get_output_dir(trial=trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal_checkpoint(os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"))
            rotate_checkpoints(
                run_dir,
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    # Override: a checkpoint that was not written to its end, or was damaged since, is not resumed from.
    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        Train: [`~transformers.Trainer.train`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                A checkpoint to go on from, or `True` (`"true"` on a command line): the newest one in `output_dir` that is
                whole.
            args, kwargs:
                Passed to [`~transformers.Trainer.train`].

        Raises:
            `ValueError`: if there is no whole checkpoint, or the one that was named is damaged.
        """
        if resume_from_checkpoint:
            found = [None]
            if self.is_world_process_zero():  # one process reads the files, and tells the others
                found = [self._find_checkpoint(resume_from_checkpoint)]
            (resume_from_checkpoint, error) = broadcast_object_list(found)[0]
            if error is not None:
                raise ValueError(error)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # Override: transformers trains a run that is finished for one step more; and it takes one pass over a stream, whose length
    # nobody knows, to be as long as the run, and would go on in the first pass.
    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs):
        trained = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs
        )
        if self.state.global_step >= max_steps:
            return num_train_epochs, 0
        if not isinstance(self.train_dataset, IterableDataset) or not self.state.global_step:
            return trained
        epochs, share = divmod(self.state.epoch, 1)
        steps = round(share * num_update_steps_per_epoch) * self.args.gradient_accumulation_steps
        return int(epochs), 0 if self.args.ignore_data_skip else steps

    def _find_checkpoint(self, asked: str | bool) -> tuple[str | None, str | None]:
        """The checkpoint to go on from, or what is wrong."""
        if str(asked).lower() == "true":
            folder = last_whole_checkpoint(self.args.output_dir)
            if folder is None:
                return None, (
                    f"There is no whole checkpoint in {self.args.output_dir!r}: none, or none that was written to its end. "
                    "Start without `resume_from_checkpoint`, or name a checkpoint's folder."
                )
            logger.warning("Going on from %r.", folder)
            return folder, None
        if not is_sealed(asked):
            logger.warning("%r has no `%s`: it cannot be told whether it is whole.", asked, SEAL)
        elif damaged := damaged_files(asked):
            return None, (
                f"The checkpoint {asked!r} is damaged: {damaged} are absent or not as they were saved. Go on from another "
                "one; `resume_from_checkpoint=True` takes the newest that is whole."
            )
        return asked, None
