"""Uploads to the Hub: by a list of the files that belong to a model, not of the folder that they are in."""

import glob
import re
import shutil
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from huggingface_hub import CommitInfo, upload_folder
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from np_trl.metrics.results import save_results
from np_trl.models.weights import WEIGHT_FILE


_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_TOKENIZER_FILES = (
    "added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
# the state of a run in a checkpoint, beside the model: of one process, DeepSpeed and FSDP
_STATE_FILE = (
    r"(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth|trainer_state\.json|latest|pytorch_model_fsdp\.bin"
    r"|(global_step\d+|pytorch_model_fsdp_\d+|optimizer_\d+)/.*"
)


def files_to_share(
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    adapters: Iterable[str] | None = None,
    with_state: bool = False,
) -> list[str]:
    """
    List what belongs to a saved model: its weights, configuration and code, its tokenizer, its card. Other
    files in the folder, such as profiles, logs, data, or another model, stay private.

    Args:
        folder (`str` or `Path`):
            The folder that the model is in.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The model's tokenizer.
        adapters (`Iterable[str]`, *optional*):
            Names of its adapters, if they alone were saved, and not a model.
        with_state (`bool`, *optional*, defaults to `False`):
            Whether the state of the training run belongs to it, as in a checkpoint that others are to resume.

    Returns:
        `list[str]`: paths in the folder.
    """
    names, patterns = {"README.md", "generation_config.json"}, []
    if adapters is not None:
        names |= {*_ADAPTER_FILES, *(f"{adapter}/{name}" for adapter in adapters for name in _ADAPTER_FILES)}
    else:
        code = (file.name for file in files("np_trl.models").iterdir() if file.name.endswith(".py"))
        names |= {"config.json", *code}
        patterns.append(WEIGHT_FILE)
    if tokenizer is not None:
        names |= {*_TOKENIZER_FILES, *tokenizer.vocab_files_names.values()}
        patterns.append(r"additional_chat_templates/[^/]+\.jinja")
    if with_state:
        patterns.append(_STATE_FILE)
    inside = Path(folder).resolve()  # a link may lead out of the folder
    files_there = (
        path for path in Path(folder).rglob("*") if path.is_file() and path.resolve().is_relative_to(inside)
    )
    found = (path.relative_to(folder).as_posix() for path in files_there)
    return sorted(path for path in found if path in names or any(re.fullmatch(part, path) for part in patterns))


def upload(folder: str | Path, names: list[str], **kwargs) -> CommitInfo:
    """Upload the named files of a folder; `kwargs` are those of [`~huggingface_hub.HfApi.upload_folder`]."""
    # by the client that all share: of several, uploads in the background would overtake each other
    return upload_folder(folder_path=str(folder), allow_patterns=[*map(glob.escape, names)], **kwargs)


class UploadingTrainerMixin:
    """
    Mix into a trainer of transformers or TRL: it uploads the model, and nothing else of its folder. Its files of results are
    whole or absent.
    """

    @property
    def _default_name(self) -> str:
        """The name of a model that was given none."""
        return Path(self.hub_model_id or self.args.hub_model_id or self.args.output_dir).name

    # Override: `Trainer` leaves a torn file when it is stopped, and fails where it finds one.
    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Save metrics: [`~transformers.Trainer.save_metrics`]."""
        if self.is_world_process_zero():
            save_results(self.args.output_dir, split, metrics, combined)

    # Override: `Trainer` uploads whatever lies in the folder.
    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """Share what `save_model` saves, and nothing else of its folder: [`~transformers.Trainer.push_to_hub`]."""
        token = self.args.hub_token if token is None else token
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)  # by all processes
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{"model_name": self._default_name, **kwargs})
        self._finish_current_push()
        return self._upload(
            self.args.output_dir,
            commit_message=commit_message,
            token=token,
            revision=self.args.hub_revision if revision is None else revision,
            run_as_future=not blocking,
        )

    # Override: so it does in the course of training.
    def _push_from_checkpoint(self, checkpoint_folder):
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for name in self._files_to_share(checkpoint_folder):  # the checkpoint may be deleted before it is uploaded
            path = Path(self.args.output_dir, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(checkpoint_folder, name), path)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        message = f"Training in progress, {progress}"
        settings = {"token": self.args.hub_token, "revision": self.args.hub_revision, "run_as_future": True}
        jobs = [self._upload(self.args.output_dir, commit_message=message, **settings)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            path = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            message = f"{message}, checkpoint"
            jobs.append(self._upload(checkpoint_folder, True, path_in_repo=path, commit_message=message, **settings))
        if is_busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _upload(self, folder: str, with_state: bool = False, **kwargs):
        return upload(folder, self._files_to_share(folder, with_state), repo_id=self.hub_model_id, **kwargs)

    def _files_to_share(self, folder: str, with_state: bool = False) -> list[str]:
        model = self.accelerator.unwrap_model(self.model)
        adapters = list(model.peft_config) if isinstance(model, PeftModel) else None
        return files_to_share(folder, self.processing_class, adapters, with_state)
