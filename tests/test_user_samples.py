"""Samples that are printed in the course of training."""

import pytest
import torch
from peft import LoraConfig

from np_trl import NPDPOTrainer
from np_trl.data import PreferenceRows
from np_trl.evaluation.generations import write
from np_trl.evaluation.user_samples import UserSamples

from .testing_utils import dpo_config, style_rows, tiny_base, tiny_tokenizer


@pytest.fixture
def trainer(tmp_path) -> NPDPOTrainer:
    return build(tmp_path)


def build(path, **kwargs) -> NPDPOTrainer:
    settings = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "np_learning_rate": 0.1, **kwargs}
    torch.manual_seed(0)
    return NPDPOTrainer(
        tiny_base(path / "base"),
        args=dpo_config(path / "out", **settings),
        train_dataset=style_rows(16),
        eval_dataset=style_rows(16, seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(
            lora_dropout=0.1, target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM"
        ),
    )


def test_samples_follow_each_evaluation_but_the_last_and_training_does_not_notice(trainer, tmp_path, capsys):
    samples = UserSamples(trainer, max_new_tokens=8)
    trainer.add_callback(samples)
    trainer.train()
    printed, (first, second) = capsys.readouterr().out, samples.names
    assert printed.count(f"  to {first}:\n") == printed.count(f"  to {second}:\n") == 2  # of 3 evaluations
    assert printed.count(f"\n{samples.prompts[0]}\n") == 2
    other = build(tmp_path)
    other.train()
    for (name, ours), theirs in zip(trainer.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)


def test_named_users_are_known_by_their_largest_number_of_choices(trainer, capsys):
    users = PreferenceRows(trainer.eval_dataset).user_ids
    names = {str(users[3]): "the fourth", str(users[5]): "the sixth"}
    samples = UserSamples(trainer, names, ["Describe the weather."], 8)
    assert samples.names == ["the fourth", "the sixth"]
    assert [len(context) for context in samples.contexts] == [2, 2]
    samples.print()
    model, rows = trainer.model, samples.rows
    prompt_ids = [trainer.processing_class(samples.prompts[0])["input_ids"]] * 2
    embeds = torch.stack([rows.embeds(context) for context in samples.contexts])
    with torch.no_grad():
        latents = model.infer_latents(embeds, torch.ones(2, 2))
    torch.manual_seed(trainer.args.seed)
    answers = trainer.processing_class.batch_decode(
        write(model, trainer.processing_class, prompt_ids, latents, 8), skip_special_tokens=True
    )
    indented = [answer.replace("\n", "\n    ") for answer in answers]
    assert capsys.readouterr().out == (
        f"\nDescribe the weather.\n  to the fourth:\n    {indented[0]}\n  to the sixth:\n    {indented[1]}\n"
    )
    owners = [{rows.dataset[int(row)]["user_id"] for row in context} for context in samples.contexts]
    assert owners == [{users[3]}, {users[5]}]


def test_users_without_choices_have_samples_too(tmp_path, capsys):
    samples = UserSamples(build(tmp_path, eval_num_contexts=[0], eval_strategy="no"), max_new_tokens=4)
    samples.print()
    assert capsys.readouterr().out.count("  to ") == 2
