"""
What each part of an NP-DPO recipe contributes: the recipe with one part changed at a time, over several seeds.

```sh
python examples/ablation.py --recipe examples/configs/np_dpo_style.yaml --name ablation_style --output_dir runs/ablation_style
```

Runs that have finished with the same settings are not repeated, so that an interrupted table is resumed, and several
processes may share the work (`--variants`). The table holds the rows whose runs are all there.
"""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from trl import TrlParser

from np_trl.data.ranges import check_at_least
from np_trl.evaluation.report import save_report, summarize_runs
from np_trl.files import write_whole
from np_trl.metrics.results import read_results


HERE = Path(__file__).resolve().parent
# what differs from the recipe; dicts are merged
VARIANTS = {
    "recipe": {},
    "no warm start": {"reward_steps": 0},
    "np_learning_rate 1e-6": {"np_learning_rate": 1e-6},
    "film_site attention": {"film_kwargs": {"film_site": "attention"}},
    "film_site lora": {"film_kwargs": {"film_site": "lora"}},
    "film_site lora, context_layer 1": {"film_kwargs": {"film_site": "lora", "context_layer": 1}},
    "pooling sum": {"film_kwargs": {"context_config": {"pooling": "sum"}}},
    "pooling mean": {"film_kwargs": {"context_config": {"pooling": "mean"}}},
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

    def __post_init__(self):
        check_at_least(1, num_seeds=self.num_seeds)
        unknown = sorted(set(self.variants) - set(VARIANTS))
        if unknown:
            raise ValueError(f"`variants` {unknown} are unknown. Choose among {list(VARIANTS)}.")


def read_recipe(path: str) -> dict:
    """Read a recipe."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"`recipe={path!r}` cannot be read as YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"`recipe={path!r}` holds a {type(recipe).__name__}, but must hold arguments: `name: value`.")
    return recipe


def merge(recipe: dict, changes: dict) -> dict:
    """Change a recipe; dicts in it are merged."""
    merged = dict(recipe)
    for key, value in changes.items():
        merged[key] = merge(merged.get(key) or {}, value) if isinstance(value, dict) else value
    return merged


class Run:
    """
    One variant of a recipe on one seed, in a folder of its own.

    Args:
        recipe (`dict`):
            The recipe.
        variant (`str`):
            One of the `VARIANTS`.
        seed (`int`):
            The seed.
        output_dir (`str`):
            Folder of all runs.
    """

    def __init__(self, recipe: dict, variant: str, seed: int, output_dir: str):
        self.folder = Path(output_dir) / f"{variant.replace(' ', '_').replace(',', '')}_{seed}"
        changes = {**VARIANTS[variant], "seed": seed, "output_dir": str(self.folder), "baselines": []}
        self.config = merge(recipe, changes)

    @property
    def has_finished(self) -> bool:
        """Whether it was run with the settings of today."""
        config = self.folder / "config.yaml"
        return self.read() is not None and config.exists() and read_recipe(config) == self.config

    def train(self) -> None:
        """Train and evaluate, in a process of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        running, finished = self.folder / "running.yaml", self.folder / "config.yaml"
        finished.unlink(missing_ok=True)
        write_whole(running, yaml.safe_dump(self.config))
        command = [sys.executable, str(HERE / "np_dpo.py"), "--config", str(running)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        os.replace(running, finished)  # whatever was measured before a run ended is not all of it

    def read(self) -> dict[str, float] | None:
        """Read what it measured, if it is there and whole."""
        return read_results(self.folder / "eval_results.json")


def main(script_args: ScriptArguments) -> None:
    recipe = read_recipe(script_args.recipe)
    recipe |= {} if script_args.num_threads is None else {"num_threads": script_args.num_threads}
    runs = {
        variant: [Run(recipe, variant, seed, script_args.output_dir) for seed in range(script_args.num_seeds)]
        for variant, changes in VARIANTS.items()
        if variant == "recipe" or merge(recipe, changes) != recipe
    }
    for seed in range(script_args.num_seeds):
        for variant in script_args.variants:
            if variant in runs and not runs[variant][seed].has_finished:
                runs[variant][seed].train()
    table = {
        variant: summarize_runs([run.read() for run in seeds])
        for variant, seeds in runs.items()
        if all(run.has_finished for run in seeds)
    }
    facts = {"num_seeds": script_args.num_seeds, "recipe": recipe}
    save_report(Path(script_args.results_dir) / f"{script_args.name}.json", table, **facts)
    print_table(table)


def print_table(table: dict[str, dict[str, float]]) -> None:
    num_contexts = [n for n in range(100) if any(f"eval_nc{n}_accuracy" in figures for figures in table.values())]
    print(f"{'accuracy at N_C':<40}" + "".join(f"{n:>8}" for n in num_contexts))
    for variant, figures in table.items():
        print(f"{variant:<40}" + "".join(f"{figures[f'eval_nc{n}_accuracy']:>8.3f}" for n in num_contexts))


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())
