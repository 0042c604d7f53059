"""The figures of the paper, in small."""

import itertools
import json
import re
import runpy
import sys

import numpy as np
import pytest
from datasets import Dataset
from tests.testing_utils import ROOT, tiny_policy, tiny_tokenizer

from np_trl.data.embeddings import text_id


pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
FOLDER = ROOT / "examples" / "paper"
SMALL = "--max_steps 3 --num_seeds 1 --per_device_train_batch_size 4 --hidden_size 16 --latent_size 16 --memory_size 8"


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Run a script in a folder of its own, and return the numbers it writes beside its picture."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)

    def run(script: str, *arguments) -> dict:
        script = FOLDER / f"{script}.py"
        command = [str(script), "--results_dir", "out", *SMALL.split(), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(script), run_name="__main__")
        (numbers,) = (tmp_path / "out").glob("*.json")
        assert numbers.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        return json.loads(numbers.read_text())["figures"]

    return run


def write_items(path) -> list[str]:
    """Save responses to 40 prompts with three scores, and embeddings that hold the scores; return how to name them."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"prompt {prompt}",
            "response": f"response {prompt} {index}",
            **dict(zip("abc", rng.normal(size=3), strict=True)),
        }
        for prompt in range(40)
        for index in range(5)
    ]
    Dataset.from_list(
        [{**row, "prompt_split": "train" if i < 100 else "val"} for i, row in enumerate(rows)]
    ).to_parquet(path / "items.parquet")
    table = [{"text_id": text_id(row["response"]), "embedding": [row[score] for score in "abc"]} for row in rows]
    Dataset.from_list(table).to_parquet(path / "embeddings.parquet")
    sizes = "--num_train_pairs 40 --num_eval_users 6 --num_eval_pairs 20 --num_targets 5 --max_context 4"
    return ["--dataset_name", "items.parquet", "--embeddings", "embeddings.parquet", *sizes.split()]


def test_figure_1_holds_all_models_and_the_limit(draw):
    numbers = draw("fig1_synthetic", "--num_users", 40)
    for n in (0, 1, 3, 5, 10):  # with every choice, half as many users are taken for the others
        assert numbers[f"bayes_nc{n}_accuracy"] == pytest.approx(1 - 0.25 / 2**n)
    curve = [numbers[f"np_btl_nc{n}_nll"] for n in (0, 1, 3, 5, 10)]
    assert curve == sorted(curve, reverse=True) and curve[-1] < curve[0] - 0.03  # of BTL it would be flat
    for name in ("btl", "dpl"):
        assert [key for key in numbers if key.startswith(name) and key.endswith("_nll")] == [f"{name}_nc0_nll"]
        assert numbers[f"{name}_nc0_nll"] == pytest.approx(np.log(2), abs=0.01)
    assert len({numbers[f"{name}_nc0_nll"] for name in ("btl", "dpl", "np_btl")}) == 3  # three models


def test_figure_4_holds_the_error_at_every_correlation(draw):
    sizes = "--num_tasks 40 --train_correlations -1 0 --test_correlations -1 0.5 --eval_num_contexts 1 3".split()
    numbers = draw("fig4_identifiability", *sizes)
    assert numbers["bayes_test0.5_nc1_error"] == pytest.approx(0.25 + np.arcsin(0.5) / (2 * np.pi))
    for train, kind in itertools.product(("-1.0", "0.0"), ("pair", "task")):
        assert numbers[f"train{train}_test-1.0_nc1_{kind}_error"] < 0.03  # one choice tells who chose
        for n in (1, 3):
            error, se = (numbers[f"train{train}_test0.5_nc{n}_{kind}_error{end}"] for end in ("", "_se"))
            assert error == pytest.approx(numbers[f"bayes_test0.5_nc{n}_error"], abs=3 * se)


@pytest.mark.parametrize("script, modes", [("fig2_rewards", "ab"), ("fig6_three_modes", "abc")])
def test_figures_2_and_6_hold_every_group_and_its_dedicated_model(draw, tmp_path, script, modes):
    numbers = draw(script, *write_items(tmp_path), "--modes", *modes, "--eval_num_contexts", 0, 4)
    for mode in modes:
        assert numbers[f"np_btl_{mode}_nc4_accuracy"] > 0.7
        others = [numbers[f"btl_{mode}_{other}_nc0_accuracy"] for other in modes if other != mode]
        assert numbers[f"btl_{mode}_{mode}_nc0_accuracy"] > 0.85 > 0.55 > max(others)
    # four choices tell the groups apart, which neither none nor another user's do
    assert numbers["np_btl_mean_nc4_accuracy"] > 0.8
    for key in ("np_btl_mean_nc0_accuracy", "np_btl_mean_nc4_shuffled_accuracy"):
        assert numbers[key] == pytest.approx(0.5, abs=0.15), key
    # within a group, another user's context is as good as one's own
    assert [key for key in numbers if key.endswith("shuffled_accuracy")] == ["np_btl_mean_nc4_shuffled_accuracy"]
    if script == "fig2_rewards":  # on pairs that all conflict, one reward for everybody is right for half of the users
        assert numbers["btl_mixed_mean_nc0_accuracy"] == pytest.approx(0.5, abs=0.15)


def test_figure_3_holds_the_latents_by_number_of_choices(draw, tmp_path):
    contexts = "--modes a b --eval_num_contexts 1 4".split()
    numbers = draw("fig3_latents", *write_items(tmp_path), *contexts)
    assert numbers["nc4_silhouette"] > 0.2 and numbers["nc4_silhouette"] > numbers["nc1_silhouette"] + 0.1


def test_figure_2_of_policies_draws_every_group_that_was_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("MPLBACKEND", "agg")
    import fig2_policies
    import matplotlib.pyplot as plt

    numbers = {f"eval_nc{n}_{key}": 0.5 + n / 20 for n in (0, 5) for key in ("accuracy", "a_accuracy", "b_accuracy")}
    numbers |= {
        "eval_nc5_gain": 0.2,
        "eval_nc5_a_gain": 0.2,
        "eval_nc5_b_gain": 0.2,
        "eval_dedicated_nc0_a_accuracy": 0.9,
    }
    _, ax = plt.subplots()
    fig2_policies.draw(ax, numbers)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "NP-DPO, all users"]
    lines = [line for line in ax.lines if list(line.get_xdata()) == [0, 5] and line.get_linestyle() == "-"]
    assert len(lines) == 3 and all(list(line.get_ydata()) == [0.5, 0.75] for line in lines)


def test_figure_5_holds_every_rate(draw, tmp_path):
    rates = "--modes a b --train_rates 1 0.5 --context_rates 0 1 --eval_num_contexts 1 4".split()
    numbers = draw("fig5_conflict", *write_items(tmp_path), *rates)
    for train in ("1.0", "0.5"):  # choices on which the groups agree say nothing of who chose
        assert numbers[f"train{train}_context0.0_nc4_accuracy"] == pytest.approx(0.5, abs=0.15)
        assert numbers[f"train{train}_context1.0_nc4_accuracy"] > 0.75
    assert numbers["btl_dedicated_accuracy"] > 0.9


def test_figure_8_covers_the_simplex(draw, tmp_path):
    sizes = "--modes a b c --num_train_users 8 --grid 2 2 --eval_num_contexts 0 4".split()
    numbers = draw("fig8_continuum", *write_items(tmp_path), *sizes)
    for setup, num_points in (("2d", 3), ("3d", 6)):
        figures = numbers[setup]
        points = {key: value for key, value in figures.items() if re.fullmatch(r"np_btl_z.*_nc4_accuracy", key)}
        assert len(points) == num_points
        assert figures["np_btl_mean_nc4_accuracy"] == pytest.approx(np.mean(list(points.values())))
        assert figures["np_btl_worst_nc4_accuracy"] == min(points.values())
        assert figures["np_btl_mean_nc4_accuracy"] > figures["np_btl_mean_nc0_accuracy"] + 0.1
        assert figures["np_btl_mean_nc4_accuracy"] > figures["btl_mean_nc0_accuracy"] + 0.1
    for corner in ("z1.00_0.00", "z0.00_1.00"):  # each has one score of its own
        assert numbers["2d"][f"np_btl_{corner}_nc4_accuracy"] > 0.8


def test_without_a_split_a_tenth_of_the_prompts_is_kept_for_evaluation(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    from modes import ItemArguments

    aspects = {aspect: {"Rating": "3"} for aspect in ("helpfulness", "honesty")}
    rows = [
        {
            "instruction": f"prompt {prompt}",
            "completions": [{"response": text, "model": "m", "annotations": aspects} for text in ("yes", "no")],
        }
        for prompt in range(400)
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "ultrafeedback.parquet")
    train, evaluation = ItemArguments(dataset_name=str(tmp_path / "ultrafeedback.parquet")).load()
    assert len(train) + len(evaluation) == 800
    assert not set(train["prompt"]) & set(evaluation["prompt"])
    assert abs(len(evaluation) / 800 - 0.1) < 0.06  # four standard errors


def test_next_question_asks_by_both_ways_and_predicts_other_pairs(draw):
    sizes = "--figure next_question --num_users 6 --num_open 8 --num_questions 2".split()
    numbers = draw("next_question", *sizes, "--dataset_name", "example_4_3", "--max_steps", 60)
    assert numbers["num_users"] == 6
    assert numbers["chosen_n2_user_error"] <= numbers["chosen_n0_user_error"]
    for n in range(3):
        gain = numbers[f"chosen_n{n}_accuracy"] - numbers[f"random_n{n}_accuracy"]
        assert numbers[f"gain_n{n}_accuracy"] == pytest.approx(gain)
    assert numbers["gain_n0_accuracy"] == 0
    split = runpy.run_path(str(FOLDER / "next_question.py"))["split"]
    rows = [{"prompt": f"prompt {number % 10}", "number": number} for number in range(40)]
    for disjoint in (False, True):
        questions, targets = split(rows, 12, disjoint, np.random.default_rng(0))
        assert (len(questions), len(targets)) == (12, 20)
        assert not {row["number"] for row in questions} & {row["number"] for row in targets}
        shared = {row["prompt"] for row in questions} & {row["prompt"] for row in targets}
        assert bool(shared) != disjoint


def test_next_question_asks_of_trained_policies(draw, tmp_path):
    tiny_policy(tmp_path).save_pretrained(tmp_path / "policy")
    tiny_tokenizer().save_pretrained(tmp_path / "policy")
    sizes = "--num_users 2 --num_open 4 --num_questions 2 --num_samples 2 --num_imagined 1".split()
    recipe = ("--config", ROOT / "examples" / "configs" / "np_reward_style.yaml")
    numbers = draw("next_question", *recipe, *sizes, "--figure", "asked", "--policies", "policy", "policy")
    assert numbers["num_users"] == 2
    assert numbers["chosen_n0_accuracy"] == numbers["random_n0_accuracy"]
    assert {"chosen_n2_accuracy_se_over_seeds", "random_n2_accuracy_se_over_seeds"} <= numbers.keys()
