"""The trunk is run once: for the options that recur, and for policy and reference policy."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from np_trl import NPDPOTrainer
from np_trl.models.film import FiLMModelMixin
from np_trl.trainer.trunk import SharedTrunk

from .testing_utils import CONTEXT_CONFIG, dpo_config, style_rows, tiny_base, tiny_tokenizer


def build(path, adapter_layers=(1, 2), datasets=None, **kwargs) -> NPDPOTrainer:
    film_kwargs = {"context_layer": 1, "film_layers": "above_trunk", "context_config": CONTEXT_CONFIG}
    film_kwargs |= kwargs.pop("film_kwargs", {})
    train_dataset, eval_dataset = datasets or (style_rows(8), style_rows(8, seed=1))
    torch.manual_seed(0)
    return NPDPOTrainer(
        tiny_base(path / "base"),
        args=dpo_config(path / "out", learning_rate=0.02, np_learning_rate=0.05, film_kwargs=film_kwargs, **kwargs),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(
            target_modules=["q_proj"], layers_to_transform=list(adapter_layers), task_type="CAUSAL_LM"
        ),
    )


def count_passes(trainer: NPDPOTrainer, layer: int) -> list[int]:
    """Count, in the only entry of the list, how often a layer's attention runs."""
    passes = [0]

    def count(*args):
        passes[0] += 1

    base = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
    base.model.layers[layer].self_attn.register_forward_hook(count)
    return passes


def losses(trainer: NPDPOTrainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def never(model) -> bool:
    return False


def test_policy_and_reference_share_a_pass_through_the_trunk(tmp_path, monkeypatch):
    monkeypatch.setattr(SharedTrunk, "max_bytes", 0)  # nothing is kept
    trainer = build(tmp_path, max_steps=3)
    passes = [count_passes(trainer, layer) for layer in range(3)]
    shared = losses(trainer)
    passes = [number for (number,) in passes]
    assert 2 * passes[0] == passes[1] == passes[2]
    assert not any(layer.is_skipped for layer in trainer._shared_trunk.trunk)
    metrics = trainer.evaluate()

    monkeypatch.setattr(SharedTrunk, "exists", never)
    trainer = build(tmp_path, max_steps=3)
    unshared = count_passes(trainer, 0)
    assert losses(trainer) == shared and unshared == [passes[1]]  # bit-identical
    assert trainer.evaluate()["eval_loss"] == metrics["eval_loss"]


@pytest.mark.parametrize("precompute", [True, False])
def test_what_left_the_trunk_when_options_were_embedded_is_kept(tmp_path, monkeypatch, precompute):
    found = {}
    for is_shared in (True, False):
        if not is_shared:
            monkeypatch.setattr(SharedTrunk, "exists", never)
        trainer = build(tmp_path, max_steps=3, precompute_ref_log_probs=precompute)
        passes = count_passes(trainer, 0)
        found[is_shared] = [*losses(trainer), trainer.evaluate()["eval_loss"]]
        assert (passes == [0]) == is_shared
    np.testing.assert_allclose(found[True], found[False], rtol=1e-5)


def test_no_more_is_kept_than_there_is_room_for(tmp_path, monkeypatch):
    width = 32 * 4  # bytes of a token
    monkeypatch.setattr(SharedTrunk, "max_bytes", 40 * width)
    trainer = build(tmp_path, max_steps=1)
    kept = trainer._shared_trunk._kept
    assert 0 < sum(map(len, kept.values())) <= 40
    passes = count_passes(trainer, 0)
    trainer.train()
    assert passes[0] > 0


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("max_bytes", [0, 2**20])
def test_gradients_with_checkpointing_are_those_of_two_passes(
    tmp_path, monkeypatch, use_reentrant, is_frozen, max_bytes
):
    monkeypatch.setattr(SharedTrunk, "max_bytes", max_bytes)

    def train() -> list[float]:
        kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
        trainer = build(tmp_path, max_steps=3, **kwargs)
        for name, parameter in trainer.model.named_parameters():
            if is_frozen and "lora" not in name:  # as in the baselines
                parameter.requires_grad_(False)
        found = losses(trainer)
        assert (trainer._shared_trunk is None) == (SharedTrunk.exists is never)
        return found

    shared = train()
    monkeypatch.setattr(SharedTrunk, "exists", never)
    assert len(set(shared)) == 3
    np.testing.assert_allclose(train(), shared, rtol=1e-5 if max_bytes else 0)


@pytest.mark.parametrize(
    "kwargs", [{"film_kwargs": {"film_layers": "all"}}, {"adapter_layers": (0, 1)}], ids=["modulated", "adapted"]
)
def test_a_trunk_that_users_or_training_change_is_not_shared(tmp_path, kwargs):
    embeds = np.random.default_rng(0).normal(size=(8 * 12, 2, 6)).astype(np.float32)
    rows = style_rows(8)
    for side, column in enumerate(("chosen_embeds", "rejected_embeds")):
        rows = rows.add_column(column, list(embeds[:, side]))
    trainer = build(tmp_path, datasets=(rows, rows), **kwargs)
    passes = [count_passes(trainer, layer) for layer in (0, 2)]
    trainer.train()
    assert trainer._shared_trunk is None and passes[0] == passes[1]


def recurring_rows(seed: int) -> Dataset:
    """Users who choose between few answers: those of one user, given to all."""
    one = style_rows(1, pairs_per_user=12, seed=seed)
    return Dataset.from_list([{**row, "user_id": str(user)} for user in range(8) for row in one])


@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_reference_log_probs_of_recurring_options_are_those_of_each(tmp_path, ld_alpha):
    datasets = (recurring_rows(0), recurring_rows(1))
    trainer = build(tmp_path, datasets=datasets, precompute_ref_log_probs=True, ld_alpha=ld_alpha)
    found = trainer.train_dataset.with_format("torch")
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    for index in (0, 13, 50):
        batch = trainer.data_collator.target_collator([trainer.train_dataset.select_columns(columns)[index]])
        log_probs = trainer.compute_ref_log_probs(trainer.model, dict(batch))
        expected = [found[index]["ref_chosen_logps"], found[index]["ref_rejected_logps"]]
        torch.testing.assert_close(torch.cat(log_probs), torch.stack(expected).float(), rtol=1e-4, atol=1e-4)


def test_recurring_options_are_embedded_once(tmp_path, monkeypatch):
    rows, embed_options = [], FiLMModelMixin.embed_options

    def spy(self, input_ids, *args):
        rows.append(len(input_ids))
        return embed_options(self, input_ids, *args)

    monkeypatch.setattr(FiLMModelMixin, "embed_options", spy)
    trainer = build(tmp_path, datasets=(recurring_rows(0), recurring_rows(1)))
    assert sum(rows) < 2 * 2 * 24  # of 2 x 192 options there are 2 x 24
    embeds = np.array(trainer.train_dataset.with_format("numpy")["chosen_embeds"][:])
    np.testing.assert_array_equal(embeds[:12], embeds[12:24])
    base = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
    pairs = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in recurring_rows(0).select([5])]
    expected = base.embed_pairs(pairs, trainer.processing_class)[0, 0, 0]
    np.testing.assert_allclose(embeds[5], expected.numpy(), rtol=1e-4, atol=1e-5)
