"""Plain pairs as conversations, for models with a chat template."""

from datasets import Dataset, Value


_ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}


def to_conversations(dataset: Dataset) -> Dataset:
    """
    Turn pairs of strings into conversations: the prompt is what the user says, each option an answer.

    Args:
        dataset ([`~datasets.Dataset`]):
            Preference pairs. Conversations stay as they are.

    Returns:
        [`~datasets.Dataset`] with messages in `prompt`, `chosen` and `rejected`, without white space at their ends.

    Raises:
        `ValueError`: if a column is missing.
    """
    missing = [name for name in _ROLES if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"`conversational` makes conversations of the columns {list(_ROLES)}, but there is no {missing}, only "
            f"{dataset.column_names}. Give prompts a column of their own."
        )
    if any(isinstance(dataset[0][name], list) for name in _ROLES):
        return dataset

    def convert(batch: dict[str, list[str]]) -> dict[str, list[list[dict]]]:
        return {
            name: [[{"role": role, "content": text.strip()}] for text in batch[name]] for name, role in _ROLES.items()
        }

    features = dataset.features.copy()
    message = [{"role": Value("string"), "content": Value("string")}]
    features.update(dict.fromkeys(_ROLES, message))
    return dataset.map(convert, batched=True, features=features, desc="Making conversations")
