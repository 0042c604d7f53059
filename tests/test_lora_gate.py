"""Latent-gated LoRA: its equation on every decoder, and what must not leak, be merged or be taken for it."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from np_trl import NPDPOTrainer, load_policy
from np_trl.trainer.film_adapter import FiLMPeftModel
from np_trl.trainer.policy import NP_MODULES, create_policy

from .testing_utils import (
    BASES,
    CONTEXT_CONFIG,
    dpo_config,
    losses,
    style_rows,
    tiny_base,
    tiny_policy,
    tiny_tokenizer,
)


FILM_KWARGS = {"film_site": "lora", "context_config": CONTEXT_CONFIG}
TOKENS = torch.randint(3, 500, (3, 7), generator=torch.Generator().manual_seed(0))
LATENTS = torch.randn(3, CONTEXT_CONFIG["latent_size"], generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=BASES)
def architecture(request) -> str:
    return request.param


def lora(**kwargs) -> LoraConfig:
    defaults = {
        "r": 4,
        "target_modules": ["q_proj", "o_proj", "down_proj"],
        "layers_to_transform": [1, 2],
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**defaults, **kwargs})


def gated_policy(path, architecture: str = "gemma", film: bool = True, **kwargs) -> FiLMPeftModel:
    """A tiny policy with random LoRA and, with `film`, gates that have been moved away from 1."""
    peft_config = lora(init_lora_weights=False, modules_to_save=list(NP_MODULES), **kwargs)
    base = create_policy(tiny_base(path, architecture), FILM_KWARGS, peft_config)
    torch.manual_seed(1)
    model = FiLMPeftModel.adopt(get_peft_model(base, peft_config), {}).eval()
    if film:
        hypernetwork = model.model.model.film.modules_to_save["default"]
        torch.nn.init.normal_(hypernetwork.weight, std=0.3)
        torch.nn.init.normal_(hypernetwork.bias, std=0.3)
    return model


def test_threads_run_for_users_of_their_own(tmp_path):
    model = gated_policy(tmp_path)

    def serve(row: int) -> torch.Tensor:
        return torch.stack([model(TOKENS[:1], latents=LATENTS[row : row + 1]).logits for _ in range(20)])

    with torch.no_grad(), ThreadPoolExecutor(2) as threads:
        for row, logits in enumerate(threads.map(serve, range(2))):
            alone = model(TOKENS[:1], latents=LATENTS[row : row + 1]).logits
            torch.testing.assert_close(logits, alone.expand_as(logits))


def test_every_direction_is_scaled_by_a_gate_of_its_own(architecture, tmp_path):
    model = gated_policy(tmp_path, architecture, rank_pattern={"o_proj": 2}, use_rslora=True)
    gates = model.model.model.infer_modulation(LATENTS)
    assert gates.shape == (3, model.config.num_gates) == (3, 2 * (4 + 4 + 2))
    seen = {}
    for index, layer in enumerate(model.model.model.layers[1:]):
        # by name: mlp.down_proj, self_attn.o_proj, self_attn.q_proj
        for module, (start, stop) in (
            (layer.mlp.down_proj, (0, 4)), (layer.self_attn.o_proj, (4, 6)), (layer.self_attn.q_proj, (6, 10)),
        ):  # fmt: skip
            part = gates[:, None, 10 * index + start : 10 * index + stop]  # (B, 1, r)
            module.register_forward_hook(lambda module, inputs, output, part=part: seen.update({module: (inputs[0], output, part)}))  # fmt: skip
    model(TOKENS, latents=LATENTS)
    assert len(seen) == 6
    for module, (inputs, output, part) in seen.items():
        down, up, scaling = module.lora_A["default"], module.lora_B["default"], module.scaling["default"]
        expected = module.base_layer(inputs) + scaling * (part * (inputs @ down.weight.T)) @ up.weight.T
        torch.testing.assert_close(output, expected)


def test_it_starts_as_plain_lora_for_every_latent(architecture, tmp_path):
    model = gated_policy(tmp_path, architecture, film=False)
    assert torch.equal(model(TOKENS, latents=LATENTS).logits, model(TOKENS).logits)


def test_without_adapter_it_is_the_base_model_to_the_bit(architecture, tmp_path):
    model, base = gated_policy(tmp_path, architecture), BASES[architecture].from_pretrained(tmp_path).eval()
    logits = base(TOKENS).logits
    assert not torch.allclose(model(TOKENS).logits, logits, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(model(TOKENS).logits, logits)
        assert torch.equal(model(TOKENS, latents=LATENTS).logits, logits)


def test_rows_of_different_users_do_not_mix(architecture, tmp_path):
    model = gated_policy(tmp_path, architecture)
    logits = model(TOKENS, latents=LATENTS).logits
    for row in range(3):
        alone = model(TOKENS[row : row + 1], latents=LATENTS[row : row + 1]).logits
        torch.testing.assert_close(alone[0], logits[row], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, model(TOKENS, latents=LATENTS.flip(0)).logits, atol=1e-2)


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}])
def test_generate_with_a_cache_equals_without(architecture, tmp_path, kwargs):
    model = gated_policy(tmp_path, architecture)
    kwargs = {"max_new_tokens": 6, "eos_token_id": None, "do_sample": False, **kwargs}
    cached = model.generate(input_ids=TOKENS, latents=LATENTS, **kwargs)
    assert torch.equal(cached, model.generate(input_ids=TOKENS, latents=LATENTS, use_cache=False, **kwargs))
    for row in range(3):
        alone = model.generate(input_ids=TOKENS[row : row + 1], users=[LATENTS[row : row + 1]], **kwargs)
        assert torch.equal(alone[0], cached[row])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_keeps_the_gradients(architecture, tmp_path, use_reentrant):
    model = gated_policy(tmp_path, architecture).train()
    context, mask = torch.randn(3, 3, 2, 32), torch.ones(3, 3, dtype=torch.bool)

    def gradients():
        model.zero_grad()
        model.enable_input_require_grads()
        outputs = model(TOKENS, labels=TOKENS, context_embeds=context, context_mask=mask)
        outputs.loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    actual = gradients()
    for part in ("film.modules_to_save.default.weight", "memory.code.weight", "lora_A.default.weight", "lora_B"):
        assert any(part in name for name in expected), part
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=name)


def test_a_call_that_fails_leaves_no_gates_behind(tmp_path):
    model = gated_policy(tmp_path)
    expected = model(TOKENS).logits

    def fail(module, inputs):
        raise KeyboardInterrupt

    handle = model.model.model.layers[2].mlp.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        model(TOKENS, latents=LATENTS)
    handle.remove()
    assert torch.equal(model(TOKENS).logits, expected)


def test_a_copy_has_gates_of_its_own(tmp_path):
    model = gated_policy(tmp_path)
    copied = copy.deepcopy(model)
    expected = model(TOKENS, latents=LATENTS).logits
    assert torch.equal(copied(TOKENS, latents=LATENTS).logits, expected)
    torch.nn.init.zeros_(copied.model.model.film.modules_to_save["default"].weight)
    assert not torch.allclose(copied(TOKENS, latents=LATENTS).logits, expected, atol=1e-2)
    assert torch.equal(model(TOKENS, latents=LATENTS).logits, expected)


def test_gates_stay_float32_under_a_bfloat16_base(tmp_path):
    base = create_policy(tiny_base(tmp_path), FILM_KWARGS, lora(), dtype=torch.bfloat16)
    model = FiLMPeftModel.adopt(get_peft_model(base, lora(modules_to_save=list(NP_MODULES))), {})
    assert model.model.model.film.modules_to_save["default"].weight.dtype == torch.float32
    logits = model(TOKENS, latents=LATENTS).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def build(tmp_path, model=None, peft_config="lora", film_kwargs=None, **kwargs) -> NPDPOTrainer:
    return NPDPOTrainer(
        tiny_base(tmp_path / "base") if model is None else model,
        args=dpo_config(tmp_path / "out", film_kwargs=film_kwargs or FILM_KWARGS, **kwargs),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=lora() if peft_config == "lora" else peft_config,
    )


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_training_starts_at_log_2_and_moves_every_part(tmp_path, gradient_checkpointing):
    trainer = build(tmp_path, max_steps=4, gradient_checkpointing=gradient_checkpointing)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)
    moved = {name for name, p in trainer.model.named_parameters() if name in before and not p.equal(before[name])}
    for part in ("film.modules_to_save", "context_encoder", "lora_A", "lora_B"):
        assert any(part in name for name in moved), part


def test_a_saved_adapter_keeps_the_logits_and_is_trained_further(tmp_path):
    trainer = build(tmp_path, max_steps=4, learning_rate=1e-2, np_learning_rate=1e-2)
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    logits = trainer.model.eval()(TOKENS, latents=LATENTS).logits
    policy = load_policy(str(tmp_path / "adapter")).eval()
    assert policy.config.film_site == "lora" and policy.config.num_gates == 24
    assert torch.equal(policy(TOKENS, latents=LATENTS).logits, logits)
    policy.set_adapter("default")  # to be trained
    further = build(tmp_path, model=policy, peft_config=None)
    assert torch.equal(further.model.eval()(TOKENS, latents=LATENTS).logits, logits)  # gated once
    further.train()
    assert not torch.equal(further.model.eval()(TOKENS, latents=LATENTS).logits, logits)


@pytest.mark.parametrize(
    "peft_config, message",
    [
        (None, 'there is no adapter. Pass `peft_config=LoraConfig'),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "an adapter of type 'IA3'"),
        (lora(use_dora=True), "does not cover adapters with use_dora=True"),
        (lora(bias="all"), "does not cover adapters with bias='all'"),
        (lora(init_lora_weights="pissa"), "does not cover adapters with init_lora_weights='pissa'"),
        (lora(alora_invocation_tokens=[5]), r"does not cover adapters with alora_invocation_tokens=\[5\]"),
    ],
)  # fmt: skip
def test_what_a_latent_cannot_gate_is_refused(tmp_path, peft_config, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, peft_config=peft_config)
    model = create_policy(tiny_base(tmp_path / "base"), FILM_KWARGS, lora())
    with pytest.raises(ValueError, match=message):
        build(tmp_path, model=model, peft_config=peft_config)


def test_gates_must_fit_the_adapter(tmp_path):
    with pytest.raises(ValueError, match=r"24 LoRA directions in the decoder layers, but .*`num_gates=10`"):
        build(tmp_path, film_kwargs={**FILM_KWARGS, "num_gates": 10})
    with pytest.raises(Exception, match="but `num_gates=None`. Give `NPDPOTrainer` the path"):
        type(create_policy(tiny_base(tmp_path / "base"))).config_class(film_site="lora")


def test_latents_without_an_adapter_are_not_ignored(tmp_path):
    model = create_policy(tiny_base(tmp_path), FILM_KWARGS, lora())
    with pytest.raises(ValueError, match="scales the directions of a LoRA adapter, and this model has none"):
        model(TOKENS, latents=LATENTS)


def test_it_is_not_merged(tmp_path):
    trainer = build(tmp_path)
    for merge in (
        lambda: trainer.save_merged(tmp_path / "merged"),
        trainer.model.merge_and_unload,
        trainer.model.merge_adapter,
    ):
        with pytest.raises(ValueError, match="every user has another adapter, so none can be merged for all"):
            merge()
    assert not (tmp_path / "merged").exists()
    trainer.save_model(tmp_path / "adapter")  # which is still there


def test_gates_are_where_lora_is_and_film_layers_does_not_choose(tmp_path):
    with pytest.raises(ValueError, match="Choose its layers by `layers_to_transform`"):
        tiny_policy(tmp_path, film_site="lora", num_gates=4, film_layers="above_trunk")
