"""Items for [`simulate_users`] from UltraFeedback (Cui et al., 2024; `openbmb/UltraFeedback` on the Hub)."""

import logging
import math

import pyarrow.compute as pc
from datasets import Dataset


logger = logging.getLogger(__name__)

ASPECTS = ("helpfulness", "honesty", "truthfulness", "instruction_following")


def ultrafeedback_items(dataset: Dataset, aspects: list[str] | None = None) -> Dataset:
    """
    Turn rows of UltraFeedback, one a prompt with several completions, into one row a response.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `instruction`, and `completions`: a list with `response`, `model` and `annotations`, which holds for
            each aspect a `Rating` as text.
        aspects (`list[str]`, *optional*):
            Aspects that must be rated. All four if not set.

    Returns:
        [`~datasets.Dataset`] with the columns `prompt`, `response`, `model`, and a number for each aspect. Responses that are
        empty or without one of the ratings are left out, with a logged count.

    Raises:
        `ValueError`: if an aspect is unknown.
    """
    aspects = list(ASPECTS) if aspects is None else aspects
    if not set(aspects) <= set(ASPECTS):
        raise ValueError(f"`aspects={aspects}` must be among {list(ASPECTS)}.")
    items = dataset.map(
        _to_items,
        batched=True,
        fn_kwargs={"aspects": aspects},
        remove_columns=dataset.column_names,
        desc="Reading UltraFeedback",
    )
    completions = dataset.select_columns("completions").with_format("arrow")[:].column("completions")
    total = pc.sum(pc.list_value_length(completions)).as_py() or 0
    if len(items) < total:
        logger.warning("Left out %d of %d responses that lack a rating or are empty.", total - len(items), total)
    return items


def _to_items(batch: dict[str, list], aspects: list[str]) -> dict[str, list]:
    columns = {name: [] for name in ("prompt", "response", "model", *aspects)}
    for prompt, completions in zip(batch["instruction"], batch["completions"], strict=True):
        for completion in completions or []:
            ratings = [_rating(completion["annotations"], aspect) for aspect in aspects]
            if None in ratings or not (completion["response"] or "").strip():
                continue
            values = (prompt, completion["response"], completion["model"], *ratings)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return columns


def _rating(annotations: dict | None, aspect: str) -> float | None:
    """The rating of an aspect; `None` where the annotation is absent or no number, as "N/A"."""
    text = ((annotations or {}).get(aspect) or {}).get("Rating")
    try:
        rating = float(text or "nan")
    except ValueError:
        return None
    return rating if math.isfinite(rating) else None
