"""The base model with a prompt that describes the user."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from np_trl import NPDPOTrainer
from np_trl.evaluation.generations import Generations, StyleJudge
from np_trl.evaluation.policy_evaluation import PolicyEvaluation
from np_trl.evaluation.prompting import Prompting, request_cost
from np_trl.scripts.evaluate import ScriptArguments

from .testing_utils import as_conversation, chat_tokenizer, dpo_config, style_rows, tiny_base


@pytest.fixture(scope="module")
def generations(tmp_path_factory) -> Generations:
    path = tmp_path_factory.mktemp("prompting")
    rows = [
        Dataset.from_list([{**as_conversation(row), "style": row["style"]} for row in style_rows(16, seed=seed)])
        for seed in (0, 1)
    ]
    trainer = NPDPOTrainer(
        tiny_base(path / "base"),
        args=dpo_config(path / "out"),
        train_dataset=rows[0],
        eval_dataset=rows[1],
        processing_class=chat_tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM"),
    )
    return Generations(PolicyEvaluation.of_trainer(trainer), num_context=2, answers_per_user=1, max_new_tokens=4)


@pytest.fixture
def asked(generations, monkeypatch) -> list:
    """The prompts that the reference policy is given to answer, as texts."""
    prompts = []

    def spy(model, tokenizer, prompt_ids, latents=None, *args, **kwargs):
        assert latents is None
        prompts.extend(tokenizer.batch_decode(prompt_ids))
        return [torch.tensor([5, 6])] * len(prompt_ids)

    monkeypatch.setattr("np_trl.evaluation.prompting.write", spy)
    return prompts


def test_choices_are_shown_to_the_reference_before_the_prompt(generations, asked):
    found = Prompting(generations, StyleJudge(generations.rows)).few_shot()
    assert len(asked) == 16
    for prompt, context, target in zip(asked, generations.contexts, generations.targets, strict=True):
        (own,) = generations.rows.dataset[int(target)]["prompt"]
        assert own["content"] in prompt.split("Other:")[-1]
        assert len(context) == 2 and target not in context
        for row in context:
            for side in ("chosen", "rejected"):
                assert generations.rows.dataset[int(row)][side][0]["content"].strip() in prompt
    assert found["few_shot_prompt_tokens"] > 2 * np.mean([len(ids) for ids in generations.prompt_ids])
    assert found["few_shot_seconds_to_first_token"] > 0
    assert 0 <= found["few_shot_accuracy"] <= 1 and found["few_shot_accuracy_se"] > 0
    assert found["few_shot_steering_accuracy"] == 0  # the answer of the spy shows nothing


def test_an_instruction_says_what_each_user_wants(generations, asked):
    Prompting(generations, StyleJudge(generations.rows)).instruction()
    for prompt, style in zip(asked, StyleJudge(generations.rows).styles[generations.users], strict=True):
        assert ("Give four steps." in prompt) == (style[0] > 0)
        assert ("Write one sentence." in prompt) == (style[1] < 0)
        assert ("Be formal." in prompt) == (style[2] > 0)
        assert ("Sound sure." in prompt) == (style[3] < 0)


def test_the_accuracy_is_that_of_the_likelihood_given_the_prompt(generations):
    prompting = Prompting(generations, StyleJudge(generations.rows))
    found = prompting._accuracy("plain", generations.prompts)
    wins, reference = [], generations.reference
    for pair in generations.rows.take(generations.targets):
        sums = []
        for side in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([[*pair["prompt_ids"], *pair[side]]])
            with torch.no_grad():
                log_probs = reference(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
            taken = log_probs.gather(1, ids[0, 1:, None])[len(pair["prompt_ids"]) - 1 :]
            sums.append(taken.sum().item())
        wins.append(sums[0] > sums[1])
    assert found["plain_accuracy"] == pytest.approx(np.mean(wins))


def test_a_request_costs_what_its_prompt_is_long(generations):
    costs = [request_cost(generations.reference, [[5, 6] * times]) for times in (1, 20)]
    assert [cost["prompt_tokens"] for cost in costs] == [2, 40]
    assert all(cost["seconds_per_token"] > 0 for cost in costs)


def test_prompting_needs_a_population():
    fields = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "num_generations": 1}
    with pytest.raises(ValueError, match=r"`--judges \[\]` is no population of the package"):
        ScriptArguments(**fields, prompting=True)
    ScriptArguments(**fields, prompting=True, judges=["everyday_answers"])
