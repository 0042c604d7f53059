"""
What each part of an NP-DPO recipe contributes: the recipe with one part changed at a time, over several seeds.

```sh
python examples/ablation.py --recipe examples/configs/np_dpo_style.yaml --name ablation_style --output_dir runs/ablation_style
```

Runs that have finished are not repeated, so an interrupted table goes on where it stopped, and several processes may share
it (`--variants`). The table is written when all its runs are there.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


sys.path.append(sys.path.pop(0))  # this folder last: its evaluate.py would hide the library `evaluate`

import yaml  # noqa: E402
from trl import TrlParser  # noqa: E402

from np_trl.metrics.report import save_report, summarize_runs  # noqa: E402


HERE = Path(__file__).resolve().parent
# what differs from the recipe; dicts are merged
VARIANTS = {
    "recipe": {},
    "no warm start": {"reward_steps": 0},
    "np_learning_rate 1e-6": {"np_learning_rate": 1e-6},
    "film_site attention": {"film_kwargs": {"film_site": "attention"}},
    "pooling sum": {"film_kwargs": {"context_config": {"pooling": "sum"}}},
    "no LoRA": {"learning_rate": 0.0},
    "no SFT term": {"loss_type": ["sigmoid"], "loss_weights": [1.0]},
}


@dataclass
class ScriptArguments:
    recipe: str = field(metadata={"help": "The recipe (YAML) whose parts are changed."})
    name: str = field(metadata={"help": "The table is saved as results/NAME.json."})
    output_dir: str = field(metadata={"help": "Folder of the runs."})
    variants: list[str] = field(
        default_factory=lambda: list(VARIANTS), metadata={"help": "Rows of the table. Default: all."}
    )
    num_seeds: int = field(default=3, metadata={"help": "Number of runs of each, with the seeds 0, 1, ..."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads of a run. Default: the recipe's."})
    results_dir: str = field(default=str(HERE / "benchmarks" / "results"), metadata={"help": "Folder of the table."})


def merge(recipe: dict, changes: dict) -> dict:
    """Change a recipe; dicts in it are merged."""
    merged = dict(recipe)
    for key, value in changes.items():
        merged[key] = merge(merged.get(key) or {}, value) if isinstance(value, dict) else value
    return merged


def run(recipe: dict, variant: str, seed: int, folder: Path) -> None:
    """Train and evaluate one variant on one seed in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = {**VARIANTS[variant], "seed": seed, "output_dir": str(folder), "baselines": []}
    (folder / "config.yaml").write_text(yaml.safe_dump(merge(recipe, changes)))
    command = [sys.executable, str(HERE / "np_dpo.py"), "--config", str(folder / "config.yaml")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main(script_args: ScriptArguments) -> None:
    recipe = yaml.safe_load(Path(script_args.recipe).read_text())
    recipe |= {} if script_args.num_threads is None else {"num_threads": script_args.num_threads}
    results = {}
    for seed in range(script_args.num_seeds):
        for variant in script_args.variants:
            folder = Path(script_args.output_dir) / f"{variant.replace(' ', '_').replace(',', '')}_{seed}"
            if not (folder / "eval_results.json").exists():
                run(recipe, variant, seed, folder)
            results.setdefault(variant, []).append(json.loads((folder / "eval_results.json").read_text()))
    table = {variant: summarize_runs(runs) for variant, runs in results.items()}
    save_report(
        Path(script_args.results_dir) / f"{script_args.name}.json",
        table,
        num_seeds=script_args.num_seeds,
        recipe=recipe,
    )
    num_contexts = [n for n in range(100) if f"eval_nc{n}_accuracy" in table[script_args.variants[0]]]
    print(f"{'accuracy at N_C':<40}" + "".join(f"{n:>8}" for n in num_contexts))
    for variant, figures in table.items():
        print(f"{variant:<40}" + "".join(f"{figures[f'eval_nc{n}_accuracy']:>8.3f}" for n in num_contexts))


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())
