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
from pathlib import Path

from report import report

from np_trl.evaluation.report import summarize_runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--name", required=True, help="The report is saved as results/NAME.json.")
    parser.add_argument(
        "--runs", required=True, nargs="+", type=Path, help="Output directories. One has no standard error over seeds."
    )
    arguments = parser.parse_args()
    runs = [json.loads((run / "eval_results.json").read_text()) for run in arguments.runs]
    report(arguments.name, summarize_runs(runs), runs=[str(run) for run in arguments.runs])
