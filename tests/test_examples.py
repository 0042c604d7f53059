"""The examples, end to end, in small."""

import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoTokenizer, set_seed
from trl import TrlParser

from np_trl import NPDPOConfig, NPDPOTrainer, NPRewardConfig, load_policy
from np_trl.data import EvaluationProtocol
from np_trl.data.embeddings import text_id
from np_trl.evaluation.generations import check_writer
from np_trl.populations.style import STYLE
from np_trl.scripts import generate
from np_trl.scripts.evaluation_arguments import EvaluationArguments
from np_trl.scripts.reward_model_arguments import RewardModelArguments

from .testing_utils import ROOT, dpo_config, embedded_rows, style_rows, tiny_base, tiny_reward_model, tiny_tokenizer


EXAMPLES = ROOT / "examples"
USERS = ("casual_prose", "formal_lists")


def run(script: str, *arguments, cwd) -> str:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def results(path) -> dict:
    return json.loads((path / "eval_results.json").read_text())


def of_groups(metrics: dict, name: str, ending: str, groups: list[str]) -> list[float]:
    return [metrics[f"{name}_{group}_{ending}"] for group in groups]


def expected_answers(path, choices: list[dict]) -> str:
    """What `generate.py` prints for a user: the same seed, and the latents of the user's choices."""
    policy = load_policy(str(path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    prompts = ["How do I clean the bike?", "How do I tune the radio?"]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    latents = policy.infer_user(choices, tokenizer).expand(len(prompts), -1)
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 0, "max_new_tokens": 64}
    set_seed(0)
    answers = policy.generate(**inputs, latents=latents, **sampling)[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return "".join(f"\n{prompt}\n{text}\n" for prompt, text in zip(prompts, texts, strict=True))


def test_the_style_example_trains_evaluates_saves_and_writes(tmp_path):
    config = EXAMPLES / "configs" / "np_dpo_style.yaml"
    small = "--num_train_users 32 --num_eval_users 32 --reward_steps 20 --max_steps 4 --baseline_steps 2".split()
    small += "--per_device_train_batch_size 4 --np_learning_rate 5e-3 --num_threads 1".split()
    printed = run("np_dpo.py", "--config", config, *small, cwd=tmp_path)
    metrics = results(tmp_path / "runs" / "np_dpo_style")
    groups = [STYLE.name(style) for style in STYLE.styles]
    for name in ("eval_nc0", "eval_nc10", "eval_mixture_nc0", "eval_reward_nc10"):  # every group has two users
        accuracies = of_groups(metrics, name, "accuracy", groups)
        assert metrics[f"{name}_accuracy"] == pytest.approx(np.mean(accuracies)), name
        assert metrics[f"{name}_worst_group_accuracy"] == min(accuracies), name
    assert metrics["eval_nc10_win_rate"] == pytest.approx(np.mean(of_groups(metrics, "eval_nc10", "win_rate", groups)))
    assert metrics["eval_nc0_bayes_accuracy"] == 0.5 and metrics["eval_nc10_bayes_accuracy"] > 0.99
    # who knows no choices, or another user's, is right for as many users as wrong
    for key in ("eval_nc0", "eval_mixture_nc0", "eval_reward_nc0"):
        assert metrics[f"{key}_accuracy"] == pytest.approx(0.5, abs=0.12), key
    assert metrics["eval_reward_nc10_accuracy"] > 0.7 > 0.62 > metrics["eval_reward_nc10_shuffled_accuracy"]
    # 4 steps change little of what is written, in the same language
    assert metrics["eval_nc10_steering_accuracy"] == pytest.approx(0.5, abs=0.15)
    assert metrics["eval_nc10_base_grammatical"] > 0.95 and metrics["eval_nc10_grammatical"] > 0.7
    assert 1e-3 < metrics["eval_nc10_kl"] < 0.5
    assert printed.count("to a user who chose") == 4
    merged = tmp_path / "runs" / "np_dpo_style" / "merged"
    # the merged policy, and the adapter
    users = {name: json.loads((EXAMPLES / "users" / f"{name}.json").read_text())["pairs"] for name in USERS}
    for path in (merged, merged.parent):
        of_users = {name: expected_answers(path, choices) for name, choices in users.items()}
        assert len(set(of_users.values())) == 2
        name = USERS[path == merged]
        choices = EXAMPLES / "users" / f"{name}.json"
        printed = run("generate.py", "--model_name_or_path", path, "--user", choices, cwd=tmp_path)
        assert printed == of_users[name]
    # what an adapter writes, against the mixture's policy, and its latents
    users = ["--dataset_name", merged.parent / "users.parquet", "--group_column", "group"]
    judged = ["--num_generations", 1, "--judges", "style_population", "--opponent", merged.parent / "mixture"]
    contexts = ["--num_contexts", 0, 2]
    run("evaluate_model.py", "--model", merged.parent, *users, *contexts, *judged, "--output_dir", "out", cwd=tmp_path)
    written = results(tmp_path / "out")
    assert written["eval_nc2_win_rate"] == pytest.approx(np.mean(of_groups(written, "eval_nc2", "win_rate", groups)))
    assert written["eval_nc2_kl"] > 5 * written["eval_nc0_kl"] > 0  # choices move the policy
    for writer in ("base", "opponent"):  # but nobody else
        assert written[f"eval_nc2_{writer}_tokens"] == written[f"eval_nc0_{writer}_tokens"]
    assert written["eval_nc0_base_tokens"] != written["eval_nc0_opponent_tokens"]
    pytest.importorskip("matplotlib")
    figure = ["--num_contexts", 0, 1, 10, "--figure", "latents", "--results_dir", "pictures"]
    run("paper/fig3_policies.py", "--model", merged.parent, *users, *figure, cwd=tmp_path)
    figures = json.loads((tmp_path / "pictures" / "latents.json").read_text())["figures"]
    assert figures["nc10_silhouette"] > figures["nc1_silhouette"] + 0.1  # the groups part with the choices


def test_an_ablation_changes_one_part_at_a_time_and_goes_on_where_it_stopped(tmp_path):
    recipe = yaml.safe_load((EXAMPLES / "configs" / "np_dpo_style.yaml").read_text())
    sizes = {"num_train_users": 16, "num_eval_users": 16, "reward_steps": 5, "max_steps": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **sizes, "per_device_train_batch_size": 4}))
    options = "--recipe recipe.yaml --name table --output_dir runs --num_threads 1 --num_seeds 1 --results_dir out"
    variants = ["--variants", "recipe", "film_site lora"]
    first = run("ablation.py", *options.split(), *variants, cwd=tmp_path)
    config = yaml.safe_load((tmp_path / "runs" / "film_site_lora_0" / "config.yaml").read_text())
    assert config["film_kwargs"] == {**recipe["film_kwargs"], "film_site": "lora"} and config["max_steps"] == 2
    table = json.loads((tmp_path / "out" / "table.json").read_text())["figures"]
    assert list(table) == ["recipe", "film_site lora"] and "eval_nc10_worst_group_accuracy" in table["recipe"]
    (tmp_path / "runs" / "recipe_0" / "merged" / "config.json").unlink()
    assert run("ablation.py", *options.split(), *variants, cwd=tmp_path) == first
    assert not (tmp_path / "runs" / "recipe_0" / "merged" / "config.json").exists()  # it was not run again


def test_a_gemma_is_pretrained_on_the_texts_of_pairs(tmp_path):
    style_rows(num_users=4, pairs_per_user=6).to_parquet(tmp_path / "pairs.parquet")
    sizes = "--vocab_size 300 --hidden_size 16 --num_layers 2 --max_length 96 --batch_size 8".split()
    run("pretrain_gemma.py", "--dataset_name", "pairs.parquet", *sizes, "--output_dir", "gemma", cwd=tmp_path)
    assert AutoConfig.from_pretrained(tmp_path / "gemma").num_hidden_layers == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gemma")
    text = style_rows(num_users=4, pairs_per_user=6)[0]["chosen"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_reward_example_prints_all_models_and_the_limit(tmp_path):
    config = EXAMPLES / "configs" / "np_reward_example_4_1.yaml"
    printed = run("np_reward.py", "--config", config, "--max_steps", 20, "--num_threads", 1, cwd=tmp_path)
    metrics = results(tmp_path / "runs" / "np_reward_example_4_1")
    assert metrics["eval_nc1_bayes_accuracy"] == 0.875
    assert {"eval_btl_accuracy", "eval_dpl_accuracy", "eval_nc10_shuffled_accuracy"} <= metrics.keys()
    assert all(name in printed for name in ("NP-BTL", "BTL", "DPL", "Bayes limit"))


def test_a_reward_model_is_trained_and_evaluated_on_files(tmp_path):
    embedded_rows().to_parquet(tmp_path / "train.parquet")
    embedded_rows(seed=1).to_json(tmp_path / "test.jsonl")
    sizes = "--hidden_size 16 --latent_size 16 --memory_size 8 --num_targets 6 --max_context 6 --max_steps 5".split()
    files = "--dataset_name train.parquet --eval_dataset_name test.jsonl --output_dir reward --report_to none".split()
    run("np_reward.py", *files, *sizes, cwd=tmp_path)
    command = (
        "--model_name_or_path reward --dataset_name test.jsonl --output_dir again --seed 42 --num_draws 1".split()
    )
    run("evaluate_model.py", *command, cwd=tmp_path)
    assert results(tmp_path / "again")["eval_nc3_accuracy"] == results(tmp_path / "reward")["eval_nc3_accuracy"]


def test_a_reward_model_is_trained_and_evaluated_on_texts_with_a_table_of_embeddings(tmp_path):
    rows = style_rows(num_users=16, pairs_per_user=10).to_list()
    rows[0]["rejected"] = rows[0]["chosen"]  # a tie
    short = [{**row, "user_id": "short"} for row in rows[10:14]]
    texts = sorted({row[side] for row in rows for side in ("chosen", "rejected")})
    splits = [{**row, "split": split} for split in ("train", "val") for row in (rows + short)]
    Dataset.from_list(splits).to_parquet(tmp_path / "pairs.parquet")
    Dataset.from_list(
        [{"text_id": text_id(text), "kind": "response", "embedding": [len(text), text.count("-")]} for text in texts]
    ).to_parquet(tmp_path / "embeddings.parquet")
    files = "--dataset_name pairs.parquet --embeddings embeddings.parquet".split()
    recipe = EXAMPLES / "configs" / "np_reward_ukp.yaml"
    sizes = "--num_targets 3 --max_context 3 --max_steps 3 --num_threads 1 --output_dir reward".split()
    # nobody has more than 20 pairs, at which the recipe also asks for the control
    options = "--option_vectors true --latent_distribution gaussian".split()
    run("np_reward.py", "--config", recipe, *files, *sizes, *options, cwd=tmp_path)
    assert len(AutoConfig.from_pretrained(tmp_path / "reward").option_ids) == len(texts)
    assert results(tmp_path / "reward").keys() >= {"eval_nc5_accuracy", "eval_nc5_shuffled_accuracy"}
    assert not any(key.startswith("eval_nc20") for key in results(tmp_path / "reward"))
    contexts = "--num_contexts 0 1 3 5 --num_targets 5 --seed 0 --num_draws 4 --where split=val".split()
    run("evaluate_model.py", "--model", "reward", *files, *contexts, "--output_dir", "out", cwd=tmp_path)
    metrics, expected = results(tmp_path / "out"), results(tmp_path / "reward")
    for key in (*(f"eval_nc{n}_nll" for n in (0, 1, 3, 5)), "eval_nc5_shuffled_accuracy"):
        assert metrics[key] == pytest.approx(expected[key], abs=1e-5), key
    assert metrics["eval_nc5_nll"] != metrics["eval_nc0_nll"]


@pytest.mark.parametrize("recipe", sorted(path.name for path in (EXAMPLES / "configs").glob("np_reward_*.yaml")))
def test_every_reward_recipe_is_understood(recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    script = runpy.run_path(str(EXAMPLES / "np_reward.py"), run_name="np_reward")
    parser = TrlParser((script["ScriptArguments"], NPRewardConfig, RewardModelArguments))
    script_args, training_args, _ = parser.parse_args_and_config(["--config", str(EXAMPLES / "configs" / recipe)])
    assert training_args.output_dir == f"runs/{recipe.removesuffix('.yaml')}"
    assert all(condition.startswith(("split=", "setting=")) for condition in script_args.where)


TABLE_SIZES = "--hidden_size 16 --latent_size 16 --memory_size 8 --num_targets 4 --max_context 4".split()


def write_recurring_options(path) -> list[str]:
    """Save choices of two groups of users among twelve texts, and their embeddings; return the arguments that name them."""
    rng = np.random.default_rng(0)
    texts, embeddings = [f"option {index}" for index in range(12)], rng.normal(size=(12, 3))
    rows = []
    for user in range(24):
        tastes = embeddings[:, user % 2]
        for first, second in (rng.choice(12, 2, replace=False) for _ in range(30)):
            chosen, rejected = (first, second) if tastes[first] > tastes[second] else (second, first)
            rows.append(
                {
                    "user_id": user,
                    "group": user % 2,
                    "prompt": "?",
                    "chosen": texts[chosen],
                    "rejected": texts[rejected],
                }
            )
    for name, users in {"pairs": range(12), "others": range(12, 24)}.items():
        Dataset.from_list([row for row in rows if row["user_id"] in users]).to_parquet(path / f"{name}.parquet")
    table = [{"text_id": text_id(text), "embedding": row} for text, row in zip(texts, embeddings, strict=True)]
    Dataset.from_list(table).to_parquet(path / "embeddings.parquet")
    names = "--dataset_name pairs.parquet --eval_dataset_name others.parquet --embeddings embeddings.parquet"
    return [*names.split(), *"--report_to none --save_strategy no --output_dir out --drop_short_users true".split()]


def test_all_baselines_are_compared_on_the_same_tasks(tmp_path):
    steps = "--max_steps 3 --num_seeds 2 --num_features 4 --eval_num_contexts 0 3 --num_threads 1".split()
    options = "--recurring_options true --group_column group".split()
    printed = run("baselines.py", *write_recurring_options(tmp_path), *TABLE_SIZES, *steps, *options, cwd=tmp_path)
    table = json.loads((tmp_path / "out" / "baselines.json").read_text())["figures"]
    assert list(table) == [
        "population", "pooled BTL", "DPL", "dedicated BTL", "from scratch", "mean difference", "linear features",
        "empirical Bayes", "VPL", "NP-BTL",
    ]  # fmt: skip
    assert all(name in printed for name in table)
    for name in ("population", "pooled BTL", "DPL"):  # which no context changes
        assert table[name]["nc0_accuracy"] == pytest.approx(table[name]["nc3_accuracy"])
    for name in ("from scratch", "mean difference"):  # which know nothing of a user without context
        assert table[name]["nc0_accuracy"] == 0.5 and table[name]["nc0_nll"] == pytest.approx(0.6931, abs=1e-3)
    dedicated = table.pop("dedicated BTL")  # a mean over groups, whose errors and deciles have no mean
    assert {"nc3_accuracy", "nc3_nll"} <= dedicated.keys() and "nc3_accuracy_se" not in dedicated
    for figures in table.values():
        assert figures.keys() >= {
            "nc3_accuracy", "nc3_accuracy_se", "nc3_accuracy_se_over_seeds", "nc3_worst_decile_accuracy", "nc3_nll",
        }  # fmt: skip


def test_options_are_withheld_from_training(tmp_path):
    steps = "--max_steps 3 --num_seeds 1 --num_withheld 4 --eval_num_contexts 0 3".split()
    files = write_recurring_options(tmp_path)
    run("unseen_options.py", *files, *TABLE_SIZES, *steps, "--num_threads", 1, cwd=tmp_path)
    figures = json.loads((tmp_path / "out" / "unseen_options.json").read_text())["figures"]
    assert figures.keys() >= {"eval_one_nc0_accuracy", "eval_one_nc3_accuracy", "eval_one_nc3_shuffled_accuracy"}


def test_a_policy_is_evaluated_against_its_reference(tmp_path):
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        # none of them is the default of the script
        args=dpo_config(
            tmp_path / "policy",
            eval_num_targets=20,
            max_steps=4,
            learning_rate=0.1,
            np_learning_rate=0.1,
            beta=0.3,
            max_length=24,
            truncation_mode="keep_end",
        ),
        train_dataset=style_rows(),
        eval_dataset=style_rows(seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM"),
    )
    trainer.train()
    expected = trainer.evaluate()
    assert abs(expected["eval_nc2_nll"] - np.log(2)) > 0.005  # where `beta` and lengths would make no difference
    trainer.save_model()
    trainer.save_merged(tmp_path / "merged")
    style_rows(seed=1).to_parquet(tmp_path / "test.parquet")
    users = "--dataset_name test.parquet --num_contexts 0 2 --seed 42 --num_draws 1".split()
    # the adapter knows its base, which is its reference
    for policy in ("--model merged --ref_model_name_or_path base --output_dir a", "--model policy --output_dir b"):
        run("evaluate_model.py", *policy.split(), *users, cwd=tmp_path)
        metrics = results(tmp_path / policy[-1])
        for key in ("eval_nc2_accuracy", "eval_nc2_nll"):
            assert metrics[key] == pytest.approx(expected[key], abs=1e-5)


def test_an_adapter_that_was_trained_further_is_evaluated_against_the_adapter_it_started_from(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    rows, rates = style_rows(4, 8), {"learning_rate": 0.1, "np_learning_rate": 0.1}
    rows.to_parquet(tmp_path / "test.parquet")
    lora = LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM")
    policy = tiny_base(tmp_path / "base")
    for name in ("first", "further"):
        args = dpo_config(tmp_path / name, eval_num_targets=20, **rates)
        data = {"train_dataset": rows, "eval_dataset": rows, "processing_class": tiny_tokenizer()}
        trainer = NPDPOTrainer(policy, args=args, peft_config=lora if name == "first" else None, **data)
        trainer.train()
        trainer.save_model()
        policy = load_policy(str(tmp_path / name), is_trainable=True)
    paths = [str(tmp_path / name) for name in ("further", "test.parquet", "out")]

    def evaluate(reference: str | None) -> float:
        protocol = EvaluationProtocol(num_contexts=[0, 2], num_draws=1, seed=42)
        evaluation = EvaluationArguments(*paths, ref_model_name_or_path=reference).load(protocol)
        return evaluation.evaluate()["eval_nc2_nll"]

    expected = trainer.evaluate()["eval_nc2_nll"]
    assert evaluate(None) == pytest.approx(expected, abs=1e-6)
    assert abs(evaluate(str(tmp_path / "base")) - expected) > 1e-4


def test_unknown_arguments_fail(tmp_path):
    (tmp_path / "config.yaml").write_text("output_dir: out\nbf16: false\nuse_cpu: true\nnumber_of_targets: 3\n")
    with pytest.raises(ValueError, match="number_of_targets"):
        TrlParser(NPDPOConfig).parse_args_and_config(["--config", str(tmp_path / "config.yaml")])


def test_a_user_file_without_completions_is_refused(tmp_path):
    (tmp_path / "user.json").write_text(json.dumps({"pairs": [{"prompt": "How?", "chosen": "so"}]}))
    tiny_base(tmp_path / "base")
    command = [sys.executable, str(EXAMPLES / "generate.py"), "--model_name_or_path", "base", "--user", "user.json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0 and "Pair 0 in 'user.json' has no ['rejected']" in result.stderr


RECIPE = {"recipe": "r.yaml", "name": "t", "output_dir": "out"}
POLICY = {"model_name_or_path": "policy"}
JUDGE = {"reward_model_name_or_path": "reward", "users": ["ada.json"]}


@pytest.mark.parametrize(
    "script, arguments, error",
    [
        ("ablation", {**RECIPE, "variants": ["no LoRa"]}, r"`variants` \['no LoRa'\] are unknown"),
        ("ablation", {**RECIPE, "num_seeds": 0}, "`num_seeds=0` must be at least 1"),
        ("app", {"port": 99999}, "`port=99999` must be above 0 and below 65536"),
        ("app", {"seed": -1}, "`seed=-1` must be at least 0"),
        ("best_of_n", {**JUDGE, "num_candidates": 0}, "`num_candidates=0` must be at least 1"),
        ("best_of_n", {**JUDGE, "temperature": float("nan")}, "`temperature=nan` must be above 0"),
        ("best_of_n", {**JUDGE, "prompts": [""]}, "`prompts` of entry 0 is empty"),
        ("best_of_n", {**JUDGE, "users": ["a/ada.json", "b/ada.json"]}, "would both be the user 'ada'"),
        (
            "export",
            {**POLICY, "output_dir": "out", "users": ["a/ada.json", "b/ada.json"]},
            "would both be the user 'ada'",
        ),
        ("generate", {**POLICY, "top_p": 5}, "`top_p=5` above 0 and at most 1"),
        ("generate", {**POLICY, "max_new_tokens": -1}, "`max_new_tokens=-1` must be at least 1"),
        ("grpo", {"num_choices": 0}, "`num_choices=0` must be at least 1"),
        ("np_dpo", {"baseline_steps": -1}, "`baseline_steps=-1` must be at least 1"),
        ("np_dpo", {"num_train_users": 0}, "`num_train_users=0` must be at least 1"),
        ("pretrain_gemma", {"hidden_size": 81}, "`hidden_size=81` must be a multiple of 8"),
        ("pretrain_gemma", {"num_train_epochs": -1}, "`num_train_epochs=-1` and .* must be above 0"),
        ("pretrain_gemma", {"dataset_name": ["style_population", "x.parquet"]}, "is 'style_population' alone"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(script, arguments, error, monkeypatch):
    if script == "app":
        pytest.importorskip("gradio")
        script = "app/app"
        monkeypatch.syspath_prepend(EXAMPLES / "app")
    with pytest.raises(ValueError, match=error):
        runpy.run_path(str(EXAMPLES / f"{script}.py"))["ScriptArguments"](**arguments)


def test_prompts_are_messages_to_a_policy_whose_users_chose_between_messages():
    tokenize, tokenizer = generate.tokenize, tiny_tokenizer()
    tokenizer.padding_side = "left"
    assert tokenize(["How?"], tokenizer, False)["input_ids"].tolist() == [tokenizer("How?")["input_ids"]]
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    read = tokenize(["How?", "How do I?"], tokenizer, True)
    texts = tokenizer.batch_decode(read["input_ids"], skip_special_tokens=True)
    assert texts == ["[user]How?>", "[user]How do I?>"] and (read["attention_mask"] == 0).sum() > 0


def test_what_cannot_write_is_refused_by_name(tmp_path):
    tiny_reward_model().save_pretrained(tmp_path / "reward")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for name, what in (("reward", "a reward model"), ("adapter", "an adapter")):
        with pytest.raises(ValueError, match=f"{name}' is {what}, but a whole language model is needed"):
            check_writer(str(tmp_path / name))
    check_writer(tiny_base(tmp_path / "base"))


def test_a_run_that_was_stopped_is_not_taken_for_one_that_has_finished(tmp_path, monkeypatch):
    script = runpy.run_path(str(EXAMPLES / "ablation.py"))
    run = script["Run"]({"max_steps": 2}, "recipe", 0, str(tmp_path))

    def stop(*args, **kwargs):  # when the first figures are there
        (run.folder / "eval_results.json").write_text('{"eval_nc0_accuracy": 0.5}')
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.run", stop)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert not run.has_finished
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: None)
    run.train()
    assert run.has_finished
    (run.folder / "eval_results.json").write_text('{"eval_nc0_acc')
    assert not run.has_finished
