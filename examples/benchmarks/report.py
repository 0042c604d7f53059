"""Where the figures of a benchmark go: printed, and saved in `results/`."""

from pathlib import Path

from np_trl.evaluation.report import save_report


def report(name: str, figures: dict[str, float], **facts) -> None:
    """Print `figures`, and save them with `facts`, such as the seed, as `results/{name}.json`."""
    save_report(Path(__file__).parent / "results" / f"{name}.json", figures, **facts)
    for key, value in figures.items():
        print(f"{key:<40}{value:>12.4g}")
