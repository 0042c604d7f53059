"""What the two trainers share with others: a model card at every save, and what belongs to the model at every push."""

import copy
import logging
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from np_trl.files import sync_folder, whole_folder, write_whole
from np_trl.models.checkpoint_format import tokenizer_without_code
from np_trl.models.weights import put_in_place
from np_trl.trainer.model_card import AccuracyCurve, accuracy_curves, create_card, public_name
from np_trl.trainer.uploads import UploadingTrainerMixin


logger = logging.getLogger(__name__)


def copy_to_cpu(model: nn.Module) -> nn.Module:
    """Copy a model, its plain weights into the memory of the CPU: an accelerator may have no room for two."""
    weights = chain(model.parameters(), model.buffers())
    plain = {id(weight): weight for weight in weights if type(weight) in (nn.Parameter, Tensor)}  # not quantised
    return copy.deepcopy(model, {key: _copy_weight(weight) for key, weight in plain.items()})


@contextmanager
def whole_model(
    output_dir: str | Path, model_type: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> Iterator[Path]:
    """
    A folder to save a model to. Its files appear in `output_dir` when all of them are complete, in place of those of an
    earlier save; what else is there stays.

    Args:
        output_dir (`str` or `Path`):
            Where the model goes.
        model_type (`str`):
            The type of its configuration.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Its tokenizer, where that is saved too.

    Yields:
        `Path`: a new folder.

    Raises:
        `ValueError`: if a model of another type is there, such as the base, whose weights would be replaced.
    """
    output_dir = Path(output_dir)
    if Path(output_dir, "config.json").exists():
        there = PreTrainedConfig.get_config_dict(output_dir)[0].get("model_type")
        if there != model_type:
            raise ValueError(
                f"`output_dir={str(output_dir)!r}` holds a model of type {there!r}, which would be replaced by one of type "
                f"{model_type!r}. Name another folder."
            )
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        with whole_folder(output_dir) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".np_trl_") as folder:
        yield Path(folder)
        sync_folder(folder)
        put_in_place(Path(folder), output_dir)
    if tokenizer is not None:
        _set_aside_templates(output_dir, tokenizer)


def _set_aside_templates(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rename chat templates that an earlier save left beside a tokenizer: they would be loaded as its own."""
    template = getattr(tokenizer, "chat_template", None)
    own = set(template) if isinstance(template, dict) else set() if template is None else {"default"}
    found = {path: path.stem for path in folder.glob("additional_chat_templates/*.jinja")}
    found |= dict.fromkeys(folder.glob("chat_template.jinja"), "default")
    for path in [path for path, name in found.items() if name not in own]:
        logger.warning("%r is not of this model's tokenizer. It was renamed.", str(path))
        path.replace(path.with_name(f"{path.name}.old"))


def _copy_weight(weight: Tensor) -> Tensor:
    values = weight.detach().to("cpu", copy=True)
    return nn.Parameter(values, weight.requires_grad) if isinstance(weight, nn.Parameter) else values


class SharingTrainerMixin(UploadingTrainerMixin):
    """Mix into a TRL trainer. Its class gives the facts of the model card in `_card_facts`."""

    _paper = {
        "title": "Few-shot Steerable Alignment: Adapting Rewards and LLM Policies with Neural Processes",
        "id": "2412.13998",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @inproceedings{kobalczyk2025fewshot,
                title        = {{Few-shot Steerable Alignment: Adapting Rewards and LLM Policies with Neural Processes}},
                author       = {Katarzyna Kobalczyk and Claudio Fanconi and Hao Sun and Mihaela van der Schaar},
                year         = 2025,
            }"""),
    }

    # the training arguments that a card lists, where they are set
    _card_arguments = (
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "num_targets",
        "min_context",
        "max_context",
        "context_in_target",
        "seed",
        "data_seed",
        "bf16",
    )

    # arguments of `create_model_card`, for the cards of later saves
    _card_texts: dict = {}
    # the last evaluation of the evaluation set, and the update that the weights are of where they are not the last
    _evaluation: dict = {}
    _best_update: int | None = None

    # Override: our own card, of which TRL knows too little.
    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write the model card to `output_dir`.

        Args:
            model_name (`str`, *optional*):
                Name of the model.
            dataset_name (`str`, *optional*):
                Dataset that it was trained on: its name on the Hub, or what the data are called.
            tags (`str` or `list[str]`, *optional*):
                Tags beside those of the method.
        """
        dataset_name = None if dataset_name is None else public_name(dataset_name)
        # TRL calls this at every checkpoint, with the default name
        model_name = None if model_name == self._default_name else model_name
        texts = {"model_name": model_name, "dataset_name": dataset_name}
        tags = {*self._card_texts.get("tags", ()), *([tags] if isinstance(tags, str) else tags or ())}
        texts = {name: value for name, value in texts.items() if value is not None}
        self._card_texts = {**self._card_texts, **texts, "tags": tags}
        self._save_card(self.args.output_dir)

    # Override: a card beside every model that is saved, and no code but ours.
    def _save(self, output_dir=None, state_dict=None):
        processing_class = self.processing_class
        if processing_class is not None:
            self.processing_class = tokenizer_without_code(processing_class)
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.processing_class = processing_class
        if processing_class is not None:
            _set_aside_templates(Path(output_dir or self.args.output_dir), processing_class)
        self._save_card(output_dir or self.args.output_dir)

    # Override: the card shows the figures of eval_results.json.
    def save_metrics(self, split, metrics, combined=True):
        super().save_metrics(split, metrics, combined)
        if split == "eval":
            self._evaluation = metrics
            self._save_card(self.args.output_dir)

    # Override: keep the figures of the evaluation set, but not those of others.
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is None and metric_key_prefix == "eval":
            self._evaluation = metrics
        return metrics

    # Override: the card shows the figures of the weights that are loaded.
    def _load_best_model(self):
        super()._load_best_model()
        self._best_update = self.state.best_global_step
        evaluations = [entry for entry in self.state.log_history if entry["step"] == self._best_update]
        self._evaluation = {key: value for entry in evaluations for key, value in entry.items()}

    def _save_card(self, output_dir: str, **facts) -> None:
        """Write the model card to a folder; `facts` are those that differ from this trainer's."""
        if not self.is_world_process_zero():
            return
        model_tags = self.accelerator.unwrap_model(self.model).model_tags or ()
        variables = {
            "source": self.hub_model_id or str(output_dir),
            "model_name": self._default_name,
            "curves": self._accuracy_curves(),
            "method": self._name,
            "paper_title": self._paper["title"],
            "paper_id": self._paper["id"],
            "citation": self._paper["citation"],
            "dataset": self._describe_data(),
            "eval_users": self._describe_eval_users(),
            "settings": self._settings(),
            **self._card_facts(),
            **self._card_texts,
            "tags": {*self._tag_names, *model_tags, *self._card_texts.get("tags", ())},
            **facts,
        }
        try:
            card = create_card(**variables)
        except Exception as error:  # whatever a text from outside leads to, the model must be saved
            logger.warning("The model card of %r could not be written: %s", str(output_dir), error)
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_whole(Path(output_dir, "README.md"), str(card))

    def _card_facts(self) -> dict:
        """Variables of the template that depend on the model: its kind, its base, and how it is used."""
        raise NotImplementedError

    def _accuracy_curves(self) -> list[AccuracyCurve]:
        """The last evaluation, of this trainer or of the run that it resumes."""
        names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [None]
        return accuracy_curves(self._evaluation or self._logged_evaluation(names), names)

    def _logged_evaluation(self, names: list[str | None]) -> dict[str, float]:
        """The last evaluation in the log, which checkpoints keep: results files do not say of which run they are."""
        evaluations = [entry for entry in self.state.log_history if accuracy_curves(entry, names)]
        if not evaluations:
            return {}
        last = [entry for entry in evaluations if entry["step"] == evaluations[-1]["step"]]
        return {key: value for entry in last for key, value in entry.items()}

    def _settings(self) -> dict[str, str]:
        args = self.args
        tasks = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        updates = self.state.global_step if self._best_update is None else self._best_update
        settings = {"updates": updates, "tasks per update": tasks}
        for name in self._card_arguments:
            value = getattr(args, name)
            if value is not None:
                settings[name] = value
        return settings

    def _describe_data(self) -> str:
        if isinstance(self.train_dataset, IterableDataset):
            return "streamed"
        users = len(self.train_dataset.unique("user_id"))
        return f"{len(self.train_dataset):,} pairs of {users:,} users"

    def _describe_eval_users(self) -> str:
        """Say how many users were evaluated, and how many of them are in the training set."""
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        datasets = [dataset for dataset in (*datasets.values(), self.train_dataset) if isinstance(dataset, Dataset)]
        if len(datasets) < 2:
            return ""
        *evaluated, trained = ({str(user) for user in dataset.unique("user_id")} for dataset in datasets)
        users = set().union(*evaluated)
        seen = len(users & trained)
        return f"{len(users):,} users, {f'{seen:,} of whom have' if seen else 'none of whom has'} the id of a training user."
