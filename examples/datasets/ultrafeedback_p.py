"""Preference pairs from UltraFeedback-P (Poddar et al., 2024; UF-P-2 and UF-P-4): users of two or of four types."""

import logging

from datasets import Dataset

from np_trl.models.texts import plain_text, text_id


logger = logging.getLogger(__name__)


def ultrafeedback_p_preferences(dataset: Dataset) -> Dataset:
    """
    Give rows of UltraFeedback-P the columns of preference pairs of users. A user is a type of users, so its users are the same
    in training and in evaluation; it is the prompts that differ.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt`, `chosen`, `rejected`, `data_subset` (the type, as `"8"` or the name of an aspect), and maybe
            `controversial` and `survey_options`. Both options are strings, or conversations, and may begin with the prompt.

    Returns:
        [`~datasets.Dataset`] with the columns `user_id` (the type), `prompt`, `chosen`, `rejected`; and where the dataset says
        it, `is_conflicting` (`controversial`: not all types choose alike) and `survey_options`. The options are what follows
        on the prompt, which is a conversation where they are. Pairs without a type, with an
        empty text, that are ties, or that repeat another one are left out, with a logged count.

    Raises:
        `ValueError`: if a column is absent, or no pair is left.
    """
    missing = [name for name in ("prompt", "chosen", "rejected", "data_subset") if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The dataset has no {missing} column, only {dataset.column_names}. Give rows of UltraFeedback-P as they are."
        )
    names = {"controversial": "is_conflicting", "survey_options": "survey_options"}
    names = {old: new for old, new in names.items() if old in dataset.column_names}
    pairs, seen = [], set()
    for row in dataset:
        pair = _to_pair(row)
        key = text_id(repr(pair))
        if pair is not None and key not in seen:
            seen.add(key)
            pairs.append(pair | {new: row[old] for old, new in names.items()})
    if len(pairs) < len(dataset):
        logger.warning(
            "Left out %d of %d pairs that lack a type of users or a text, are ties, or repeat another one.",
            len(dataset) - len(pairs), len(dataset),
        )  # fmt: skip
    if not pairs:
        raise ValueError(f"None of the {len(dataset)} rows has a type of users, a prompt and two different options.")
    return Dataset.from_list(pairs)


def _to_pair(row: dict) -> dict | None:
    """The pair of a row; `None` where there is none."""
    prompt, options = row["prompt"], [row["chosen"], row["rejected"]]
    if not _is_known(row["data_subset"]) or not prompt or not all(options):
        return None
    if not isinstance(options[0], str):
        prompt = _messages(prompt) if not isinstance(prompt, str) else [{"role": "user", "content": prompt}]
        options = [_follow(prompt, _messages(option)) for option in options]
    elif all(option.startswith(prompt) for option in options):  # written with the prompt before them
        options = [option.removeprefix(prompt) for option in options]
    if options[0] == options[1] or not all(map(_has_text, (prompt, *options))):
        return None
    return {"user_id": str(row["data_subset"]), "prompt": prompt, "chosen": options[0], "rejected": options[1]}


def _messages(conversation: list[dict]) -> list[dict]:
    return [{"role": message["role"], "content": message["content"] or ""} for message in conversation]


def _follow(prompt: list[dict], conversation: list[dict]) -> list[dict]:
    """What follows on the prompt in a conversation that may begin with it."""
    return conversation[len(prompt) :] if conversation[: len(prompt)] == prompt else conversation


def _is_known(kind) -> bool:
    return kind is not None and kind == kind and bool(str(kind).strip())  # NaN is no other NaN


def _has_text(value: str | list[dict]) -> bool:
    return bool(value) and bool(plain_text(value if isinstance(value, str) else value[-1:]).strip())
