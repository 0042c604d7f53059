"""
Model cards: what a model is, what it was trained on, how well it adapts, and how to use it.

One is written at every save, from the template in `model_cards/`. Names and settings come from outside: in the template each
goes through the filter of the place it stands in, `text`, `code` or `python`.
"""

import html
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from itertools import takewhile
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment
from transformers.utils import cached_file

from np_trl.models import ContextEncoderConfig


logger = logging.getLogger(__name__)

_CURVE_KEY = re.compile(r"eval_(?:(?P<set>.+)_)?nc(?P<number>\d+)_(?P<name>[a-z_]+)", re.DOTALL)
_ROWS = {
    "accuracy": "accuracy",
    "accuracy_se": "standard error",
    "shuffled_accuracy": "control: other users' choices",
    "shuffled_accuracy_se": "standard error of the control",
    "worst_decile_accuracy": "worst tenth of the users",
}
# fields that are copied from a base model's card, and the forms that they may have
_LICENSE_FIELDS = {
    "license": re.compile(r"[\w.+-]{1,60}"),
    "license_name": re.compile(r"[\w.,+()/ -]{1,100}"),
    "license_link": re.compile(r"(https?://)?[\w.,+~#?=&%/-]{1,300}"),
}
_PACKAGES = ("np_trl", "trl", "transformers", "torch", "peft", "datasets")


@dataclass(frozen=True)
class AccuracyCurve:
    """
    How accuracy grows with the number of choices given.

    Args:
        name (`str`, *optional*):
            Name of the evaluation set, where there are several.
        num_contexts (`list[int]`):
            Numbers of choices.
        rows (`dict[str, list[float | None]]`):
            For each metric, by the words of a card, its value at each of them.
    """

    name: str | None
    num_contexts: list[int]
    rows: dict[str, list[float | None]]


def accuracy_curves(metrics: dict[str, float], names: Iterable[str | None] = (None,)) -> list[AccuracyCurve]:
    """
    Find the curves in what `evaluate` returned, or in `eval_results.json`.

    Args:
        metrics (`dict[str, float]`):
            Metrics with keys such as `eval_nc10_accuracy`, or `eval_<set>_nc10_accuracy`.
        names (`Iterable[str]`, *optional*):
            Names of the evaluation sets, where there are several. What else is in the metrics, such as other models'
            figures, is left out.

    Returns:
        `list[AccuracyCurve]`: one for each evaluation set with figures.
    """
    values = defaultdict(dict)
    for key, value in metrics.items():
        match = _CURVE_KEY.fullmatch(key)
        if match is not None and match["set"] in names and match["name"] in _ROWS:
            values[match["set"]][match["name"], int(match["number"])] = value
    curves = []
    for name, found in values.items():
        num_contexts = sorted({number for _, number in found})
        rows = {words: [found.get((metric, number)) for number in num_contexts] for metric, words in _ROWS.items()}
        rows = {words: row for words, row in rows.items() if any(value is not None for value in row)}
        curves.append(AccuracyCurve(name, num_contexts, rows))
    return curves


def evaluation_results(curves: list[AccuracyCurve], task_type: str, dataset_name: str | None) -> list[EvalResult]:
    """
    Turn curves into the results that the Hub reads from a card's `model-index`.

    Args:
        curves (`list[AccuracyCurve]`):
            Curves.
        task_type (`str`):
            The Hub's name of the task.
        dataset_name (`str`, *optional*):
            Dataset on the Hub, or what the data are called.
    """
    names = {
        _ROWS["accuracy"]: "Accuracy on unseen pairs",
        _ROWS["shuffled_accuracy"]: "Accuracy on unseen pairs, other users' choices",
    }
    return [
        EvalResult(
            task_type=task_type,
            dataset_type=dataset_name or "preferences",
            dataset_name=" ".join(part for part in (dataset_name or "preferences", curve.name) if part),
            metric_type="accuracy",
            metric_name=f"{name}, {number} choice{'' if number == 1 else 's'}",
            metric_value=round(value, 4),
        )
        for curve in curves
        for words, name in names.items()
        for number, value in zip(curve.num_contexts, curve.rows.get(words, ()), strict=False)
        if value is not None
    ]


@lru_cache
def find_license(path: str, revision: str | None = None) -> dict[str, str]:
    """
    Look up the licence of a model in its own card.

    Args:
        path (`str`):
            Folder, or name on the Hub.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        `dict[str, str]`: `license`, and `license_name` and `license_link` where the card has them. Empty without a card or
        a connection: whatever goes wrong here, a model must be saved.
    """
    try:
        # line by line: whatever else is in a card may be broken, deep, or huge
        fields = (line.partition(":") for line in _front_matter(cached_file(path, "README.md", revision=revision)))
        found = {name: yaml.safe_load(value) for name, _, value in fields if name in _LICENSE_FIELDS}
    except Exception as error:
        logger.info("The licence of %r could not be looked up: %s", path, error)
        return {}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, str) and _LICENSE_FIELDS[name].fullmatch(value)
    }


def _front_matter(file: str, size: int = 2**20) -> list[str]:
    """The lines between the first two rules of a card, of whose start `size` characters are read."""
    with open(file, encoding="utf-8", errors="replace") as card:
        first, *lines = card.read(size).lstrip().splitlines() or [""]
    return list(takewhile(lambda line: line.rstrip() != "---", lines)) if first.rstrip() == "---" else []


def describe_context_encoder(config: ContextEncoderConfig) -> dict:
    """Settings of a context encoder, as a card lists them."""
    return {f"context encoder: {name}": getattr(config, name) for name in ContextEncoderConfig.__annotations__}


def create_card(
    kind: str,
    model_name: str,
    curves: list[AccuracyCurve],
    settings: dict,
    base: str | None,
    base_revision: str | None = None,
    dataset_name: str | None = None,
    tags: Iterable[str] = (),
    **facts,
) -> ModelCard:
    """
    Fill the template. All texts may come from outside.

    Args:
        kind (`str`):
            `"merged"`, `"adapter"` or `"reward"`.
        model_name (`str`):
            Name of the model.
        curves (`list[AccuracyCurve]`):
            How well it adapts.
        settings (`dict`):
            Hyper-parameters, by name.
        base (`str`, *optional*), base_revision (`str`, *optional*):
            The base model, or the embedder of a reward model: its folder, or its name and revision on the Hub.
        dataset_name (`str`, *optional*):
            Dataset on the Hub, or what the data are called.
        tags (`Iterable[str]`, *optional*):
            Tags.
        facts:
            The other variables of the template.

    Returns:
        [`~huggingface_hub.ModelCard`]
    """
    base_license = find_license(base, base_revision) if base else {}
    task_type = "text-classification" if kind == "reward" else "text-generation"
    model_name = one_line(model_name) or "model"
    dataset_name = None if dataset_name is None else one_line(dataset_name) or None
    curves = [replace(curve, name=None if curve.name is None else one_line(curve.name)) for curve in curves]
    card_data = ModelCardData(
        model_name=model_name,
        base_model=base if _is_on_hub(base) and kind != "reward" else None,
        datasets=[dataset_name] if _is_on_hub(dataset_name) else None,
        **({} if kind == "reward" else base_license),
        library_name="np_trl" if kind == "adapter" else "transformers",
        pipeline_tag=None if kind == "reward" else task_type,
        tags=["generated_from_trainer", *sorted({one_line(tag) for tag in tags} - {""})],
        eval_results=evaluation_results(curves, task_type, dataset_name) or None,
    )
    environment = Environment()
    environment.filters |= {"text": as_text, "code": as_code, "python": as_python}
    template = environment.from_string(files("np_trl.model_cards").joinpath("model_card.md.jinja").read_text("utf-8"))
    return ModelCard(
        template.render(
            card_data=card_data.to_yaml(),
            kind=kind,
            model_name=model_name,
            curves=curves,
            dataset_name=dataset_name,
            base_name=_describe(base, base_revision),
            base_license=base_license.get("license_name", base_license.get("license")),
            settings={name: _show(value) for name, value in settings.items()},
            versions={package: version(package) for package in _PACKAGES},
            **facts,
        )
    )


def one_line(value) -> str:
    """Return a text from outside as one line of what can be printed, of 500 characters at most."""
    printable = "".join(character if character.isprintable() else " " for character in str(value))
    line = " ".join(printable.split())
    return line if len(line) <= 500 else f"{line[:499]}\N{HORIZONTAL ELLIPSIS}"


def as_text(value) -> str:
    """Write a text from outside such that Markdown and HTML take it for nothing else."""
    line = re.sub(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|:(?=//)", r"\\\g<0>", one_line(value))
    return html.escape(line, quote=False)


def as_code(value) -> str:
    """Write a text from outside as a code span of Markdown, unless it has characters that would mean something there."""
    line = one_line(value)
    return f"`{line}`" if line and not set(line) & set("`|\\<>&") else as_text(line)


def as_python(value) -> str:
    """Write a text from outside as a literal of Python."""
    literal = json.dumps(str(value), ensure_ascii=False).replace("<", "\\x3c")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in literal
    )


def public_name(path: str) -> str:
    """Return a name on the Hub unchanged, and of a path on this machine the last part alone, which is safe to publish."""
    is_path = os.path.exists(path) or path.startswith(("/", "./", "../", "~"))
    return Path(os.path.abspath(path)).name if is_path else path


def _show(value) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_show, value))
    if isinstance(value, (set, frozenset)):
        return _show(sorted(value))
    return str(value.value if isinstance(value, Enum) else value)


def _is_on_hub(name: str | None) -> bool:
    return name is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not os.path.exists(name)


def _describe(base: str | None, revision: str | None) -> str:
    if not base:
        return "not named"
    if not _is_on_hub(base):
        return f"a local folder, {as_code(public_name(base))}"
    link = f"[{base}](https://huggingface.co/{base})"
    return link if revision is None else f"{link} at {as_code(revision)}"
