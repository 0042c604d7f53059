"""Reports of what scripts measured: means over seeds, and JSON with command, versions and machine."""

import json
import platform
import re
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from np_trl.files import write_whole


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
