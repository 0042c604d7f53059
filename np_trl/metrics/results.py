"""Files of results: the metrics of a run, as `Trainer` saves them."""

import json
import logging
from pathlib import Path

from np_trl.files import write_whole


logger = logging.getLogger(__name__)


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
