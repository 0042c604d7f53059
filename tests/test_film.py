"""FiLM: the laws that the mixins of `film.py` keep on every decoder."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

from np_trl.trainer.policy import POLICIES

from .testing_utils import BASES, CONTEXT_CONFIG, tiny_base, tiny_policy, toy_context


# fields of policies; latent-gated LoRA has tests of its own
FIELDS = {
    "block": {"film_site": "block", "film_layers": "all"},
    "attention": {"film_site": "attention", "film_layers": "all"},
    "bounded block": {"film_site": "block", "film_scaling": "bounded"},
    "block above trunk": {"film_site": "block", "film_layers": "above_trunk"},
}
LATENT_SIZE = CONTEXT_CONFIG["latent_size"]


@pytest.fixture(params=BASES)
def architecture(request) -> str:
    return request.param


def test_every_decoder_is_tested():
    assert POLICIES.keys() == BASES.keys()


def tokens(rows: int, length: int = 7) -> torch.Tensor:
    return torch.randint(3, 500, (rows, length), generator=torch.Generator().manual_seed(0))


def users(rows: int) -> torch.Tensor:
    return torch.randn(rows, LATENT_SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_without_latents_it_is_the_base_model_to_the_bit(architecture, tmp_path, fields):
    model = tiny_policy(tmp_path, architecture, **fields)
    base = BASES[architecture].from_pretrained(tmp_path).eval()
    assert torch.equal(model(tokens(3)).logits, base(tokens(3)).logits)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_it_starts_as_the_identity_for_every_latent(architecture, tmp_path, fields):
    model = tiny_policy(tmp_path, architecture, film=False, **fields)
    assert torch.equal(model(tokens(3), latents=users(3)).logits, model(tokens(3)).logits)


def test_block_site_scales_and_shifts_the_output_of_every_block(architecture, tmp_path):
    model, latents = tiny_policy(tmp_path, architecture), users(2)
    plain = model(tokens(2), output_hidden_states=True).hidden_states
    steered = model(tokens(2), latents=latents, output_hidden_states=True).hidden_states
    scale, shift = model.model.film(latents)[:, 0].unsqueeze(2).unbind(dim=1)
    torch.testing.assert_close(steered[1], scale * plain[1] + shift)


def test_attention_site_scales_and_shifts_before_the_residual(architecture, tmp_path):
    model, latents, outputs = tiny_policy(tmp_path, architecture, film_site="attention"), users(2), []
    attention = model.model.layers[0].self_attn
    handle = attention.o_proj.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    modulated = []
    attention.register_forward_hook(lambda module, inputs, output: modulated.append(output[0]))
    model(tokens(2), latents=latents)
    handle.remove()
    scale, shift = model.model.film(latents)[:, 0].unsqueeze(2).unbind(dim=1)
    torch.testing.assert_close(modulated[0], scale * outputs[0] + shift)


def test_film_above_the_trunk_leaves_the_trunk_to_the_base(architecture, tmp_path):
    """Of three layers the trunk has two: their outputs are bit-identical for all, and FiLM has a third of the outputs."""
    fields = {"film_layers": "above_trunk", "context_layer": 2}
    for site in ("block", "attention"):
        model = tiny_policy(tmp_path / site, architecture, film_site=site, **fields)
        assert model.model.film.sizes == (1, 2, 32) and len(model.model.film.weight) == 2 * 32
        plain = model(tokens(2), output_hidden_states=True).hidden_states
        steered = model(tokens(2), latents=users(2), output_hidden_states=True).hidden_states
        assert all(torch.equal(one, other) for one, other in zip(plain[:3], steered[:3], strict=True))
        assert (plain[3] - steered[3]).abs().max() > 1e-3


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_rows_of_different_users_do_not_mix(architecture, tmp_path, fields):
    model, latents = tiny_policy(tmp_path, architecture, **fields), users(3)
    logits = model(tokens(3), latents=latents).logits
    for row in range(3):
        alone = model(tokens(3)[row : row + 1], latents=latents[row : row + 1]).logits
        torch.testing.assert_close(alone[0], logits[row], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits, model(tokens(3), latents=latents.flip(0)).logits, atol=1e-2)


def test_contexts_and_latents_give_the_same_logits(architecture, tmp_path):
    model = tiny_policy(tmp_path, architecture)
    context, mask = torch.randn(2, 3, 2, 32), torch.tensor([[True, True, False], [False, False, False]])
    index = torch.tensor([0, 1, 1])
    latents = model.infer_latents(context, mask)[index]
    by_context = model(tokens(3), context_embeds=context, context_mask=mask, context_index=index).logits
    torch.testing.assert_close(by_context, model(tokens(3), latents=latents).logits)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "cache_implementation": "static"},
    ],
)
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_generate_with_a_cache_equals_without(architecture, tmp_path, fields, kwargs):
    model, latents = tiny_policy(tmp_path, architecture, **fields), users(3)
    kwargs = {"latents": latents, "max_new_tokens": 6, "eos_token_id": None, **kwargs}
    cached = model.generate(tokens(3), **kwargs)
    kwargs.pop("cache_implementation", None)
    assert torch.equal(cached, model.generate(tokens(3), use_cache=False, **kwargs))
    for row in range(3):  # a batch that mixes users
        alone = model.generate(tokens(3)[row : row + 1], **{**kwargs, "latents": latents[row : row + 1]})
        assert torch.equal(alone[0], cached[row])


def test_generate_returns_several_samples_of_each_user(architecture, tmp_path):
    model, latents = tiny_policy(tmp_path, architecture), users(2)
    torch.manual_seed(0)
    outputs = model.generate(tokens(2), latents=latents, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert outputs.shape[0] == 6
    torch.manual_seed(0)
    repeated = model.generate(
        tokens(2).repeat_interleave(3, 0), latents=latents.repeat_interleave(3, 0), max_new_tokens=4, do_sample=True
    )
    assert torch.equal(outputs, repeated)


def test_padding_changes_no_logit(architecture, tmp_path):
    model, latents = tiny_policy(tmp_path, architecture), users(2)
    padded = torch.nn.functional.pad(tokens(2), (0, 4))
    mask = torch.nn.functional.pad(torch.ones_like(tokens(2)), (0, 4))
    logits = model(padded, attention_mask=mask, latents=latents).logits[:, :7]
    torch.testing.assert_close(logits, model(tokens(2), latents=latents).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_gradient_checkpointing_keeps_the_gradients(architecture, tmp_path, fields, use_reentrant):
    model = tiny_policy(tmp_path, architecture, **fields).train()
    context, mask = torch.randn(2, 3, 2, 32), torch.ones(2, 3, dtype=torch.bool)

    def gradients():
        model.zero_grad()
        model.enable_input_require_grads()
        outputs = model(tokens(2), labels=tokens(2), context_embeds=context, context_mask=mask)
        outputs.loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    actual = gradients()
    assert {"model.film.weight", "model.context_encoder.memory.code.weight"} <= expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=name)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_save_and_load_keep_the_logits(architecture, tmp_path, fields):
    model = tiny_policy(tmp_path / "base", architecture, **fields)
    model.model.context_encoder.standardizer.fit([torch.randn(20, 32) + 1])
    model.save_pretrained(tmp_path / "policy")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert isinstance(loaded, POLICIES[architecture]) and fields.items() <= vars(loaded.config).items()
    assert torch.equal(loaded(tokens(2), latents=users(2)).logits, model(tokens(2), latents=users(2)).logits)
    context = torch.randn(2, 3, 2, 32), torch.ones(2, 3)
    assert torch.equal(loaded.infer_latents(*context), model.infer_latents(*context))
    backbone = AutoModel.from_pretrained(tmp_path / "policy")
    assert torch.equal(
        backbone(tokens(2), latents=users(2)).last_hidden_state,
        model.model(tokens(2), latents=users(2)).last_hidden_state,
    )


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_merging_keeps_the_log_probs(architecture, tmp_path, fields):
    model = tiny_policy(tmp_path, architecture, **fields)
    lora = LoraConfig(
        target_modules=["q_proj"],
        modules_to_save=["context_encoder", "film"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, lora).eval()
    logits = adapted(tokens(2), latents=users(2)).logits
    merged = adapted.merge_and_unload()
    assert isinstance(merged, POLICIES[architecture])
    torch.testing.assert_close(merged(tokens(2), latents=users(2)).logits, logits, rtol=1e-4, atol=1e-5)


def test_film_stays_float32_under_a_bfloat16_base(architecture, tmp_path):
    model = tiny_policy(tmp_path, architecture, dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert dtypes["model.film.weight"] == dtypes["model.context_encoder.memory.code.weight"] == torch.float32
    assert model.config.dtype == torch.bfloat16 and model.config.context_config.dtype == torch.float32
    logits = model(tokens(2), latents=users(2)).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_trunk_embeddings_do_not_depend_on_users_or_padding(architecture, tmp_path):
    model, rows = tiny_policy(tmp_path, architecture), tokens(2)
    attention, completion = torch.ones_like(rows), torch.zeros_like(rows)
    completion[:, 3:] = 1
    embeds = model.embed_options(rows, attention, completion)
    hidden = BASES[architecture].from_pretrained(tmp_path).eval()(rows, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(embeds, hidden[:, 3:].mean(dim=1))
    pad = torch.nn.functional.pad
    padded = model.embed_options(pad(rows, (0, 3)), pad(attention, (0, 3)), pad(completion, (0, 3)))
    torch.testing.assert_close(padded, embeds, rtol=1e-4, atol=1e-5)


def test_the_last_token_can_be_the_embedding(architecture, tmp_path):
    model, rows = tiny_policy(tmp_path, architecture, option_pooling="last", context_layer=2), tokens(2)
    completion = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]])
    attention = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])
    hidden = model(rows, attention_mask=attention, output_hidden_states=True).hidden_states[2]
    expected = torch.stack([hidden[0, 4], hidden[1, 6]])
    torch.testing.assert_close(model.embed_options(rows, attention, completion), expected)


def test_generate_asks_for_the_logits_of_the_last_token_alone(architecture, tmp_path):
    model, lengths = tiny_policy(tmp_path, architecture), []
    model.lm_head.register_forward_hook(lambda module, args, logits: lengths.append(logits.shape[1]))
    model.generate(tokens(3), max_new_tokens=3, eos_token_id=None)
    assert lengths == [1, 1, 1]


@pytest.mark.parametrize("method", ["forward", "generate"])
@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, LATENT_SIZE), r"`latents` has 2 rows, but this batch has 3"),
        ((1, LATENT_SIZE), r"`latents` has 1 rows.*latents.expand\(3, -1\)"),
        ((3, LATENT_SIZE + 1), rf"`latents` has shape .*takes \(rows, {LATENT_SIZE}\)"),
        ((LATENT_SIZE,), rf"`latents` has shape .*takes \(rows, {LATENT_SIZE}\)"),
    ],
)
def test_latents_of_a_wrong_shape_are_refused(architecture, tmp_path, method, shape, message):
    model = tiny_policy(tmp_path, architecture)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(tokens(3), latents=torch.zeros(shape))


def test_generate_modulates_once_for_all_tokens(architecture, tmp_path):
    model, calls = tiny_policy(tmp_path, architecture), []
    model.model.film.register_forward_hook(lambda *_: calls.append(1))
    context = toy_context(users=3, pairs=4, embed_size=32)
    written = model.generate(tokens(3), context_embeds=context[0], context_mask=context[1], max_new_tokens=6)
    assert len(calls) == 1
    assert torch.equal(written, model.generate(tokens(3), latents=model.infer_latents(*context), max_new_tokens=6))


def test_unknown_arguments_of_generate_are_refused(architecture, tmp_path):
    with pytest.raises(ValueError, match="latent_of_user"):
        tiny_policy(tmp_path, architecture).generate(tokens(1), latent_of_user=users(1))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"film_site": "mlp"},
        {"film_layers": "top"},
        {"film_scaling": "rms"},
        {"option_pooling": "max"},
        {"context_layer": 18},
    ],
)
def test_bad_film_configs_are_named(architecture, kwargs):
    (name, value), *_ = kwargs.items()
    with pytest.raises(Exception, match=f"`{name}={value!r}`"):
        POLICIES[architecture].config_class(num_hidden_layers=18, **kwargs)


def test_plain_weights_log_what_is_new(architecture, tmp_path, transformers_log):
    base = tiny_base(tmp_path, architecture)
    model = POLICIES[architecture].from_pretrained(base, context_config=CONTEXT_CONFIG)
    reported = set(re.findall(r"^([\w.]+) +\|.*MISSING", transformers_log.text, re.M))
    ours = {name for name in model.state_dict() if name.startswith(("model.film.", "model.context_encoder."))}
    assert reported == ours


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "mistral", "qwen2", "qwen3"])
def test_layers_with_a_sliding_window_are_modulated(architecture, tmp_path):
    layer_types = ["full_attention", "sliding_attention", "full_attention"]
    fields = {
        "mistral": {},  # every layer
        "qwen2": {"use_sliding_window": True, "layer_types": layer_types},
        "qwen3": {"use_sliding_window": True, "layer_types": layer_types},
    }
    base = tiny_base(
        tmp_path, architecture, sliding_window=4, **fields.get(architecture, {"layer_types": layer_types})
    )
    model = POLICIES[architecture].from_pretrained(base, context_config=CONTEXT_CONFIG).eval()
    assert model.config.sliding_window == 4
    torch.nn.init.normal_(model.model.film.bias, std=0.2)
    prompt, latents = tokens(1, length=10), users(1)
    kwargs = {"latents": latents, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    written = model.generate(prompt, **kwargs)
    assert torch.equal(written, model.generate(prompt, use_cache=False, **kwargs))
    plain = model(prompt, output_hidden_states=True).hidden_states
    steered = model(prompt, latents=latents, output_hidden_states=True).hidden_states
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(plain[1:], steered[1:], strict=True))


def test_a_model_built_from_its_config_starts_as_the_identity(architecture):
    config = POLICIES[architecture].config_class(
        vocab_size=500, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=4, context_config=CONTEXT_CONFIG,
    )  # fmt: skip
    model = POLICIES[architecture](config).eval()
    assert torch.equal(model(tokens(2) % 500, latents=users(2)).logits, model(tokens(2) % 500).logits)
    torch.testing.assert_close(
        model.model.context_encoder.memory.output.weight, torch.eye(CONTEXT_CONFIG["memory_size"])
    )


def test_every_way_of_generating_writes_for_the_user(tmp_path):
    model, plain = tiny_policy(tmp_path / "policy"), AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path / "base"))
    torch.manual_seed(0)
    latents, ids = torch.randn(1, 12), torch.tensor([[5, 6, 7, 8]])
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}
    expected = model.generate(ids, latents=latents, **settings)
    assert not torch.equal(expected, model.generate(ids, **settings))
    ways = {
        "users": {"users": [latents]},
        "prompt lookup": {"latents": latents, "prompt_lookup_num_tokens": 3},
        "static cache": {"latents": latents, "cache_implementation": "static"},
        "in chunks": {"latents": latents, "prefill_chunk_size": 3},
        "drafts of a plain model": {"latents": latents, "assistant_model": plain},
        "drafts of another policy": {"latents": latents, "assistant_model": tiny_policy(tmp_path / "other")},
        "its own drafts": {"latents": latents, "assistant_early_exit": 1},
    }
    for name, way in ways.items():
        assert torch.equal(model.generate(ids, **settings, **way), expected), name
    with torch.no_grad():
        assert torch.equal(model(ids, users=[latents]).logits, model(ids, latents=latents).logits)


def test_continuous_batching_refuses_users(tmp_path):
    model, latents = tiny_policy(tmp_path), torch.zeros(1, 12)
    for way in (
        lambda: model.generate_batch([[5, 6]], users=[latents], max_new_tokens=1),
        lambda: model.generate_batch([[5, 6]], latents=latents, max_new_tokens=1),
        lambda: model.generate(
            torch.tensor([[5, 6]]), latents=latents, cache_implementation="paged", max_new_tokens=1
        ),
    ):
        with pytest.raises(ValueError, match="would write for nobody"):
            way()


@pytest.mark.parametrize("users", [torch.zeros(1, 12), "ada", {"ada": torch.zeros(1, 12)}])
def test_users_are_a_list_one_a_row(tmp_path, users):
    model = tiny_policy(tmp_path)
    with pytest.raises(ValueError, match="but takes a list"):
        model.generate(torch.tensor([[5, 6]]), users=users, max_new_tokens=1)
    with pytest.raises(ValueError, match="must be a latent of shape"):
        model.generate(torch.tensor([[5, 6]]), users=["ada"], max_new_tokens=1)


def test_users_are_given_once_and_whole(tmp_path):
    model, (context, mask) = tiny_policy(tmp_path), toy_context(users=2, pairs=3, embed_size=32)
    embeds, known = {"context_embeds": context}, {"context_mask": mask}
    film = model.model.infer_modulation(users(2))
    for wrong, match in (
        ({"latents": users(2), **embeds, **known}, "'latents', 'context_embeds'.* says for whom to run"),
        ({"latents": users(2), "users": [users(1), users(1)]}, "'users', 'latents'.* says for whom to run"),
        ({"modulation": film, "latents": users(2)}, "'latents', 'modulation'.* says for whom to run"),
        (embeds, "Pass both `context_embeds` and `context_mask`"),
        (known, "Pass both `context_embeds` and `context_mask`"),
        ({"context_index": torch.arange(2)}, "no users are given beside it"),
        ({"latents": [[0.0]]}, "`latents` is a list.* Pass profiles as `users`"),
    ):
        for method in (model, lambda *args, **kwargs: model.generate(*args, max_new_tokens=1, **kwargs)):
            with pytest.raises(ValueError, match=match):
                method(tokens(2), **wrong)


def test_an_index_says_whose_row_each_one_is(tmp_path):
    model, index = tiny_policy(tmp_path), torch.tensor([1, 0, 1])
    expected = model(tokens(3), latents=users(2)[index]).logits
    assert torch.equal(model(tokens(3), latents=users(2), context_index=index).logits, expected)
    by_users = model(tokens(3), users=list(users(2).split(1)), context_index=index)
    assert torch.equal(by_users.logits, expected)
