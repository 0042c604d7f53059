"""
Sections 4.2 and 4.3, appendix D.1: how NP-DPO's implicit reward follows the number of choices given, for every group of users,
beside DPO on all users and dedicated DPO (Fig. 2b; Fig. 6b for three modes).

The numbers are those that `examples/np_dpo.py --baselines mixture dedicated` measured, over several seeds:

```sh
python examples/paper/fig2_policies.py --results examples/benchmarks/results/np_dpo_style.json --figure fig2_policies_style
```
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
from figures import HERE, error_bars, save_picture
from trl import TrlParser


@dataclass
class ScriptArguments:
    results: str = field(metadata={"help": "JSON that `examples/benchmarks/summarize.py` saved."})
    figure: str = field(metadata={"help": "Name of the picture."})
    results_dir: str = field(default=str(HERE / "results"), metadata={"help": "Folder of the picture."})


def draw(ax, numbers: dict[str, float]) -> None:
    """Draw a line for each group, thick for the mean of all users, and the models that know no users beside them."""
    num_contexts = sorted({int(found[1]) for key in numbers if (found := re.match(r"eval_nc(\d+)_accuracy$", key))})
    pattern = re.compile(rf"eval_nc{num_contexts[-1]}_(?!worst_group|shuffled|bayes|new_options)(.+)_gain$")
    groups = sorted(found[1] for key in numbers if (found := pattern.match(key)))
    few = len(groups) <= 4
    for index, group in enumerate(groups):
        keys = [f"eval_nc{n}_{group}_accuracy" for n in num_contexts]
        color = f"C{index % 10}"
        error_bars(
            ax, num_contexts, numbers, keys, color=color, lw=1, alpha=1 if few else 0.4, label=group if few else None
        )
        if few and f"eval_dedicated_nc0_{group}_accuracy" in numbers:
            ax.axhline(numbers[f"eval_dedicated_nc0_{group}_accuracy"], color=color, ls="--", lw=1)
    keys = [f"eval_nc{n}_accuracy" for n in num_contexts]
    error_bars(ax, num_contexts, numbers, keys, color="black", lw=2, label="NP-DPO, all users")
    lines = {"dedicated": "--", "mixture": ":", "base": "-."}
    for name, style in lines.items():
        if f"eval_{name}_nc0_accuracy" in numbers:
            ax.axhline(numbers[f"eval_{name}_nc0_accuracy"], color="gray", ls=style, label=f"DPO, {name}")
    few_shot = [f"eval_few_shot_nc{n}_accuracy" for n in num_contexts]
    if set(few_shot) <= numbers.keys():
        error_bars(ax, num_contexts, numbers, few_shot, color="gray", lw=1, label="DPO, few_shot")
    ax.set(xlabel="choices given $N_C$", xticks=num_contexts, ylabel="implicit-reward accuracy, unseen pairs")
    ax.legend(fontsize=7, loc="lower right")


def main(script_args: ScriptArguments) -> None:
    report = json.loads(Path(script_args.results).read_text())
    picture, ax = plt.subplots(figsize=(4.5, 3.4), layout="constrained")
    draw(ax, report["figures"])
    save_picture(picture, Path(script_args.results_dir) / f"{script_args.figure}.png")


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())
