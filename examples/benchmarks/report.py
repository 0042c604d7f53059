"""Where the figures of a benchmark go: printed, and as JSON with command, versions and machine."""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch


def save_report(name: str, figures: dict[str, float], **facts) -> None:
    """Print `figures`, and save them with `facts`, such as the seed, as `results/{name}.json`."""
    report = {
        "command": " ".join(["python", f"examples/benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        **facts,
        "versions": {package: version(package) for package in ("torch", "transformers", "trl", "peft", "datasets")},
        "machine": {
            "cpu": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "figures": figures,
    }
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    for key, value in figures.items():
        print(f"{key:<40}{value:>12.4g}")
