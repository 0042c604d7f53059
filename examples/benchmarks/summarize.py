"""
Mean and standard error over several seeds of what a training script saved in `eval_results.json`.

```sh
for seed in 0 1 2; do
    accelerate launch examples/np_dpo.py --config examples/configs/np_dpo_style.yaml --seed $seed --output_dir runs/style_$seed
done
python examples/benchmarks/summarize.py --name np_dpo_style --runs runs/style_0 runs/style_1 runs/style_2
```
"""

import argparse
import json
import statistics
from pathlib import Path

from report import report


def summarize(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every metric that all runs have, and of what is not a standard error already, that of the mean."""
    figures = {}
    for key in sorted(set.intersection(*(set(run) for run in runs))):
        values = [run[key] for run in runs]
        figures[key] = statistics.mean(values)
        if not key.endswith("_se"):
            figures[f"{key}_se_over_seeds"] = statistics.stdev(values) / len(values) ** 0.5
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--name", required=True, help="The report is saved as results/NAME.json.")
    parser.add_argument("--runs", required=True, nargs="+", type=Path, help="Two or more output directories.")
    arguments = parser.parse_args()
    if len(arguments.runs) < 2:
        parser.error(f"--runs names {len(arguments.runs)} run; a standard error needs two or more.")
    runs = [json.loads((run / "eval_results.json").read_text()) for run in arguments.runs]
    report(arguments.name, summarize(runs), runs=[str(run) for run in arguments.runs])
