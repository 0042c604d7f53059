"""What the two trainers share with others: a model card at every save, and code with every push."""

import json
import shutil
import textwrap
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers.trainer import TRAINING_ARGS_NAME

from np_trl.trainer.model_card import AccuracyCurve, accuracy_curves, create_card, public_name


class SharingTrainerMixin:
    """Mix into a TRL trainer. Its class tells what a card needs to know in `_card_facts`."""

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

    # what `create_model_card` was told, for the cards of later saves
    _told: dict = {}
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
        told = {"model_name": model_name, "dataset_name": dataset_name, "tags": tags}
        self._told = {**self._told, **{name: value for name, value in told.items() if value is not None}}
        self._save_card(self.args.output_dir)

    # Override: a card beside every model that is saved.
    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        self._save_card(output_dir or self.args.output_dir)

    # Override: the card shows what is saved in eval_results.json.
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

    # Override: the pickle that `Trainer` saves of its arguments, a token among them, stays here.
    def init_hf_repo(self, *args, **kwargs):
        super().init_hf_repo(*args, **kwargs)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir, ".gitignore")
            path.parent.mkdir(parents=True, exist_ok=True)
            ignored = path.read_text().splitlines() if path.exists() else []
            path.write_text("\n".join([*ignored, *({TRAINING_ARGS_NAME} - set(ignored)), ""]))

    # Override: code goes with the weights that are pushed in the course of training.
    def _push_from_checkpoint(self, checkpoint_folder):
        for path in Path(checkpoint_folder).glob("*.py"):
            shutil.copy(path, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_card(self, output_dir: str, **facts) -> None:
        """Write the model card to a folder; `facts` are those that differ from this trainer's."""
        if not self.is_world_process_zero():
            return
        tags = self._told.get("tags", [])
        variables = {
            "source": self.hub_model_id or str(output_dir),
            "model_name": Path(self.hub_model_id or self.args.output_dir).name,
            "curves": self._accuracy_curves(),
            "method": self._name,
            "paper_title": self._paper["title"],
            "paper_id": self._paper["id"],
            "citation": self._paper["citation"],
            "dataset": self._describe_data(),
            "eval_users": self._describe_eval_users(),
            "settings": self._settings(),
            **self._card_facts(),
            **self._told,
            "tags": {*self._tag_names, *([tags] if isinstance(tags, str) else tags)},
            **facts,
        }
        card = create_card(**variables)
        card.save(Path(output_dir, "README.md"))

    def _card_facts(self) -> dict:
        """Variables of the template that depend on the model: its kind, its base, and how it is used."""
        raise NotImplementedError

    def _accuracy_curves(self) -> list[AccuracyCurve]:
        """The last evaluation: of this trainer, or else of `eval_results.json`."""
        names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [None]
        metrics, path = self._evaluation, Path(self.args.output_dir, "eval_results.json")
        if not metrics and path.exists():
            metrics = json.loads(path.read_text())
        return accuracy_curves(metrics, names)

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
        name = self._told.get("dataset_name")
        name = "preference pairs" if name is None else f"`{name}`"
        if isinstance(self.train_dataset, IterableDataset):
            return f"{name}, streamed"
        users = len(self.train_dataset.unique("user_id"))
        return f"{name}, {len(self.train_dataset):,} pairs of {users:,} users"

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
