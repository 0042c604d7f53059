"""Where the figures of runs go: means over seeds, results of a run, and JSON with command, versions and machine."""

import json
import logging
import platform
import re
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from np_trl.files import write_whole


logger = logging.getLogger(__name__)

# what must not be in a report: tokens of the Hub
_SECRETS = re.compile(r"(?<=hub_token[ =])\S+|(?<=hub-token[ =])\S+|\bhf_[A-Za-z0-9]{20,}")


def save_report(path: str | Path, figures: dict, **facts) -> None:
    """
    Save what a script measured, with what it takes to measure it again.

    Args:
        path (`str` or `Path`):
            A JSON file. Its folder is made if need be.
        figures (`dict`):
            What was measured.
        facts:
            What else to save, such as seeds.
    """
    report = {
        "command": _SECRETS.sub("***", " ".join(["python", *sys.argv])),
        **facts,
        "versions": {package: version(package) for package in ("torch", "transformers", "trl", "peft", "datasets")},
        "machine": {
            "cpu": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "figures": figures,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(report, indent=2) + "\n")


def save_results(folder: str | Path, split: str, metrics: dict[str, float], combined: bool = True) -> None:
    """
    Save what a trainer measured: `{split}_results.json` and, with what was measured before, `all_results.json`.

    Args:
        folder (`str` or `Path`):
            Where the run saves. It is made if need be.
        split (`str`):
            What the metrics are of, such as `"eval"`.
        metrics (`dict[str, float]`):
            Metrics.
        combined (`bool`, *optional*, defaults to `True`):
            Whether `all_results.json` is saved. Where it cannot be read, it begins with these metrics.
    """
    text = json.dumps(metrics, indent=4, sort_keys=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(Path(folder, f"{split}_results.json"), text)
    path = Path(folder, "all_results.json")
    if combined:
        former = read_results(path)
        if former is None and path.exists():
            logger.warning("%r was damaged, and holds the metrics of %r alone now.", str(path), split)
        write_whole(path, json.dumps({**(former or {}), **metrics}, indent=4, sort_keys=True))


def read_results(path: str | Path) -> dict | None:
    """What a file of results says; `None` if it is absent or damaged."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return results if isinstance(results, dict) else None


def summarize_runs(runs: list[dict[str, float]]) -> dict[str, float]:
    """
    Summarize what runs with several seeds measured.

    Args:
        runs (`list[dict[str, float]]`):
            The figures of one run or more.

    Returns:
        `dict[str, float]`: the mean of every figure that all runs have and, of what is not a standard error already,
        `{key}_se_over_seeds`, that of the mean, if there are several runs.
    """
    figures = {}
    for key in sorted(set.intersection(*(set(run) for run in runs))):
        values = [run[key] for run in runs]
        figures[key] = statistics.mean(values)
        if len(runs) > 1 and not key.endswith("_se"):
            figures[f"{key}_se_over_seeds"] = statistics.stdev(values) / len(values) ** 0.5
    return figures
