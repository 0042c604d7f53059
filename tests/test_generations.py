"""What policies write."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from np_trl import NPDPOTrainer, NPRewardModel, NPRewardModelConfig
from np_trl.data import PreferenceRows
from np_trl.evaluation.generations import Generations, StyleJudge, describe, reward_judge
from np_trl.evaluation.policy_evaluation import PolicyEvaluation
from np_trl.populations.style import split_prompts
from np_trl.populations.style_grammar import write_answer
from np_trl.scripts.evaluate import build_judge

from .testing_utils import (
    as_conversation,
    chat_tokenizer,
    dpo_config,
    style_rows,
    tiny_base,
    tiny_reward_model,
    tiny_tokenizer,
)


@pytest.fixture
def generations(tmp_path) -> Generations:
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", eval_group_column="group", np_learning_rate=0.1, learning_rate=0.05),
        train_dataset=style_rows(16),
        eval_dataset=style_rows(16, seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM"),
    )
    trainer.train()
    return Generations(PolicyEvaluation.of_trainer(trainer), num_context=2, max_new_tokens=8)


def test_answers_are_described_by_length_repetition_and_end():
    answers = [torch.tensor([5, 6, 7, 5, 6, 7, 1]), torch.tensor([8, 9])]
    # five trigrams, four of them different; no trigram
    assert describe(answers, ends=[1]) == {
        "tokens": 4.5,
        "repetition": pytest.approx(0.1),
        "distinct_2": pytest.approx(5 / 7),
        "finished": 0.5,
    }


def test_every_user_is_written_for_after_its_own_choices(generations):
    assert len(generations.prompts) == len(generations.latents) == 32
    assert generations.users.tolist() == np.arange(16).repeat(2).tolist()
    rows, model = generations.rows, generations.model
    tasks = generations.protocol.tasks(rows)
    task = next(task for task in map(tasks.__getitem__, range(len(tasks))) if (task.user, task.num_context) == (3, 2))
    contexts, targets = task.draw()
    with torch.no_grad():
        latents = model.infer_latents(rows.embeds(contexts).unsqueeze(0), torch.ones(1, 2))
    torch.testing.assert_close(generations.latents[6:7], latents)
    assert generations.prompts[6:8] == [row["prompt"] for row in rows.take(targets[:2])]


def test_conversations_are_answered_as_they_were_trained_on(tmp_path):
    # the template has a variable, which some prompts set
    rows = [
        Dataset.from_list(
            [
                {**as_conversation(row), "chat_template_kwargs": {"greeting": "hello" if index % 3 else "fix it"}}
                for index, row in enumerate(style_rows(4, seed=seed))
            ]
        )
        for seed in (0, 1)
    ]
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out"),
        train_dataset=rows[0],
        eval_dataset=rows[1],
        processing_class=chat_tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM"),
    )
    generations = Generations(PolicyEvaluation.of_trainer(trainer), num_context=2, max_new_tokens=4)
    generate, asked = generations.model.generate, []

    def spy(**kwargs):
        rows = zip(kwargs["input_ids"].tolist(), kwargs["attention_mask"].sum(dim=1).tolist(), strict=True)
        asked.extend(row[-length:] for row, length in rows)
        return generate(**kwargs)

    generations.model.generate = spy
    metrics = generations.evaluate()
    trained = trainer.eval_dataset["prompt_ids"]
    expected = [trained[index] for index in generations.targets]
    assert asked == expected and len({ids[0] for ids in expected}) > 1
    assert metrics["base_perplexity"] > 1 and np.isfinite(metrics["policy_perplexity"])


def test_perplexity_is_that_of_the_reference_without_a_user(generations):
    answers = [torch.tensor([9, 8, 7]), torch.tensor([6, 1])] * 16
    total = 0.0
    for prompt, answer in zip(generations.prompts, answers, strict=True):
        prompt_ids = generations.tokenizer(prompt)["input_ids"]
        ids = torch.tensor([[*prompt_ids, *answer.tolist()]])
        with torch.no_grad(), generations.model.disable_adapter():
            log_probs = generations.model(input_ids=ids).logits.log_softmax(dim=-1)[0, len(prompt_ids) - 1 : -1]
        total += log_probs.gather(1, answer.unsqueeze(1)).sum().item()
    assert generations.perplexity(answers) == pytest.approx(np.exp(-total / 80), rel=1e-4)


def test_a_style_judge_says_which_attributes_are_as_wanted(generations):
    judge = StyleJudge(generations.rows)
    styles, users = judge.styles, np.arange(16)
    texts = [write_answer(split_prompts()[0][0], (1, *style[1:]), np.random.default_rng(0)) for style in styles]
    described = judge.describe(texts, users)
    assert described["steering_long"] == 1.0 and described["steering_short"] == 0.0
    assert described["steering_list"] == described["steering_casual"] == 1.0
    assert described["steering_accuracy"] == 7 / 8


def test_the_kl_is_that_of_the_whole_vocabulary_at_every_token(generations):
    answers = [torch.tensor([9, 8, 7]), torch.tensor([6, 1])] * 16
    divergences = []
    for prompt, answer, latents in zip(generations.prompts, answers, generations.latents, strict=True):
        prompt_ids = generations.tokenizer(prompt)["input_ids"]
        ids = torch.tensor([[*prompt_ids, *answer.tolist()]])
        with torch.no_grad():
            policy = generations.model(input_ids=ids, latents=latents.unsqueeze(0)).logits.log_softmax(dim=-1)
            with generations.model.disable_adapter():
                reference = generations.model(input_ids=ids).logits.log_softmax(dim=-1)
        divergence = torch.nn.functional.kl_div(reference, policy, reduction="none", log_target=True).sum(dim=-1)
        divergences += divergence[0, len(prompt_ids) - 1 : -1].tolist()
    assert generations.kl(answers) == pytest.approx(np.mean(divergences), rel=1e-4)
    assert generations.kl(answers) > 1e-6


def test_a_policy_wins_where_its_judge_says_so(generations):
    base = generations.model.get_base_model()

    def judge(prompts, texts, users):
        judge.calls += 1
        return np.where(users < 8, 1.0, 0.0) if judge.calls == 1 else np.zeros(len(users))

    judge.calls = 0
    metrics = generations.evaluate(judge, opponent=base)
    assert metrics["win_rate"] == 0.75  # ties count half
    rates = [metrics[f"{group}_win_rate"] for group in generations.rows.groups("group")]
    assert rates == [1.0] * 8 + [0.5] * 8
    assert {"kl", "policy_tokens", "base_repetition", "opponent_finished"} <= metrics.keys()
    assert metrics["policy_tokens"] <= 8


def test_the_style_judge_knows_what_users_want(generations):
    rows, judge = generations.rows, StyleJudge(generations.rows)
    prompt, users = split_prompts()[0][0], np.arange(16)
    styles = [rows.dataset[int(rows.of_user(user)[0])]["style"] for user in users]
    wanted = [write_answer(prompt, style, np.random.default_rng(0)) for style in styles]
    opposite = [write_answer(prompt, [-sign for sign in style], np.random.default_rng(0)) for style in styles]
    assert judge([prompt] * 16, wanted, users).tolist() == [1.0] * 16
    assert judge([prompt] * 16, opposite, users).tolist() == [0.0] * 16


def test_every_group_needs_a_reward_model_as_judge():
    with pytest.raises(ValueError, match=r"\['b'\] have no judge, only \['a'\]"):
        reward_judge({"a": tiny_reward_model()}, ["a", "b"])


def test_reward_models_judge_the_users_of_their_group():
    class Scorer:
        def __init__(self, sign):
            self.sign = sign

        def score(self, options):
            return torch.tensor([self.sign * float(len(option["completion"])) for option in options])

    judge = reward_judge({"long": Scorer(1), "short": Scorer(-1)}, ["long", "short", "long"])
    assert judge(["?"] * 3, ["a", "bb", "ccc"], np.array([0, 1, 2])).tolist() == [1.0, -2.0, 3.0]


def test_judges_are_loaded_from_their_folders_for_their_groups(generations, tmp_path):
    models = {}
    for seed, name in enumerate(("ada", "bob")):
        fields = {"embed_size": 32, "embedder": {"name_or_path": str(tmp_path / "base"), "max_length": 64}}
        torch.manual_seed(seed)
        models[name] = NPRewardModel(NPRewardModelConfig(hidden_size=8, conditional=False, **fields)).eval()
        for parameter in models[name].parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        models[name].save_pretrained(tmp_path / name)
    dataset = generations.rows.dataset.remove_columns("group")
    groups = ["ada" if int(user.split("-")[1]) < 8 else "bob" for user in dataset["user_id"]]
    rows = PreferenceRows(dataset.add_column("group", groups))
    judge = build_judge([f"{name}={tmp_path / name}" for name in models], rows, "group", "cpu")
    scores = judge(["How?", "How?"], [" so", " so"], np.array([3, 12]))
    expected = [float(model.score([{"prompt": "How?", "completion": " so"}])) for model in models.values()]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4) and expected[0] != expected[1]
    with pytest.raises(ValueError, match="must each be `GROUP=PATH`"):
        build_judge(["ada"], rows, "group", "cpu")
