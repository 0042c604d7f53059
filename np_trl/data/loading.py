"""Preference pairs from a file or from the Hub."""

from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk


_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}


def load_preferences(name: str, split: str = "train") -> Dataset:
    """
    Load preference pairs.

    Args:
        name (`str`):
            A file (parquet, JSON lines or CSV), a directory written by `save_to_disk`, or the name of a dataset on the
            Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a dataset that has several.

    Returns:
        [`~datasets.Dataset`]
    """
    path = Path(name)
    if path.suffix in _BUILDERS:
        return load_dataset(_BUILDERS[path.suffix], data_files=name, split="train")
    if path.is_dir() and any((path / file).exists() for file in ("state.json", "dataset_dict.json")):
        dataset = load_from_disk(name)
        return dataset if isinstance(dataset, Dataset) else dataset[split]
    return load_dataset(name, split=split)
