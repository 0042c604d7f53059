"""A model is evaluated on users without a trainer, and the trainers' `evaluate` says the same."""

import dataclasses
import json
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from np_trl import NPDPOTrainer, NPRewardTrainer, load_policy
from np_trl.data import EvaluationProtocol
from np_trl.data.embeddings import add_option_ids
from np_trl.data.preference_rows import option_ids
from np_trl.evaluation import evaluate_users

from .distributed.test_distributed import TORCHRUN, run
from .testing_utils import (
    CONTEXT_CONFIG,
    dpo_config,
    embedded_rows,
    reward_config,
    style_rows,
    tiny_base,
    tiny_reward_model,
    tiny_tokenizer,
    with_embeddings,
)


LORA = {"target_modules": ["q_proj"], "layers_to_transform": [1, 2], "task_type": "CAUSAL_LM"}
RATES = {"np_learning_rate": 0.1, "learning_rate": 0.05}
PROTOCOL = EvaluationProtocol(num_contexts=[0, 2], num_targets=5, num_draws=1, seed=42)


def of_users(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.startswith("eval_nc")}


def assert_alike(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=2e-5), key


def train_policy(path, rows: Dataset, eval_rows: Dataset, lora: bool = True, **kwargs) -> NPDPOTrainer:
    trainer = NPDPOTrainer(
        tiny_base(path / "base"),
        args=dpo_config(path / "out", **{**RATES, "beta": 0.3, "max_length": 40, **kwargs}),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(**LORA) if lora else None,
    )
    trainer.train()
    trainer.save_model()
    return trainer


def test_an_adapter_is_evaluated_as_its_trainer_did_with_its_own_beta_lengths_and_reference(tmp_path):
    rows = style_rows(16, seed=1)
    trainer = train_policy(tmp_path, style_rows(16), rows, eval_group_column="group", eval_num_draws=2)
    protocol = dataclasses.replace(PROTOCOL, num_draws=2, group_column="group")
    assert trainer.args.evaluation_protocol == protocol
    expected = of_users(trainer.evaluate())
    assert expected["eval_nc2_nll"] != pytest.approx(expected["eval_nc0_nll"], abs=1e-3)
    assert_alike(evaluate_users(tmp_path / "out", rows, protocol), expected)
    policy = load_policy(tmp_path / "out")
    assert_alike(evaluate_users(policy, rows, protocol, batch_size=3), expected)
    policy.config.dpo_beta = 0.6
    other = evaluate_users(policy, rows, protocol)
    assert abs(other["eval_nc2_nll"] - expected["eval_nc2_nll"]) > 1e-3


def test_a_merged_policy_needs_its_reference(tmp_path):
    rows = with_embeddings(style_rows(8), embed_size=6)
    trainer = train_policy(tmp_path, rows, rows, lora=False)
    arguments = (tmp_path / "out", rows, PROTOCOL)
    with pytest.raises(ValueError, match="is a merged policy, whose implicit reward needs the reference policy"):
        evaluate_users(*arguments)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = of_users(trainer.evaluate())
    assert_alike(evaluate_users(*arguments, reference=base), expected)
    policy = load_policy(tmp_path / "out")
    assert policy.config.reference_name_or_path is None  # a folder of this machine is not made known
    policy.config.reference_name_or_path = str(tmp_path / "base")
    policy.save_pretrained(tmp_path / "named")
    tiny_tokenizer().save_pretrained(tmp_path / "named")
    assert_alike(evaluate_users(tmp_path / "named", rows, PROTOCOL), expected)
    with pytest.raises(ValueError, match="no .*chosen_embeds.* column"):
        evaluate_users(tmp_path / "out", style_rows(8), PROTOCOL, reference=base)


@pytest.mark.parametrize("form", ["conversational", "implicit prompts"])
def test_pairs_come_in_any_of_trls_formats(tmp_path, form):
    def change(row: dict) -> dict:
        prompt = [{"role": "user", "content": row["prompt"]}]
        sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        if form == "conversational":
            return {"prompt": prompt, **sides}
        return {side: prompt + sides[side] for side in sides}

    rows = style_rows(8).to_list()
    rows = Dataset.from_list([{"user_id": row["user_id"], **change(row)} for row in rows])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", **RATES, max_length=None),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA),
    )
    trainer.train()
    found = evaluate_users(trainer.model, rows, PROTOCOL)
    assert_alike(found, of_users(trainer.evaluate()))


@pytest.mark.parametrize("kind", ["deterministic", "gaussian", "mean_variance", "option_vectors"])
def test_a_reward_model_is_evaluated_as_its_trainer_did(tmp_path, kind):
    rows, eval_rows, fields = embedded_rows(), embedded_rows(seed=1), {}
    if kind == "gaussian":
        fields = {"context_config": {**CONTEXT_CONFIG, "latent_distribution": "gaussian"}}
    elif kind == "mean_variance":
        fields = {"head": "mean_variance"}
    elif kind == "option_vectors":
        texts = {side: [f"{side} {index % 5}" for index in range(len(rows))] for side in ("chosen", "rejected")}
        rows, eval_rows = (
            add_option_ids(data.add_column("chosen", texts["chosen"]).add_column("rejected", texts["rejected"]))
            for data in (rows, eval_rows)
        )
        fields = {"option_ids": option_ids(rows)}
    args = reward_config(tmp_path, max_steps=20, eval_num_targets=5, learning_rate=0.05)
    trainer = NPRewardTrainer(tiny_reward_model(**fields), args=args, train_dataset=rows, eval_dataset=eval_rows)
    trainer.train()
    trainer.save_model()
    expected = of_users(trainer.evaluate())
    assert expected["eval_nc2_nll"] != pytest.approx(expected["eval_nc0_nll"], abs=1e-3)
    if kind == "option_vectors":
        eval_rows = eval_rows.remove_columns(["chosen_option_id", "rejected_option_id"])  # which texts stand for
    assert_alike(evaluate_users(str(tmp_path), eval_rows, PROTOCOL), expected)


TWO_PROCESSES = """
import json, sys
from np_trl.data import EvaluationProtocol
from np_trl.evaluation import evaluate_users
from tests.testing_utils import embedded_rows, leave_processes, style_rows
protocol = EvaluationProtocol(num_contexts=[0, 2], num_targets=5, num_draws=1, seed=42)
folder = sys.argv[1]
found = {
    "reward": evaluate_users(f"{folder}/reward", embedded_rows(num_users=7, seed=1), protocol, batch_size=3),
    "policy": evaluate_users(f"{folder}/out", style_rows(7, seed=1), protocol, batch_size=3),
}
import os
with open(f"{folder}/{os.environ.get('RANK', 'alone')}.json", "w") as file:
    json.dump(found, file)
leave_processes()
"""


def test_two_processes_find_what_one_does(tmp_path, monkeypatch):
    train_policy(tmp_path, style_rows(16), style_rows(16, seed=1))
    model = tiny_reward_model()
    torch.nn.init.normal_(model.head.shared.weight)
    torch.nn.init.normal_(model.head.bilinear.weight)
    model.save_pretrained(tmp_path / "reward")
    (tmp_path / "two_processes.py").write_text(TWO_PROCESSES)
    run(sys.executable, tmp_path / "two_processes.py", tmp_path)
    run(*TORCHRUN, tmp_path / "two_processes.py", tmp_path)
    alone, *both = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "0", "1"))
    for found in both:
        for kind in ("reward", "policy"):
            assert_alike(found[kind], alone[kind])
    assert alone["policy"]["eval_nc0_users"] == 7


def test_few_users_are_drawn_more_often():
    from np_trl.data import PreferenceRows

    rows = PreferenceRows(embedded_rows(num_users=8))
    tasks = {draws: EvaluationProtocol(num_contexts=[0, 2], num_draws=draws).tasks(rows) for draws in (None, 1)}
    assert len(tasks[None]) == 50 * len(tasks[1]) == 50 * 16


def test_a_protocol_is_checked_and_stays_as_it_is():
    protocol = EvaluationProtocol(num_contexts=[0, 3])
    assert protocol.shuffled_contexts == [3] and protocol.required_pairs(drop_short_users=True) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.seed = 1
    with pytest.raises(ValueError, match=r"`num_contexts=\[\]` must hold at least one number"):
        EvaluationProtocol(num_contexts=[])
    with pytest.raises(ValueError, match=r"`shuffled_contexts=\[5\]` must be among `num_contexts=\[0, 3\]`"):
        EvaluationProtocol(num_contexts=[0, 3], shuffled_contexts=[5])
    with pytest.raises(ValueError, match="`num_targets=0` must be at least 1"):
        EvaluationProtocol(num_targets=0)
