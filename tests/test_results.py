"""The tables of results in both READMEs, number by number, beside the reports that they are taken from."""

import functools
import json
import re
from dataclasses import dataclass

import pytest
import yaml
from transformers import AutoConfig

from np_trl.models.modulation import FiLM, LoRAGate

from .testing_utils import ROOT, STYLE_GEMMA


README, RESULTS = ROOT / "README.md", ROOT / "examples" / "README.md"
FOLDERS = (ROOT / "examples" / "benchmarks" / "results", ROOT / "examples" / "paper" / "results")


@dataclass(frozen=True)
class Table:
    """
    Where the numbers of a table come from.

    Args:
        columns (`dict[str, str]`):
            Report and figure of each column, `report > figure` or `report > group > figure`.
        rows (`dict[str, tuple[str, ...]]`):
            The words that each row fills into `{0}`, `{1}`, ... of them. A list of two: a cell holds two numbers.
    """

    columns: dict[str, str]
    rows: dict[str, tuple[str, ...] | list[tuple[str, ...]]]


def by_context(template: str, *num_contexts: int) -> dict[str, str]:
    """A column for each number of choices, which the template calls `N`."""
    return {str(n): template.replace("N", str(n)) for n in num_contexts}


def named(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names}


MODULATIONS = {
    "FiLM of each block": ("recipe", "block", "block"),
    "FiLM of its attention": ("film_site attention", "attention", "attention"),
    "gated LoRA, in one layer": ("film_site lora", "lora", "lora, one layer"),
    "gated LoRA, in two layers": ("film_site lora, context_layer 1", "lora", "lora, two layers"),
}
QUESTIONS = {
    "Example 4.1": "4_1",
    "Example 4.1, normal latents": "4_1_gaussian",
    "Example 4.3": "4_3",
    "style population": "style",
    "style population, a policy": "policy",
    "statements, 20 personas": "persona",
    "Jester jokes, people": "jester",
    "arguments, people": "ukp",
}
TABLES = {
    README: {
        "choices given | 0 | 1 | 3 | 5 | 10": Table(
            by_context("np_dpo_style > eval_ncN_{0}", 0, 1, 3, 5, 10),
            {
                "accuracy on unseen pairs of new users": ("accuracy",),
                "standard error over seeds": ("accuracy_se_over_seeds",),
                "Bayes limit": ("bayes_accuracy",),
                "worst of the 16 types of users": ("worst_group_accuracy",),
                "other users' choices": ("shuffled_accuracy",),
                "written as the user wants": ("steering_accuracy",),
                "wins against what plain DPO writes": ("win_rate",),
                "written grammatically": ("grammatical",),
            },
        )
    },
    RESULTS: {
        "the recipe, but | 0 | 1 | 3 | 5 | 10 | worst type | others' 10 | as wanted | grammatical": Table(
            {
                **by_context("ablation_style > {0} > eval_ncN_accuracy", 0, 1, 3, 5, 10),
                "worst type": "ablation_style > {0} > eval_nc10_worst_group_accuracy",
                "others' 10": "ablation_style > {0} > eval_nc10_shuffled_accuracy",
                "as wanted": "ablation_style > {0} > eval_nc10_steering_accuracy",
                "grammatical": "ablation_style > {0} > eval_nc10_grammatical",
            },
            {
                "unchanged": ("recipe",),
                "no warm start from NP-BTL": ("no warm start",),
                "`np_learning_rate` 1e-6": ("np_learning_rate 1e-6",),
                "`film_site` attention": ("film_site attention",),
                "`pooling` sum": ("pooling sum",),
                "no LoRA": ("no LoRA",),
                "no SFT term": ("no SFT term",),
            },
        ),
        "what the latent changes | 0 | 1 | 3 | 5 | 10 | worst type | as wanted | grammatical | parameters | step | "
        "generation": Table(
            {
                **by_context("modulations_style > {0} > eval_ncN_accuracy", 0, 1, 3, 5, 10),
                "worst type": "modulations_style > {0} > eval_nc10_worst_group_accuracy",
                "as wanted": "modulations_style > {0} > eval_nc10_steering_accuracy",
                "grammatical": "modulations_style > {0} > eval_nc10_grammatical",
                "parameters": "the demo's map from the latent > {2}",
                "step": "modulations > {1}: step to FiLM of blocks",
                "generation": "modulations > {1}: generation to FiLM of blocks",
            },
            MODULATIONS,
        ),
        "16 types of users, choices given | 0 | 10 | others' 10": Table(
            {
                **by_context("np_dpo_smollm2 > {0}ncN_accuracy", 0, 10),
                "others' 10": "np_dpo_smollm2 > {0}nc10_shuffled_accuracy",
            },
            {
                "NP-DPO": ("eval_",),
                "NP-BTL on the same embeddings": ("eval_reward_",),
                "the base model": ("eval_base_",),
            },
        ),
        "SmolLM2, a step to TRL's DPO | time | memory": Table(
            {"time": "smollm2_step > {0}: time to TRL", "memory": "smollm2_step > {0}: memory to TRL"},
            {
                "blocks, above the trunk": ("block, above the trunk",),
                "blocks, above the trunk, trunk not kept": ("block, above the trunk, trunk not kept",),
                "blocks, all layers": ("block, all layers",),
                "attention, above the trunk": ("attention, above the trunk",),
                "attention, all layers": ("attention, all layers",),
                "gated LoRA, above the trunk": ("gated LoRA, above the trunk",),
            },
        ),
        "choices given | 0 | 1 | 3 | 5 | 10 | others' 10": Table(
            {
                **by_context("{0}ncN_{1}accuracy", 0, 1, 3, 5, 10),
                "others' 10": "{0}nc10_{1}shuffled_accuracy",
            },
            {
                "NP-DPO, 600 steps, two seeds": ("np_dpo_persona > eval_", ""),
                "its users who agree": ("np_dpo_persona > eval_", "True_"),
                "its users who disagree": ("np_dpo_persona > eval_", "False_"),
                "NP-DPO, 240 steps": ("np_dpo_persona_dedicated > eval_", ""),
                "NP-DPO, 240 steps, embedded by its own trunk": ("np_dpo_persona_trunk > eval_", ""),
                "mean difference of embeddings, no training": ("baselines_persona_seen > mean difference > ", ""),
                "NP-BTL reward model": ("np_dpo_persona > eval_reward_", ""),
                "DPO on all users; the base model": [
                    ("np_dpo_persona_dedicated > eval_mixture_", ""),
                    ("np_dpo_persona_dedicated > eval_base_", ""),
                ],
            },
        ),
        "choices given | 0 | 1 | 3 | 5 | 10 | 20 | others' 20": Table(
            {
                **by_context("np_reward_{0} > eval_ncN_accuracy", 0, 1, 3, 5, 10, 20),
                "others' 20": "np_reward_{0} > eval_nc20_shuffled_accuracy",
            },
            {
                "Jester jokes, 500 people": ("jester",),
                "statements, 10 unseen personas": ("persona",),
                "AlpacaEval, quality or brevity": ("alpacaeval",),
                "AlpacaEval, three objectives": ("alpacaeval_three_way",),
            },
        ),
        "choices given | Jester, 5 | Jester, 20 | personas, 1 | personas, 10 | AlpacaEval, 1 | AlpacaEval, 10": Table(
            {
                f"{label}, {n}": f"baselines_{name} > {{0}} > nc{n}_accuracy"
                for label, name, sizes in (
                    ("Jester", "jester", (5, 20)),
                    ("personas", "persona", (1, 10)),
                    ("AlpacaEval", "alpacaeval", (1, 10)),
                )
                for n in sizes
            },
            named(
                "population", "pooled BTL", "DPL", "dedicated BTL", "from scratch", "mean difference",
                "linear features", "empirical Bayes", "VPL", "NP-BTL",
            ),
        ),
        "questions answered | 0 | 1 | 2 | 3 | 4 | 5 | 7 | 10": Table(
            by_context("next_question_{0} > {1}_nN_accuracy", 0, 1, 2, 3, 4, 5, 7, 10),
            {f"{label}, {way}": (name, way) for label, name in QUESTIONS.items() for way in ("chosen", "random")},
        ),
        "written as the user wants | long, formal, sure prose | short, casual, hedged lists | grammatical, prose | "
        "grammatical, lists": Table(
            {
                "long, formal, sure prose": "grpo_style > eval_{0}_as_wanted",
                "short, casual, hedged lists": "grpo_style_user_5 > eval_{0}_as_wanted",
                "grammatical, prose": "grpo_style > eval_{0}_grammatical",
                "grammatical, lists": "grpo_style_user_5 > eval_{0}_grammatical",
            },
            {"base model": ("base_model",), "best of 8": ("best_of_8",), "GRPO, `beta` 0.4": ("grpo",)},
        ),
        " | 1,000 users | 1,000,000 users | one user of a million pairs, others of seven": Table(
            {
                "1,000 users": "data_at_size > {0}thousand{1}",
                "1,000,000 users": "data_at_size > {0}million{1}",
                "one user of a million pairs, others of seven": "data_at_size > {0}uneven{1}",
            },
            {
                "from nothing to the first step, index at hand, s": ("start with the index, ", ", s"),
                "the same, the first time, s": ("first start, ", ", s"),
                "memory of its own, MB more": ("memory growth, ", ", MB"),
                "tasks a second trained on, to 1,000 users": ("tasks trained on, ", " to thousand"),
                "tasks a second drawn and collated alone": ("tasks drawn, ", " to thousand"),
            },
        ),
    },
}  # fmt: skip
ELSEWHERE = {
    README: [
        "a ratio within one run | measured | goal",  # tests/test_readme.py
        "command | script | what it does",  # tests/test_cli.py
        "recipe in `examples/configs` | trained parameters | GPU memory | training | embedding and reference",  # derived
    ],
    RESULTS: ["what | command | time | picture"],
}


def read_tables(path) -> dict[str, dict[str, dict[str, str]]]:
    """The tables of a markdown file: their first line, then `{row: {column: cell}}`."""
    tables = {}
    for block in re.findall(r"(?:^\|.*\n?)+", path.read_text(), re.M):
        heading, _, *lines = [[cell.strip() for cell in line.strip().split("|")[1:-1]] for line in block.splitlines()]
        tables[" | ".join(heading)] = {first: dict(zip(heading[1:], cells, strict=True)) for first, *cells in lines}
    return tables


@functools.cache
def figures_of(report: str) -> dict:
    if report == "the demo's map from the latent":
        return count_parameters()
    (path,) = [folder / f"{report}.json" for folder in FOLDERS if (folder / f"{report}.json").exists()]
    figures = json.loads(path.read_text())["figures"]
    if report == "data_at_size":
        figures |= {f"tasks {kind}, thousand to thousand": 1.0 for kind in ("drawn", "trained on")}
    return figures


def count_parameters() -> dict[str, int]:
    """Parameters of the map from the latent to FiLM, or to the gates, with the demo's recipe."""
    recipe = yaml.safe_load((ROOT / "examples" / "configs" / "np_dpo_style.yaml").read_text())
    base, latent_size = AutoConfig.from_pretrained(STYLE_GEMMA), recipe["film_kwargs"]["context_config"]["latent_size"]
    film = FiLM(latent_size, base.num_hidden_layers, base.hidden_size)
    directions = recipe["lora_r"] * len(recipe["lora_target_modules"])  # of a layer
    maps = {"block": film, "attention": film}
    maps |= {f"lora, {n}": LoRAGate(latent_size, i * directions) for i, n in ((1, "one layer"), (2, "two layers"))}
    return {name: sum(weight.numel() for weight in module.parameters()) for name, module in maps.items()}


def look_up(key: str) -> float:
    report, *path = key.split(" > ")
    return functools.reduce(lambda figures, name: figures[name], path, figures_of(report))


def print_like(cell: str, key: str) -> str:
    """Print the figure, and its standard error where the cell has one, with the digits of the cell."""
    numbers = cell.split(" ± ")
    keys = [key, f"{key}_se_over_seeds"][: len(numbers)]
    return " ± ".join(
        f"{look_up(key):,.{len(number.partition('.')[2])}f}" for number, key in zip(numbers, keys, strict=True)
    )


@pytest.mark.parametrize(
    "path, heading",
    [
        pytest.param(path, heading, id=f"{path.relative_to(ROOT)}-{heading[:24]}-{number}")
        for path, tables in TABLES.items()
        for number, heading in enumerate(tables)
    ],
)
def test_a_table_holds_what_its_reports_hold(path, heading):
    table, cells = TABLES[path][heading], read_tables(path)[heading]
    assert cells.keys() == table.rows.keys()
    for row, of_row in cells.items():
        assert any(of_row.values()) and of_row.keys() == table.columns.keys(), row
        fills = table.rows[row] if isinstance(table.rows[row], list) else [table.rows[row]]
        for column, cell in of_row.items():
            if cell:
                parts = zip(cell.split("; "), fills, strict=True)
                expected = [print_like(part, table.columns[column].format(*fill)) for part, fill in parts]
                assert cell == "; ".join(expected), (row, column)


@pytest.mark.parametrize("path", TABLES, ids=["README", "examples/README"])
def test_every_table_is_held_to_a_report(path):
    assert sorted(read_tables(path)) == sorted([*TABLES[path], *ELSEWHERE[path]])
