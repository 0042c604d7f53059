"""Where the figures of a run go: JSON with command, versions and machine."""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch


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
        "command": " ".join(["python", *sys.argv]),
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
    path.write_text(json.dumps(report, indent=2) + "\n")
