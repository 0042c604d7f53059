"""The baselines of NP-DPO, which np_trl/evaluation/dpo_baselines.py trains."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from np_trl import NPDPOTrainer
from np_trl.evaluation.dpo_baselines import DPOBaselines, _pool, draw_evaluation, put_before, show_choices

from .testing_utils import dpo_config, style_rows, tiny_base, tiny_tokenizer


@pytest.fixture
def baselines(tmp_path) -> DPOBaselines:
    base = tiny_base(tmp_path / "base")

    def build(args, **datasets) -> NPDPOTrainer:
        args.film_kwargs = {"context_config": {"hidden_size": 16, "latent_size": 12, "memory_size": 8}}
        peft_config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM")
        return NPDPOTrainer(base, args=args, processing_class=tiny_tokenizer(), peft_config=peft_config, **datasets)

    args = dpo_config(tmp_path / "out", eval_group_column="group", max_length=None)
    trainer = build(args, train_dataset=style_rows(32), eval_dataset=style_rows(32, seed=1))
    return DPOBaselines(trainer, build)


@torch.no_grad()
def log_likelihood_margins(model, targets) -> list[float]:
    """The log-likelihood of every chosen option less that of the rejected one, one option after the other."""
    margins = []
    for row in targets:
        log_probs = []
        for side in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([row["prompt_ids"] + row[side]])
            scores = model(input_ids=ids).logits.log_softmax(dim=-1)[0, :-1]
            log_probs.append(float(scores.gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :].sum()))
        margins.append(log_probs[0] - log_probs[1])
    return margins


def reference_margins(baselines) -> list[float]:
    model = baselines.trainer.model.eval()
    with model.disable_adapter():
        return log_likelihood_margins(model, baselines.targets)


def accuracy_by_user(targets, correct: list[bool]) -> dict[str, float]:
    of_users = {}
    for user, value in zip(targets["user_id"], correct, strict=True):
        of_users.setdefault(user, []).append(value)
    return {user: np.mean(values) for user, values in of_users.items()}


def test_the_mixture_is_plain_dpo_on_the_same_targets(baselines):
    baselines.trainer.args.learning_rate = 0.5
    metrics = baselines.measure("mixture")
    model = baselines.policies["mixture"].model.eval()
    targets = {index for _, targets in draw_evaluation(baselines.trainer, 2) for index in targets}
    wanted = baselines.trainer.eval_dataset.select(sorted(targets))
    assert (
        baselines.targets.select_columns(["user_id", "chosen"])[:] == wanted.select_columns(["user_id", "chosen"])[:]
    )
    tokens = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        logits = model(**tokens).logits
        torch.testing.assert_close(model(**tokens, latents=torch.randn(1, 12)).logits, logits)  # FiLM is the identity
        with model.disable_adapter():
            assert not torch.equal(model(**tokens).logits, logits)  # LoRA is not
    margins = np.subtract(log_likelihood_margins(model, baselines.targets), reference_margins(baselines))
    assert abs(margins).min() > 1e-4  # far from a tie, which counts half
    by_user = accuracy_by_user(baselines.targets, list(margins > 0))
    assert metrics["eval_mixture_nc0_accuracy"] == pytest.approx(np.mean(list(by_user.values())))
    groups = {}
    for user, group in zip(baselines.targets["user_id"], baselines.targets["group"], strict=True):
        groups.setdefault(group, {})[user] = by_user[user]
    worst = min(np.mean(list(users.values())) for users in groups.values())
    assert metrics["eval_mixture_nc0_worst_group_accuracy"] == pytest.approx(worst)
    assert worst < metrics["eval_mixture_nc0_accuracy"]


def test_a_dedicated_policy_sees_its_group_alone(baselines, monkeypatch):
    groups, seen = ["long_list_formal_hedged", "short_prose_casual_sure"], []
    build = baselines.build

    def watch(**kwargs):
        seen.append([set(kwargs[name]["group"]) for name in ("train_dataset", "eval_dataset")])
        return build(**kwargs)

    baselines.groups, baselines.build = groups, watch
    metrics = baselines.measure("dedicated")
    assert seen == [[{group}, {group}] for group in groups]
    accuracies = [metrics[f"eval_dedicated_nc0_{group}_accuracy"] for group in groups]
    assert metrics["eval_dedicated_nc0_accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics["eval_dedicated_nc0_users"] == 4
    # NP-DPO on the users of these groups: each has as many
    metrics |= {f"all_{key}": value for key, value in baselines.trainer.evaluate().items()}
    of_groups = [metrics[f"all_eval_nc2_{group}_accuracy"] for group in groups]
    assert metrics["eval_dedicated_users_nc2_accuracy"] == pytest.approx(np.mean(of_groups))
    assert metrics["eval_dedicated_users_nc2_users"] == 4 and metrics["all_eval_nc2_users"] == 32
    baselines.groups = ["nobody"]
    with pytest.raises(ValueError, match=r"\['nobody'\] are no values of `group`"):
        baselines.measure("dedicated")


def test_accuracies_of_groups_are_pooled_over_their_users():
    accuracies = [np.array([1.0, 0.5, 0.75]), np.array([0.25])]
    evaluated = [
        {
            "eval_nc0_users": len(users),
            "eval_nc0_accuracy": users.mean(),
            "eval_nc0_accuracy_se": users.std(ddof=1) / len(users) ** 0.5 if len(users) > 1 else float("nan"),
        }
        for users in accuracies
    ]
    everybody = np.concatenate(accuracies)
    pooled = _pool(evaluated)
    assert pooled["eval_dedicated_nc0_accuracy"] == pytest.approx(everybody.mean())
    assert pooled["eval_dedicated_nc0_accuracy_se"] == pytest.approx(everybody.std(ddof=1) / 2)


def test_few_shot_prompts_show_the_contexts_of_the_evaluation(baselines):
    shown = baselines._show_contexts(2)
    dataset, row = baselines.trainer.eval_dataset, 0
    for contexts, targets in draw_evaluation(baselines.trainer, 2):
        for index in targets:
            pair, prompt = dataset[int(index)], shown[row]["prompt"]
            assert shown[row]["user_id"] == pair["user_id"] and prompt.endswith(pair["prompt"])
            assert prompt.count("Preferred:") == len(contexts) == 2 and "<eos>" not in prompt
            assert all(f"Preferred:{dataset[int(i)]['chosen'].removesuffix('<eos>')}" in prompt for i in contexts)
            row += 1
    assert row == len(shown)
    metrics = baselines.measure("few_shot")
    assert metrics["eval_few_shot_nc2_prompt_tokens"] > 3 * metrics["eval_few_shot_nc0_prompt_tokens"]
    assert {"eval_few_shot_nc2_accuracy", "eval_few_shot_nc2_worst_group_accuracy"} <= metrics.keys()


def test_few_shot_shows_choices_in_conversations():
    """Before what the user said first; in texts and in parts of texts."""
    system, question = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "How are you?"}
    rows = {
        "user_id": ["ada", "ada"],
        "prompt": [[system, question], [{"role": "user", "content": "And you?"}]],
        "chosen": [[{"role": "assistant", "content": "Fine!"}], [{"role": "assistant", "content": "Well!"}]],
        "rejected": [[{"role": "assistant", "content": "Fine."}], [{"role": "assistant", "content": "Well."}]],
        "prompt_ids": [[1], [2]],
    }
    choices = [np.array([1]), np.array([0]), np.array([], int)]
    shown = show_choices(Dataset.from_dict(rows), [0, 1, 0], choices, end="<eos>")
    assert shown.column_names == ["user_id", "chosen", "rejected", "prompt"]
    first, second, alone = shown["prompt"][:]
    assert first == [system, {**question, "content": "And you?\nPreferred: Well!\nOther: Well.\n\nHow are you?"}]
    context = "Be kind.\nHow are you?\nPreferred: Fine!\nOther: Fine.\n\n"
    assert second == [{"role": "user", "content": f"{context}And you?"}]
    assert alone == [system, question]
    parts = [{"type": "text", "text": "And you?"}]
    assert put_before([{"role": "user", "content": parts}], context) == [
        {"role": "user", "content": [{"type": "text", "text": context}, *parts]}
    ]


def test_few_shot_is_trained_on_conversations(tmp_path):
    def chats(seed: int) -> Dataset:
        def to_chat(row: dict) -> dict:
            return {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                **{side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")},
            }

        rows = style_rows(8, pairs_per_user=10, seed=seed)
        return rows.map(to_chat, remove_columns=["prompt", "chosen", "rejected"])

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"

    def build(args, **datasets) -> NPDPOTrainer:
        peft_config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM")
        base = str(tmp_path / "base")
        return NPDPOTrainer(base, args=args, processing_class=tokenizer, peft_config=peft_config, **datasets)

    tiny_base(tmp_path / "base")
    args = dpo_config(tmp_path / "out", max_length=None)
    baselines = DPOBaselines(build(args, train_dataset=chats(0), eval_dataset=chats(1)), build)
    metrics = baselines.measure("few_shot")
    assert metrics["eval_few_shot_nc2_prompt_tokens"] > 2 * metrics["eval_few_shot_nc0_prompt_tokens"]
    assert 0 <= metrics["eval_few_shot_nc2_accuracy"] <= 1


def test_the_base_model_is_judged_by_its_log_likelihood(baselines):
    metrics = baselines.measure("base")
    by_user = accuracy_by_user(baselines.targets, list(np.array(reference_margins(baselines)) > 0))
    assert metrics["eval_base_nc0_accuracy"] == pytest.approx(np.mean(list(by_user.values())))


def test_a_dedicated_policy_needs_groups(baselines):
    baselines.column = None
    with pytest.raises(ValueError, match="--eval_group_column"):
        baselines.measure("dedicated")
