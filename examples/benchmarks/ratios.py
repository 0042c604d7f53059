"""
What np_trl costs, in ratios: README's table, from the reports of the other scripts.

```sh
python examples/benchmarks/ratios.py --run  # twenty minutes on 2 CPU cores; else from the saved reports
```
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


FOLDER = Path(__file__).parent
SCRIPTS = {
    "dpo_step": [],
    "reward_step": [],
    "evaluation": [],
    "generation": [],
    "growth": [],
    "data_at_size": ["--output_dir", "runs/data_at_size"],
}
CASES = ("LoRA, precomputed", "LoRA", "full, precomputed", "full")
# what, the goal, the report, and its figures
ROWS = [
    *(
        (
            f"NP-DPO step with ten choices to TRL's DPO, {case}: time, memory",
            "≤ 1.05",
            "dpo_step",
            (f"{case}: time ratio, N_C=10", f"{case}: memory ratio"),
        )
        for case in CASES
    ),
    ("NP-DPO step with ten choices to none", "1", "dpo_step", ("LoRA, precomputed: N_C=10 to N_C=0",)),
    ("NP-BTL step to its bare matrix products", "≤ 1.3", "reward_step", ("step to bare products, median of pairs",)),
    ("reading and collating to an NP-BTL step", "< 1", "reward_step", ("collator to step, median of pairs",)),
    ("evaluation at five N_C to each by itself", "< 1", "evaluation", ("over all N_C to each by itself",)),
    ("generation for mixed users to the base model", "1", "generation", ("ratio, median of paired rounds",)),
    ("inferring a user to one token of the demo", "< 1", "generation", ("inferring to a forward pass",)),
    (
        "tasks a second, 1,000,000 users to 1,000: trained on, drawn alone",
        "≥ 0.9",
        "data_at_size",
        ("tasks trained on, million to thousand", "tasks drawn, million to thousand"),
    ),
    *(
        (
            f"{what}: NP-BTL step, NP-DPO step",
            "2",
            "growth",
            (f"NP-BTL, {ours}: time at {sizes}", f"NP-DPO, {theirs}: time at {sizes}"),
        )
        for what, ours, theirs, sizes in (
            ("twice as many users (128)", "users", "users", "128 to 64"),
            ("twice as many targets (128)", "N_T", "N_T", "128 to 64"),
            ("twice as many choices (256)", "N_C, posterior memory", "N_C", "256 to 128"),
        )
    ),
    ("twice as many tokens (512): NP-DPO step", "2", "growth", ("NP-DPO, sequence length: time at 512 to 256",)),
]


def run_scripts() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, arguments in SCRIPTS.items():
        subprocess.run([sys.executable, FOLDER / f"{name}.py", *arguments], check=True, env=environment)


def make_table() -> str:
    reports = {name: json.loads((FOLDER / "results" / f"{name}.json").read_text())["figures"] for name in SCRIPTS}
    lines = ["| a ratio within one run | measured | goal |", "|---|---|---|"]
    for what, goal, name, keys in ROWS:
        measured = ", ".join(f"{reports[name][key]:.2f}" for key in keys)
        lines.append(f"| {what} | {measured} | {goal} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", action="store_true", help="Run the other scripts first.")
    if parser.parse_args().run:
        run_scripts()
    print(make_table())
