import math

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets

from np_trl import NPRewardModel, NPRewardModelConfig, NPRewardTrainer
from np_trl.populations.piecewise import piecewise_bayes_accuracy, piecewise_population

from .testing_utils import embedded_rows, losses, reward_config, task_rows, tiny_reward_model


def build(tmp_path, model=None, train_dataset=None, eval_dataset=None, **kwargs) -> NPRewardTrainer:
    return NPRewardTrainer(
        tiny_reward_model() if model is None else model,
        args=reward_config(tmp_path, **kwargs),
        train_dataset=embedded_rows() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
    )


def test_a_model_without_memory_starts_at_log_2(tmp_path):
    config = NPRewardModelConfig(embed_size=6, context_config={"memory_size": 0, "latent_size": 8, "hidden_size": 16})
    trainer = build(tmp_path, model=NPRewardModel(config))
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("head", ["bradley_terry", "mean_variance"])
@pytest.mark.parametrize("conditional", [True, False])
def test_the_loss_is_the_nll_of_the_choices(tmp_path, head, conditional):
    """Fails when TRL changes the loss of its reward trainer."""
    trainer = build(tmp_path, model=tiny_reward_model(head=head, conditional=conditional), max_steps=3)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    batch = next(iter(trainer.get_train_dataloader()))
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    expected = trainer.model(**{key: value for key, value in batch.items() if key != "attention_mask"})
    nll = -torch.nn.functional.logsigmoid(trainer.model.choice_logits(expected)).mean()
    torch.testing.assert_close(loss, nll)
    torch.testing.assert_close(outputs.logits.mean(), expected.logits.mean())


def test_example_4_1_approaches_the_bayes_limit(tmp_path):
    """300 steps instead of 1,000: within a few points of Bayes, calibrated without a context, and never above."""
    config = NPRewardModelConfig(
        embed_size=1, hidden_size=64, context_config={"hidden_size": 64, "latent_size": 72, "memory_size": 8}
    )
    trainer = build(
        tmp_path,
        model=NPRewardModel(config),
        train_dataset=piecewise_population(1000, 40, seed=0),
        eval_dataset=piecewise_population(400, 30, seed=1),
        max_steps=300,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=200,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        num_targets=20,
        max_context=10,
        context_in_target=False,
        eval_num_contexts=[0, 1, 3, 10],
    )
    trainer.train()
    metrics = trainer.evaluate()
    for num_context, limit in piecewise_bayes_accuracy([0, 1, 3, 10]).items():
        accuracy, error = metrics[f"eval_nc{num_context}_accuracy"], metrics[f"eval_nc{num_context}_accuracy_se"]
        assert limit - 0.02 - 2 * error < accuracy < limit + 3 * error + 1e-3, (num_context, accuracy)
    assert metrics["eval_nc0_nll"] < 0.5
    assert metrics["eval_nc10_shuffled_accuracy"] < metrics["eval_nc0_accuracy"] + 0.03


def test_statistics_are_taken_once(tmp_path):
    trainer = build(tmp_path)
    mean = trainer.model.standardizer.mean.clone()
    assert trainer.model.standardizer.is_fitted and trainer.model.context_encoder.standardizer.is_fitted
    again = build(tmp_path, model=trainer.model, train_dataset=embedded_rows(seed=5))
    assert torch.equal(again.model.standardizer.mean, mean)


def test_save_and_load_keep_the_evaluation(tmp_path):
    trainer = build(tmp_path, eval_dataset=embedded_rows(seed=1), max_steps=5)
    trainer.train()
    trainer.save_model(tmp_path / "reward")
    reloaded = build(tmp_path, model=str(tmp_path / "reward"), eval_dataset=embedded_rows(seed=1))
    for key, value in trainer.evaluate().items():
        if key.startswith("eval_nc"):
            assert reloaded.evaluate()[key] == pytest.approx(value), key


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    kwargs = {"max_steps": 12, "save_strategy": "steps", "save_steps": 5}
    full = build(tmp_path, **kwargs)
    full.train()
    resumed = build(tmp_path, **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert losses(resumed)[-7:] == losses(full)[-7:]


@pytest.mark.parametrize("num_steps", [4, 10])  # a pass takes 4 steps, or 2 of the stream
@pytest.mark.parametrize("streamed", [False, True])
def test_a_finished_run_is_trained_no_further(tmp_path, streamed, num_steps):
    """Fails when transformers decides elsewhere whether a run is finished."""
    dataset = task_rows(embedded_rows()) if streamed else embedded_rows()
    kwargs = {"max_steps": num_steps, "save_strategy": "steps", "save_steps": 2}
    full = build(tmp_path, train_dataset=dataset, **kwargs)
    full.train()
    again = build(tmp_path, train_dataset=dataset, **kwargs)
    again.train(resume_from_checkpoint=True)
    assert losses(again) == losses(full) and again.state.global_step == num_steps
    for name, weight in full.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name


def test_the_loss_of_streamed_tasks_is_that_of_their_targets_given_their_contexts(tmp_path):
    rows = embedded_rows()
    trainer = build(tmp_path, train_dataset=task_rows(rows, num_context=2), max_steps=2, learning_rate=0)
    trainer.train()
    chosen, rejected = (torch.tensor(rows[f"{side}_embeds"][:]).view(8, 12, 6) for side in ("chosen", "rejected"))
    contexts, mask = torch.stack([chosen, rejected], dim=2)[:, :2], torch.ones(8, 2, dtype=torch.bool)
    with torch.no_grad():
        latents = trainer.model.infer_latents(contexts, mask)
        options = torch.cat([chosen[:, 2:].reshape(-1, 6), rejected[:, 2:].reshape(-1, 6)])
        index = torch.arange(8).repeat_interleave(10).repeat(2)
        rewards = trainer.model(options, latents=latents, context_index=index).logits.view(2, 8, 10)
    of_users = -torch.nn.functional.logsigmoid(rewards[0] - rewards[1]).mean(dim=1)
    assert losses(trainer) == pytest.approx([float(of_users[:4].mean()), float(of_users[4:].mean())], rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_stream_goes_on_where_it_was(tmp_path, accumulation):
    """Fails when transformers counts the passes over a stream otherwise."""
    kwargs = {
        "max_steps": 7,
        "per_device_train_batch_size": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "save_strategy": "steps",
        "save_steps": 1,
    }

    def start(name: str) -> NPRewardTrainer:  # a pass takes 3 steps
        stream = task_rows(embedded_rows(num_users=12, pairs_per_user=4)).shuffle(seed=0, buffer_size=12)
        return build(tmp_path / name, train_dataset=stream, **kwargs)

    full = start("full")
    full.train()
    for step in (2, 3, 5):
        resumed = start(f"from_{step}")
        resumed.train(resume_from_checkpoint=str(tmp_path / "full" / f"checkpoint-{step}"))
        assert losses(resumed) == losses(full), step
        assert resumed.state.epoch == full.state.epoch


def test_streams_are_evaluated_beside_datasets(tmp_path):
    rows, seen = embedded_rows(num_users=6), []
    stream = task_rows(embedded_rows(num_users=7, pairs_per_user=6, seed=1))
    trainer = NPRewardTrainer(
        tiny_reward_model(),
        args=reward_config(tmp_path, eval_group_column="group"),
        train_dataset=rows,
        eval_dataset={"rows": rows.add_column("group", [str(user % 2) for user in rows["user_id"]]), "stream": stream},
        compute_metrics=lambda prediction: seen.append(prediction.label_ids.shape) or {},
    )
    metrics = trainer.evaluate()
    assert "eval_rows_nc2_0_accuracy" in metrics and metrics["eval_stream_nc2_users"] == 7
    assert seen[-1] == (7, 2)  # user and N_C
    trainer.args.eval_num_targets = 3
    with pytest.raises(ValueError, match="has 4 targets, more than `eval_num_targets=3`. Raise"):
        trainer.evaluate(stream)


@pytest.mark.parametrize("value", [math.nan, 1e300])  # of which the second is finite in float64 only
@pytest.mark.parametrize(("row", "part"), [(13, "context"), (20, "target")])
def test_a_streamed_pair_that_is_not_finite_is_named(tmp_path, row, part, value):
    columns = embedded_rows().to_dict()
    columns["rejected_embeds"][row][1] = value
    name = rf"`rejected_embeds` of pair \d in the {part} of user 1 holds NaN or infinite values. Drop the pair"
    stream = task_rows(Dataset.from_dict(columns))
    with pytest.raises(ValueError, match=name):  # where the statistics are taken
        build(tmp_path, train_dataset=stream, max_steps=3)
    model = build(tmp_path / "other", train_dataset=task_rows(embedded_rows())).model
    trainer = build(tmp_path, model=model, train_dataset=stream, max_steps=3)
    with pytest.raises(ValueError, match=name):  # where they are there already
        trainer.train()


def test_a_stream_is_standardised_as_rows_are(tmp_path):
    columns = embedded_rows().to_dict()
    for name in ("chosen_embeds", "rejected_embeds"):
        columns[name] = (1e4 * np.array(columns[name]) + 1e3).tolist()
    rows = Dataset.from_dict(columns)
    of_rows, of_stream = (build(tmp_path, train_dataset=dataset).model for dataset in (rows, task_rows(rows)))
    assert of_rows.standardizer.is_fitted
    for name, values in of_rows.state_dict().items():
        if "standardizer" in name:
            torch.testing.assert_close(of_stream.state_dict()[name], values)


def test_dropout_is_not_switched_off_in_silence(tmp_path):
    assert build(tmp_path, model=tiny_reward_model(dropout=0.3)).model.dropout.p == 0.3


def test_embeddings_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match="embeddings of size 4, but the model takes `embed_size=6`"):
        build(tmp_path, train_dataset=embedded_rows(embed_size=4))


def test_vectors_of_options_are_trained_and_missed(tmp_path, caplog):
    dataset = embedded_rows()
    options = [f"option {index % 7}" for index in range(len(dataset))]
    dataset = dataset.add_column("chosen_option_id", options).add_column("rejected_option_id", options[::-1])
    model = tiny_reward_model(option_ids=sorted(set(options)))
    trainer = build(
        tmp_path, model=model, train_dataset=dataset, eval_dataset=embedded_rows(seed=1), learning_rate=0.1
    )
    assert "The eval dataset has no ['chosen_option_id', 'rejected_option_id'] column" in caplog.text
    trainer.train()
    assert (model.option_vectors.weight != 0).any(dim=1).all()
    # rows without ids are read without the vectors, and rows with them are not
    without, with_ids = trainer.evaluate(), trainer.evaluate(dataset)
    torch.nn.init.zeros_(model.option_vectors.weight)
    for key in ("eval_nc0_nll", "eval_nc2_nll"):
        assert trainer.evaluate()[key] == without[key]
        assert abs(trainer.evaluate(dataset)[key] - with_ids[key]) > 1e-4


def test_the_best_checkpoint_by_likelihood_is_kept(tmp_path):
    """As the paper does (App. C.2.1), through the arguments of transformers."""
    trainer = build(
        tmp_path,
        eval_dataset=embedded_rows(seed=1),
        max_steps=8,
        learning_rate=0.3,  # it gets worse
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_nc2_nll",
        greater_is_better=False,
    )
    trainer.train()
    seen = [entry["eval_nc2_nll"] for entry in trainer.state.log_history if "eval_nc2_nll" in entry]
    assert len(seen) == 4 and trainer.state.best_metric == min(seen) < max(seen)
    assert trainer.evaluate()["eval_nc2_nll"] == pytest.approx(min(seen))


def test_contexts_and_targets_of_an_evaluation_follow_their_roles(tmp_path):
    """A user's choices turn round in the rows for targets: what the contexts say must then mislead."""
    dataset, turned = embedded_rows(num_users=200), embedded_rows(num_users=200)
    roles = ["context" if index % 12 < 8 else "target" for index in range(len(dataset))]
    dataset = dataset.add_column("role", roles)
    turned = turned.rename_columns({"chosen_embeds": "rejected_embeds", "rejected_embeds": "chosen_embeds"})
    turned = turned.add_column("role", roles).filter(lambda row: row["role"] == "target")
    turned = concatenate_datasets(
        [dataset.filter(lambda row: row["role"] == "context"), turned.select_columns(dataset.column_names)]
    )
    trainer = build(tmp_path, eval_dataset={"same": dataset, "turned": turned}, eval_num_contexts=[0, 8])
    metrics = trainer.evaluate()  # the untrained model scores by what was chosen
    assert metrics["eval_same_nc8_accuracy"] > 0.6
    assert metrics["eval_turned_nc8_accuracy"] == pytest.approx(1 - metrics["eval_same_nc8_accuracy"])
