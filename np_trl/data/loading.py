"""Preference pairs from a file or from the Hub."""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk

from np_trl.data.embeddings import join_embeddings


_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}


@dataclass
class PreferenceArguments:
    """Arguments of a script that trains on some users and evaluates on others."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "File (parquet, JSON lines, CSV) or dataset on the Hub, of training users."},
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "File or dataset of other users, to evaluate on. Default: split `test`."}
    )
    where: list[str] = field(
        default_factory=list, metadata={"help": "Conditions `column=value` on the rows to train on."}
    )
    eval_where: list[str] = field(
        default_factory=list, metadata={"help": "Conditions `column=value` on the rows to evaluate on."}
    )
    eval_context_where: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Conditions on rows that the users of the evaluation are known by, such as their training rows. Those of "
            "`eval_where` are then their targets only."
        },
    )
    embeddings: str | None = field(
        default=None, metadata={"help": "File or dataset with `text_id` and `embedding` of every text, once."}
    )
    embedding_kind: str = field(
        default="response", metadata={"help": "What was embedded: `response` or `prompt_response`."}
    )

    def load(self) -> tuple[Dataset, Dataset]:
        """Load the pairs to train on and those to evaluate on."""
        embeddings = {"embeddings": self.embeddings, "embedding_kind": self.embedding_kind}
        eval_name = self.eval_dataset_name or self.dataset_name
        eval_dataset = load_preferences(eval_name, "test", self.eval_where, **embeddings)
        if self.eval_context_where:
            contexts = load_preferences(eval_name, "test", self.eval_context_where, **embeddings)
            eval_dataset = _with_roles(contexts, eval_dataset)
        return load_preferences(self.dataset_name, "train", self.where, **embeddings), eval_dataset


def load_preferences(
    name: str,
    split: str = "train",
    where: list[str] | None = None,
    embeddings: str | None = None,
    embedding_kind: str = "response",
) -> Dataset:
    """
    Load preference pairs.

    Args:
        name (`str`):
            A file (parquet, JSON lines or CSV), a directory written by `save_to_disk`, or the name of a dataset on the
            Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset that has several.
        where (`list[str]`, *optional*):
            Conditions `column=value` on the rows, all of which must hold.
        embeddings (`str`, *optional*):
            A file or dataset with the embeddings of the texts, for [`join_embeddings`].
        embedding_kind (`str`, *optional*, defaults to `"response"`):
            Which text was embedded.

    Returns:
        [`~datasets.Dataset`]

    Raises:
        `ValueError`: if a condition names no column, or no row meets them all.
    """
    dataset = _select(_load(name, split), where or [], name)
    return dataset if embeddings is None else join_embeddings(dataset, _load(embeddings, "train"), embedding_kind)


def _with_roles(contexts: Dataset, targets: Dataset) -> Dataset:
    """Join the pairs that users are known by with those that are predicted, for the users who have both."""
    parts = {"context": contexts, "target": targets}
    users = set(contexts["user_id"]) & set(targets["user_id"])
    kept = []
    for role, dataset in parts.items():
        indices = [index for index, user in enumerate(dataset["user_id"]) if user in users]
        kept.append(dataset.select(indices).add_column("role", [role] * len(indices)))
    return concatenate_datasets(kept)


def _load(name: str, split: str) -> Dataset:
    path = Path(name)
    if path.suffix in _BUILDERS:
        return load_dataset(_BUILDERS[path.suffix], data_files=name, split="train")
    if path.is_dir() and any((path / file).exists() for file in ("state.json", "dataset_dict.json")):
        dataset = load_from_disk(name)
        return dataset if isinstance(dataset, Dataset) else dataset[split]
    return load_dataset(name, split=split)


def _select(dataset: Dataset, where: list[str], name: str) -> Dataset:
    conditions = dict(condition.split("=", maxsplit=1) for condition in where if "=" in condition)
    unknown = set(conditions) - set(dataset.column_names)
    if unknown or len(conditions) < len(where):
        raise ValueError(
            f"The conditions {where} must each be `column=value`, of another column of {dataset.column_names}."
        )
    if not conditions:
        return dataset
    columns = dataset.select_columns(list(conditions))[:]
    keep = [
        all(str(value) == wanted for value, wanted in zip(row, conditions.values(), strict=True))
        for row in zip(*(columns[column] for column in conditions), strict=True)
    ]
    if not any(keep):
        raise ValueError(f"No row of {name!r} meets the conditions {where}.")
    return dataset.select([index for index, kept in enumerate(keep) if kept])
