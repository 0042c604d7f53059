import math

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from torch.distributions import Bernoulli, kl_divergence
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, GemmaForCausalLM, TrainerCallback

from np_trl import NPDPOTrainer, NPRewardTrainer, load_policy
from np_trl.trainer.policy import POLICIES, np_parameters
from np_trl.trainer.reference_log_probs import ReferenceLogProbs

from .testing_utils import (
    BASES,
    CONTEXT_CONFIG,
    dpo_config,
    losses,
    reward_config,
    style_rows,
    task_rows,
    tiny_base,
    tiny_policy,
    tiny_reward_model,
    tiny_tokenizer,
    with_embeddings,
)


def lora(**kwargs) -> LoraConfig:
    defaults = {
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [1, 2],
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**defaults, **kwargs})


def build(tmp_path, train_dataset=None, eval_dataset=None, peft_config="lora", model=None, **kwargs) -> NPDPOTrainer:
    trainer_kwargs = {key: kwargs.pop(key) for key in ("callbacks", "ref_model", "compute_metrics") if key in kwargs}
    return NPDPOTrainer(
        tiny_base(tmp_path / "base") if model is None else model,
        args=dpo_config(tmp_path / "out", **kwargs),
        train_dataset=style_rows() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tiny_tokenizer(),
        peft_config=lora() if peft_config == "lora" else peft_config,
        **trainer_kwargs,
    )


def trained_weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("peft_config", ["lora", None])
@pytest.mark.parametrize("film_site", ["block", "attention"])
def test_training_starts_at_log_2_and_moves_every_part(tmp_path, peft_config, film_site):
    film_kwargs = {"context_config": CONTEXT_CONFIG, "film_site": film_site}
    trainer = build(tmp_path, peft_config=peft_config, max_steps=4, film_kwargs=film_kwargs)
    before = trained_weights(trainer)
    trainer.train()
    first = trainer.state.log_history[0]
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(first["rewards/margins"]) < 1e-6
    moved = {name for name, value in trained_weights(trainer).items() if not torch.equal(value, before[name])}
    for part in ("film", "context_encoder", "lora_" if peft_config else "mlp"):
        assert any(part in name for name in moved), part


def test_the_policy_learns_two_opposed_groups(tmp_path):
    """After a few steps, new users are predicted from their context, and from another user's context they are not."""
    rows = [row for row in style_rows(64, 12).to_list() if row["style"] in ([1, 1, 1, 1], [-1, -1, -1, -1])]
    held_out = [
        row for row in style_rows(64, 12, seed=9).to_list() if row["style"] in ([1, 1, 1, 1], [-1, -1, -1, -1])
    ]
    trainer = build(
        tmp_path,
        Dataset.from_list(rows),
        Dataset.from_list(held_out),
        max_steps=90,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        np_learning_rate=5e-3,
        min_context=1,
        beta=0.5,
        eval_num_draws=8,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_nc2_accuracy"] > 0.85
    assert metrics["eval_nc2_shuffled_accuracy"] < 0.7


BETA, SMOOTHING, TAU = 0.4, 0.2, 0.05
# of the implicit rewards of the chosen and the rejected completion, `beta` times the log-ratio to the reference
LOSSES = {
    "sigmoid": lambda c, r: -logsigmoid(c - r),
    "hinge": lambda c, r: (1 - (c - r)).clamp(min=0),
    "ipo": lambda c, r: ((c - r) / BETA - 1 / (2 * BETA)) ** 2,  # of means over tokens
    "exo_pair": lambda c, r: kl_divergence(Bernoulli(logits=c - r), Bernoulli(torch.tensor(1 - SMOOTHING))),
    "nca_pair": lambda c, r: -logsigmoid(c) - (logsigmoid(-c) + logsigmoid(-r)) / 2,
    "robust": lambda c, r: (SMOOTHING * logsigmoid(r - c) - (1 - SMOOTHING) * logsigmoid(c - r)) / (1 - 2 * SMOOTHING),
    "bco_pair": lambda c, r: -logsigmoid(c) - logsigmoid(-r),
    "sppo_hard": lambda c, r: ((c - 1 / 2) ** 2 + (r + 1 / 2) ** 2) / BETA**2,
    "apo_zero": lambda c, r: torch.sigmoid(-c) + torch.sigmoid(r),
    "apo_down": lambda c, r: torch.sigmoid(c) + torch.sigmoid(r - c),
    "discopop": lambda c, r: (
        torch.sigmoid((r - c) / TAU) * -logsigmoid(c - r) + torch.sigmoid((c - r) / TAU) * torch.exp(r - c)
    ),
    "sigmoid_norm": lambda c, r: -logsigmoid(c - r),  # of means over tokens
}


@torch.no_grad()
def token_log_probs(model, batch, **users) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-prob of every completion token, and which tokens these are: `(2P, T - 1)` each."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **users).logits
    tokens, mask = batch["input_ids"][:, 1:, None], batch["completion_mask"][:, 1:]
    return logits[:, :-1].log_softmax(dim=-1).gather(2, tokens).squeeze(2) * mask, mask


def expected_loss(trainer, loss_type: str) -> float:
    """The loss of the first batch by its formula, from log-probs with the users' contexts and from the base's."""
    batch = next(iter(trainer.get_train_dataloader()))
    users = {key: value for key, value in batch.items() if key.startswith("context_")}
    log_probs, mask = token_log_probs(trainer.model, batch, **users)
    if loss_type == "sft":
        return float(-log_probs.chunk(2)[0].sum() / mask.chunk(2)[0].sum())
    with trainer.model.disable_adapter():
        ratios = (log_probs - token_log_probs(trainer.model, batch)[0]).sum(dim=1)
    if loss_type in ("ipo", "sigmoid_norm"):
        ratios = ratios / mask.sum(dim=1)
    assert ratios.abs().min() > 1e-4  # the policy has left the reference
    return float(LOSSES[loss_type](*(BETA * ratios).chunk(2)).mean())


@pytest.mark.parametrize("loss_type", [*LOSSES, "sft"])
def test_every_loss_of_single_pairs_is_that_of_its_formula_and_trains(tmp_path, loss_type):
    trainer = build(
        tmp_path,
        model=tiny_policy(tmp_path / "base"),
        loss_type=[loss_type],
        beta=BETA,
        label_smoothing=SMOOTHING if loss_type in ("exo_pair", "robust") else 0.0,
        discopop_tau=TAU,
        max_steps=1,
    )
    expected, before = expected_loss(trainer, loss_type), trained_weights(trainer)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-4)
    assert any(not torch.equal(value, before[name]) for name, value in trained_weights(trainer).items())


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_losses_that_sort_across_users_are_refused(tmp_path, loss_type):
    with pytest.raises(ValueError, match=f"`loss_type` .*'{loss_type}'.* mixes the users"):
        dpo_config(tmp_path, loss_type=["sigmoid", loss_type])


@pytest.mark.parametrize("peft_config", ["lora", None])
def test_precomputed_references_change_no_loss(tmp_path, peft_config):
    expected = build(tmp_path, peft_config=peft_config, max_steps=3)
    expected.train()
    precomputed = build(tmp_path, peft_config=peft_config, max_steps=3, precompute_ref_log_probs=True)
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(precomputed.train_dataset.column_names)
    precomputed.train()
    assert losses(precomputed) == pytest.approx(losses(expected), abs=1e-5)


def test_an_evaluation_computes_reference_log_probs_of_a_pair_once(tmp_path, monkeypatch):
    trainer = build(
        tmp_path,
        eval_dataset=style_rows(num_users=5, seed=1),
        eval_num_contexts=[0, 1, 2, 5],
        per_device_eval_batch_size=5,
    )
    trainer.train()
    compute, pairs = trainer.compute_ref_log_probs, []

    def count(model, inputs):
        pairs.extend(inputs["input_ids"][: len(inputs["input_ids"]) // 2].tolist())
        return compute(model, inputs)

    monkeypatch.setattr(trainer, "compute_ref_log_probs", count)
    metrics = trainer.evaluate()
    assert len(pairs) == 5 * 5  # users, targets: at no more than one of four numbers of contexts, nor in the control
    monkeypatch.setattr(ReferenceLogProbs, "find", lambda self, rows: None)
    expected = trainer.evaluate()
    assert len(pairs) == 25 + 5 * 25
    for key in (key for key in expected if "_nc" in key or key in ("eval_loss", "eval_rewards/margins")):
        assert metrics[key] == pytest.approx(expected[key], abs=1e-6)
    trainer.evaluate(style_rows(num_users=3, seed=2))  # other pairs under the same numbers
    assert trainer._references is None


def test_a_plain_model_will_do_as_reference(tmp_path):
    expected = build(tmp_path, peft_config=None, max_steps=3)
    expected.train()
    reference = GemmaForCausalLM.from_pretrained(tmp_path / "base")
    plain = build(tmp_path, peft_config=None, max_steps=3, ref_model=reference)
    plain.train()
    assert losses(plain) == pytest.approx(losses(expected), abs=1e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_loss(tmp_path, use_reentrant):
    expected = build(tmp_path, max_steps=3)
    expected.train()
    checkpointed = build(
        tmp_path,
        max_steps=3,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": use_reentrant},
    )
    checkpointed.train()
    assert losses(checkpointed) == pytest.approx(losses(expected), abs=1e-5)


def test_accumulation_gives_the_gradient_of_one_batch(tmp_path):
    one = build(tmp_path, max_steps=2, per_device_train_batch_size=4)
    one.train()
    two = build(tmp_path, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    two.train()
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    for name, value in trained_weights(one).items():
        torch.testing.assert_close(trained_weights(two)[name], value, rtol=1e-3, atol=1e-5, msg=name)


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
        return control


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    """16 users in batches of 2: 24 steps an epoch, so the run is stopped in the second one."""
    kwargs = {"max_steps": 28, "save_strategy": "steps", "save_steps": 25, "logging_steps": 1}
    full = build(tmp_path, **kwargs)
    full.train()
    stopped = build(tmp_path, callbacks=[StopAfter(25)], **kwargs)
    stopped.train()
    resumed = build(tmp_path, dataloader_num_workers=2, **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-25"))
    assert losses(resumed)[-3:] == losses(full)[-3:]
    for name, value in trained_weights(full).items():
        assert torch.equal(trained_weights(resumed)[name], value), name


def test_evaluation_reports_every_number_of_contexts_beside_trls_metrics(tmp_path):
    trainer = build(tmp_path, eval_dataset=style_rows(seed=1), eval_strategy="steps", eval_steps=1)
    trainer.train()
    metrics = trainer.evaluate()
    for num_context in (0, 2):
        for key in ("accuracy", "accuracy_se", "nll", "worst_decile_accuracy", "ece"):
            assert f"eval_nc{num_context}_{key}" in metrics
    assert "eval_nc2_shuffled_accuracy" in metrics and "eval_nc0_shuffled_accuracy" not in metrics
    assert {"eval_loss", "eval_rewards/accuracies", "eval_logps/chosen"} <= metrics.keys()
    assert sum("eval_nc2_accuracy" in entry for entry in trainer.state.log_history) == 3


def test_several_evaluation_sets_and_metrics_of_ones_own(tmp_path):
    sets = {"near": style_rows(seed=1), "far": style_rows(seed=2)}
    trainer = build(
        tmp_path, eval_dataset=sets, compute_metrics=lambda prediction: {"tasks": len(prediction.predictions[0])}
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_near_nc2_accuracy", "eval_far_nc2_accuracy", "eval_near_nc2_shuffled_accuracy"} <= metrics.keys()
    assert metrics["eval_near_tasks"] == 32
    assert metrics["eval_near_loss"] != metrics["eval_far_loss"]


@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_evaluation_margins_are_those_of_trl(tmp_path, ld_alpha):
    """Fails when TRL changes how implicit rewards are computed."""
    trainer = build(
        tmp_path,
        eval_dataset=style_rows(seed=1),
        max_steps=5,
        eval_num_contexts=[2],
        eval_num_targets=4,
        ld_alpha=ld_alpha,
    )
    trainer.train()
    captured = []
    trainer._user_metrics = lambda prediction: captured.append(prediction.predictions[0]) or {}
    metrics = trainer.evaluate()
    assert captured[0].mean() == pytest.approx(metrics["eval_rewards/margins"], abs=1e-5)
    assert (captured[0] > 0).mean() == pytest.approx(metrics["eval_rewards/accuracies"], abs=1e-6)


def test_evaluation_changes_no_later_loss(tmp_path):
    quiet = build(tmp_path, max_steps=4)
    quiet.train()
    evaluated = build(tmp_path, max_steps=4, eval_dataset=style_rows(seed=1), eval_strategy="steps", eval_steps=1)
    evaluated.train()
    assert losses(evaluated) == losses(quiet)


def test_iterable_tasks_train_and_equal_their_rows(tmp_path):
    dataset = with_embeddings(style_rows())
    film_kwargs = {"context_config": {**CONTEXT_CONFIG, "embed_size": 6}}
    trainer = build(tmp_path, task_rows(dataset), film_kwargs=film_kwargs, max_steps=3)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["context_embeds"].shape == (2, 2, 2, 6) and batch["input_ids"].shape[0] == 2 * 2 * 10
    prompt_ids = tiny_tokenizer()(dataset[2]["prompt"])["input_ids"]
    chosen_ids = tiny_tokenizer()(dataset[2]["prompt"] + dataset[2]["chosen"] + "<eos>")["input_ids"]
    assert batch["input_ids"][0, : len(chosen_ids)].tolist() == chosen_ids
    assert batch["completion_mask"][0].sum() == len(chosen_ids) - len(prompt_ids)
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_streamed_targets_need_no_embeddings(tmp_path):
    tasks = list(task_rows(with_embeddings(style_rows())))
    for task in tasks:
        task["target"] = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in task["target"]]
    for task in tasks[:2]:
        task["context"] = []  # of all tasks of a batch
    film_kwargs = {"context_config": {**CONTEXT_CONFIG, "embed_size": 6}}
    stream = Dataset.from_list(tasks[::-1]).to_iterable_dataset()
    trainer = build(tmp_path, stream, film_kwargs=film_kwargs, max_steps=len(tasks) // 2)
    trainer.train()
    assert len(losses(trainer)) == 8 and trainer.state.epoch == 1


def test_embedding_columns_set_the_size_of_the_encoder(tmp_path):
    trainer = build(tmp_path, with_embeddings(style_rows(), 5), with_embeddings(style_rows(seed=1), 5))
    assert trainer.model.config.context_config.embed_size == 5
    trainer.train()
    assert "eval_nc2_accuracy" in trainer.evaluate()


def test_conversational_rows_train(tmp_path):
    def converse(row):
        return {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out"),
        train_dataset=style_rows().map(converse),
        processing_class=tokenizer,
        peft_config=lora(),
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_the_trunk_embeds_alike_in_training_and_afterwards(tmp_path):
    dataset = style_rows()
    trainer = build(tmp_path, dataset, max_steps=3)
    trainer.train()
    merged = trainer.model.merge_and_unload()
    context = merged.embed_pairs(dataset.select(range(4)).to_list(), tiny_tokenizer())
    for side, column in enumerate(("chosen_embeds", "rejected_embeds")):
        expected = torch.tensor(trainer.train_dataset[:4][column])
        torch.testing.assert_close(context[0, :, side], expected, rtol=1e-4, atol=1e-5)


def test_a_full_fine_tune_leaves_the_trunk_alone(tmp_path):
    trainer = build(tmp_path, peft_config=None, max_steps=3)
    trainer.train()
    base = GemmaForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    moved = {name for name, p in trainer.model.named_parameters() if name in base and not torch.equal(p, base[name])}
    assert moved and not any("layers.0." in name or "embed_tokens" in name for name in moved)


def test_the_context_encoder_and_film_have_their_own_learning_rate(tmp_path):
    trainer = build(tmp_path, learning_rate=1e-4, np_learning_rate=1e-2)
    trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    ours = np_parameters(trainer.model)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (1e-2 if name in ours else 1e-4), name


def test_film_is_trained_in_float32_under_a_bfloat16_base(tmp_path):
    base = tiny_base(tmp_path / "bf16", dtype=torch.bfloat16)
    trainer = build(tmp_path, model=base, model_init_kwargs={"dtype": "bfloat16"}, bf16=True)
    assert {p.dtype for p in np_parameters(trainer.model).values()} == {torch.float32}
    assert trainer.model.get_base_model().model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    before = trained_weights(trainer)
    trainer.train()
    assert any("film" in name and not torch.equal(p, before[name]) for name, p in trained_weights(trainer).items())


def test_a_reward_models_context_encoder_is_a_warm_start(tmp_path):
    data = with_embeddings(style_rows())
    reward_trainer = NPRewardTrainer(tiny_reward_model(), args=reward_config(tmp_path / "reward"), train_dataset=data)
    reward_trainer.train()
    reward_trainer.save_model()
    trainer = build(tmp_path, data, context_encoder_path=str(tmp_path / "reward"))
    expected = reward_trainer.model.context_encoder.state_dict()
    encoder = trainer.model.get_base_model().model.context_encoder.modules_to_save["default"]
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    assert encoder.standardizer.is_fitted


def test_a_context_encoder_of_another_size_is_refused(tmp_path):
    tiny_reward_model(embed_size=9).save_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match="is not that of the policy.*Set the same fields"):
        build(tmp_path, with_embeddings(style_rows()), context_encoder_path=str(tmp_path / "reward"))


@pytest.mark.parametrize("film_site", ["block", "attention"])
def test_a_saved_adapter_loads_with_film_and_keeps_the_log_probs(tmp_path, film_site):
    trainer = build(tmp_path, max_steps=3, film_kwargs={"context_config": CONTEXT_CONFIG, "film_site": film_site})
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    policy = load_policy(str(tmp_path / "adapter")).eval()
    assert isinstance(policy, PeftModel) and policy.config.film_site == film_site
    inputs = {"input_ids": torch.randint(3, 500, (2, 9)), "context_embeds": torch.randn(2, 3, 2, 32)}
    inputs["context_mask"] = torch.ones(2, 3, dtype=torch.bool)
    logits = trainer.model.eval()(**inputs).logits
    torch.testing.assert_close(policy(**inputs).logits, logits)
    merged = policy.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(load_policy(str(tmp_path / "merged"))(**inputs).logits, logits, rtol=1e-4, atol=1e-5)


def test_a_plain_adapter_is_not_taken_for_a_policy(tmp_path):
    plain = get_peft_model(GemmaForCausalLM.from_pretrained(tiny_base(tmp_path / "base")), lora())
    plain.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds no FiLM: it was trained on a plain model"):
        load_policy(str(tmp_path / "adapter"))
    with pytest.raises(TypeError, match="`model` is a GemmaForCausalLM, which has no FiLM"):
        build(tmp_path, model=plain, peft_config=None)


def test_a_policys_adapter_is_not_loaded_into_a_plain_model_in_silence(tmp_path):
    trainer = build(tmp_path)
    trainer.save_model(tmp_path / "adapter")
    with pytest.raises(Exception, match="load it with np_trl.load_policy"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with pytest.raises(Exception, match="load it with np_trl.load_policy"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with pytest.raises(Exception, match="load it with np_trl.load_policy"):
        PeftModel.from_pretrained(GemmaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")


def test_an_adapter_that_leaves_film_out_is_refused(tmp_path):
    with pytest.raises(ValueError, match="an adapter without FiLM and context encoder"):
        build(tmp_path, model=get_peft_model(tiny_policy(tmp_path / "base"), lora()), peft_config=None)


def test_lora_in_the_trunk_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"reaches `layers.0` .*, but `context_layer=1`.*layers_to_transform=list\(range\(1, 3\)\)"
    ):
        build(tmp_path, peft_config=lora(layers_to_transform=None))
    build(tmp_path, with_embeddings(style_rows()), peft_config=lora(layers_to_transform=None))  # no trunk is used


def test_a_plain_model_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`model` is a GemmaForCausalLM, which has no FiLM.*Pass the path"):
        build(tmp_path, model=GemmaForCausalLM.from_pretrained(tiny_base(tmp_path / "base")))


def test_an_architecture_without_film_is_refused(tmp_path):
    from transformers import OPTConfig

    OPTConfig(architectures=["OPTForCausalLM"]).save_pretrained(tmp_path / "opt")
    with pytest.raises(ValueError, match=r"type 'opt', which has no FiLM version. Supported: \['gemma'"):
        build(tmp_path, model=str(tmp_path / "opt"))


def test_a_prompt_without_room_for_the_completion_is_refused(tmp_path):
    rows = style_rows().to_list()
    rows[3]["prompt"] = "How do I fix the bike? " * 10
    with pytest.raises(
        ValueError, match="1 of 192 prompts of the train dataset fill `max_length=60`.*Raise `max_length`"
    ):
        build(tmp_path, Dataset.from_list(rows), max_length=60)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"max_context": 7, "num_targets": 4, "context_in_target": True},
            "`max_context=7` exceeds `num_targets=4`.*context_in_target=False",
        ),
        ({"min_context": 3, "max_context": 2}, "`min_context=3` exceeds `max_context=2`"),
        ({"num_targets": 0}, "`num_targets=0` must be at least 1"),
        ({"eval_num_contexts": []}, "`eval_num_contexts=\\[\\]` must hold at least one"),
        ({"eval_shuffled_contexts": [3]}, "`eval_shuffled_contexts=\\[3\\]` must be among"),
    ],
)
def test_impossible_tasks_are_refused(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        dpo_config(tmp_path, **kwargs)


def test_embeddings_are_checked_before_training(tmp_path):
    with pytest.raises(
        ValueError, match="The eval dataset holds embeddings of size 4, but the model takes `embed_size=6`"
    ):
        build(tmp_path, with_embeddings(style_rows()), with_embeddings(style_rows(seed=1), 4))


def test_the_model_card_names_method_and_paper(tmp_path):
    trainer = build(tmp_path)
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "NP-DPO" in card and "2412.13998" in card and "np-dpo" in card


@pytest.mark.parametrize("architecture", BASES)
def test_every_decoder_trains_from_log_2_and_its_adapter_comes_back(tmp_path, architecture):
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base", architecture),
        args=dpo_config(tmp_path / "out", max_steps=4),
        train_dataset=style_rows(),
        eval_dataset=style_rows(num_users=8, seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[1, 2]),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert isinstance(trainer.model.get_base_model(), POLICIES[architecture])
    first, *others = losses(trainer)
    assert first == pytest.approx(0.6931, abs=1e-4) and all(0 < loss < 1 for loss in others)
    after = dict(trainer.model.named_parameters())
    for part in ("lora_B", "film", "context_encoder"):
        assert any(part in name and not torch.equal(after[name], before[name]) for name in before), part
    assert {"eval_nc0_accuracy", "eval_nc2_accuracy", "eval_nc2_shuffled_accuracy"} <= trainer.evaluate().keys()

    trainer.save_model(tmp_path / "adapter")
    loaded = load_policy(str(tmp_path / "adapter")).eval()
    tokens = torch.arange(3, 17).view(2, 7)
    users = {"latents": torch.randn(2, CONTEXT_CONFIG["latent_size"])}
    logits = trainer.model.eval()(tokens, **users).logits
    torch.testing.assert_close(loaded(tokens, **users).logits, logits)
    with loaded.disable_adapter():  # the reference policy
        plain = BASES[architecture].from_pretrained(tmp_path / "base").eval()
        assert torch.equal(loaded(tokens).logits, plain(tokens).logits)


def test_the_size_of_a_step_is_said_before_the_first(tmp_path, capsys):
    args = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "num_targets": 5, "max_length": 64}
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", max_steps=1, **args),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
    )
    assert "A step" not in capsys.readouterr().out
    trainer.train()
    assert "A step: 6 users x 5 pairs = 60 sequences of at most 64 tokens." in capsys.readouterr().out
