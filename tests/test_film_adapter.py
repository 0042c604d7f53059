"""Adapters with FiLM: saved so that nothing is lost, loaded onto their own base alone."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from np_trl import NPDPOTrainer, load_policy
from np_trl.models import FiLMGemmaForCausalLM
from np_trl.models.checkpoint_format import FORMAT_VERSION
from np_trl.models.configuration_film import LATER_FIELDS
from np_trl.trainer import film_adapter
from np_trl.trainer.adapter_file import LATER_RECORDS
from np_trl.trainer.film_adapter import FiLMPeftModel
from np_trl.trainer.policy import POLICIES, np_parameters
from np_trl.weight_identity import hash_base_weights

from .testing_utils import (
    BASES,
    CONTEXT_CONFIG,
    dpo_config,
    style_rows,
    tiny_base,
    tiny_policy,
    tiny_tokenizer,
    with_embeddings,
)


USERS = {"latents": torch.randn(2, CONTEXT_CONFIG["latent_size"], generator=torch.Generator().manual_seed(0))}
TOKENS = torch.arange(3, 17).view(2, 7)


def lora(**kwargs) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1, 2], init_lora_weights=False, **kwargs)


@pytest.fixture
def trainer(tmp_path) -> NPDPOTrainer:
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out"),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    trainer.save_model(tmp_path / "adapter")
    return trainer


def edit(path, name: str, **fields) -> None:
    file = path / "adapter_config.json"
    config = json.loads(file.read_text())
    config[name] = {**config[name], **fields}
    file.write_text(json.dumps(config))


def randomise(path) -> None:
    """Replace the base by one of the same shapes and other weights."""
    torch.manual_seed(7)
    base = BASES["gemma"].from_pretrained(path)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    base.save_pretrained(path)


def test_the_model_itself_saves_what_the_trainer_saves(trainer, tmp_path, transformers_log):
    transformers_log.clear()
    assert type(trainer.model) is FiLMPeftModel and trainer.model.peft_config["default"].task_type == "CAUSAL_LM"
    trainer.model.save_pretrained(tmp_path / "directly")
    expected, actual = (
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("adapter", "directly")
    )
    assert actual == expected and "adapter with FiLM" in actual["peft_type"]
    policy = load_policy(str(tmp_path / "directly")).eval()
    assert type(policy) is FiLMPeftModel and isinstance(policy.get_base_model(), FiLMGemmaForCausalLM)
    logits = trainer.model.eval()(TOKENS, **USERS).logits
    assert torch.equal(policy(TOKENS, **USERS).logits, logits)
    assert "MISSING" not in transformers_log.text  # FiLM comes with the adapter
    policy.save_pretrained(tmp_path / "again")  # and what was loaded saves it too
    assert torch.equal(load_policy(str(tmp_path / "again")).eval()(TOKENS, **USERS).logits, logits)


def test_a_base_with_other_weights_is_refused(trainer, tmp_path):
    randomise(tmp_path / "base")
    with pytest.raises(
        ValueError, match=r"other weights than .* has: 5 of 5 parts differ.*as `base_model`, with `base_revision`"
    ):
        load_policy(str(tmp_path / "adapter"))


def test_a_base_that_was_trained_further_is_refused(trainer, tmp_path):
    base = BASES["gemma"].from_pretrained(tmp_path / "base")
    base.model.layers[2].mlp.up_proj.weight.data *= 1.05
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"1 of 5 parts differ, such as \['layers.2'\]"):
        load_policy(str(tmp_path / "adapter"))


@pytest.mark.parametrize("kwargs", [{"architecture": "llama"}, {"architecture": "qwen2"}, {"hidden_size": 48}])
def test_a_base_of_another_kind_is_refused(trainer, tmp_path, kwargs):
    other = tiny_base(tmp_path / "other", **kwargs)
    with pytest.raises(ValueError, match="parts differ|takes a"):
        load_policy(str(tmp_path / "adapter"), base_model=other)


def test_a_base_that_moved_is_given_by_hand(trainer, tmp_path):
    shutil.move(tmp_path / "base", tmp_path / "moved")
    policy = load_policy(str(tmp_path / "adapter"), base_model=str(tmp_path / "moved")).eval()
    assert torch.equal(policy(TOKENS, **USERS).logits, trainer.model.eval()(TOKENS, **USERS).logits)


@pytest.mark.parametrize("architecture", BASES)
def test_hashes_see_weights_and_neither_precision_nor_adapters(tmp_path, architecture):
    model = tiny_policy(tmp_path, architecture)
    hashes = hash_base_weights(model)
    assert hashes.keys() == {"embed_tokens", "layers.0", "layers.1", "layers.2", "norm"}
    assert len(set(hashes.values())) == len(hashes)
    assert hash_base_weights(model.to(torch.bfloat16)) == hashes
    assert set(hash_base_weights(model.to(torch.float16)).values()) == {None}  # rounds once more
    model = type(model).from_pretrained(tmp_path, context_config=CONTEXT_CONFIG)
    adapted = get_peft_model(model, lora(modules_to_save=["context_encoder", "film", "embed_tokens"]))
    assert hash_base_weights(adapted.get_base_model(), adapted.peft_config) == hashes


def test_adapters_that_are_not_whole_are_refused(trainer, tmp_path):
    path = tmp_path / "adapter"
    file = path / "adapter_model.safetensors"
    content, weights = file.read_bytes(), load_file(file)
    file.write_bytes(content[:-100])
    with pytest.raises(OSError, match="The weights of the adapter .* are not whole"):
        load_policy(str(path))
    save_file({name: weight for name, weight in weights.items() if "film" not in name}, file)
    with pytest.raises(ValueError, match="lacks weights .*film.*would be random"):
        load_policy(str(path))
    save_file({name: weight for name, weight in weights.items() if "layers.2" not in name}, file)
    with pytest.raises(ValueError, match="lacks weights .*layers.2.*lora_A"):
        load_policy(str(path))
    save_file({**weights, "base_model.model.model.context_encoder.second_set": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="second_set.*would be lost"):
        load_policy(str(path))
    file.unlink()
    torch.save(weights, path / "adapter_model.bin")
    with pytest.raises(OSError, match="has no `adapter_model.safetensors`.*pickles, which can run code"):
        load_policy(str(path))


def test_adapters_of_unknown_film_are_refused(trainer, tmp_path):
    path = tmp_path / "adapter"
    edit(path, "film", format_version=FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match=f"this code reads up to {FORMAT_VERSION}"):
        load_policy(str(path))
    trainer.save_model(path)
    config = json.loads((path / "adapter_config.json").read_text())
    del config["film"]["context_config"]
    (path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"says nothing of \['context_config'\]"):
        load_policy(str(path))


def test_policies_from_before_a_field_are_still_read(tmp_path):
    film_kwargs = {"film_scaling": LATER_FIELDS["film_scaling"], "context_config": CONTEXT_CONFIG}
    trainer = train(tiny_base(tmp_path / "base"), tmp_path / "out", lora(), film_kwargs=film_kwargs)
    torch.nn.init.normal_(np_parameters(trainer.model)["base_model.model.model.film.modules_to_save.default.weight"])
    logits = trainer.model.eval()(TOKENS, **USERS).logits
    trainer.save_model(tmp_path / "adapter")
    trainer.save_merged(tmp_path / "merged")
    for file, part in (("adapter/adapter_config.json", "film"), ("merged/config.json", None)):
        config = json.loads((tmp_path / file).read_text())
        for field in LATER_FIELDS:
            del (config if part is None else config[part])[field]
        (tmp_path / file).write_text(json.dumps(config))
        policy = load_policy(str((tmp_path / file).parent)).eval()
        torch.testing.assert_close(policy(TOKENS, **USERS).logits, logits, rtol=1e-4, atol=1e-5)


def test_an_adapter_keeps_that_its_latents_are_bounded(tmp_path):
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", film_kwargs={"film_scaling": "bounded", "context_config": CONTEXT_CONFIG}),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    )
    torch.nn.init.normal_(np_parameters(trainer.model)["base_model.model.model.film.modules_to_save.default.weight"])
    logits = trainer.model.eval()(TOKENS, **USERS).logits
    trainer.save_model(tmp_path / "adapter")
    trainer.save_merged(tmp_path / "merged")
    for name in ("adapter", "merged"):
        policy = load_policy(str(tmp_path / name)).eval()
        assert policy.config.film_scaling == "bounded"
        torch.testing.assert_close(policy(TOKENS, **USERS).logits, logits, rtol=1e-4, atol=1e-5)


def test_a_folder_as_base_is_warned_of_before_a_push(trainer, monkeypatch, caplog):
    pushed = []
    monkeypatch.setattr(PeftModel, "push_to_hub", lambda self, *args, **kwargs: pushed.append(args))
    trainer.model.push_to_hub("user/adapter")
    assert pushed == [("user/adapter",)] and "which nobody else has. Push the merged policy instead" in caplog.text


def test_an_adapter_without_a_task_is_refused(tmp_path):
    model = get_peft_model(tiny_policy(tmp_path / "base"), lora(modules_to_save=["context_encoder", "film"]))
    with pytest.raises(ValueError, match='its adapter has `task_type=None`. Create it with `task_type="CAUSAL_LM"`'):
        NPDPOTrainer(
            model, args=dpo_config(tmp_path / "out"), train_dataset=style_rows(), processing_class=tiny_tokenizer()
        )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"bias": "all"},
        {"use_dora": True},
        {"modules_to_save": ["embed_tokens"]},
    ],
    ids=lambda kwargs: next(iter(kwargs)) + str(next(iter(kwargs.values()))),
)
def test_adapters_that_change_the_base_come_back_on_it(tmp_path, kwargs):
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base", "qwen2"),
        args=dpo_config(tmp_path / "out"),
        train_dataset=with_embeddings(style_rows(), embed_size=32),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], **kwargs),
    )
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    loaded = load_policy(str(tmp_path / "adapter")).eval()
    logits = trainer.model.eval()(TOKENS, **USERS).logits
    torch.testing.assert_close(loaded(TOKENS, **USERS).logits, logits, rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        load_policy(str(tmp_path / "again")).eval()(TOKENS, **USERS).logits, logits, rtol=1e-4, atol=1e-4
    )


def test_a_head_with_weights_of_its_own_is_compared(tmp_path):
    base = tiny_base(tmp_path / "base", "llama", tie_word_embeddings=False)
    model = POLICIES["llama"].from_pretrained(base, context_config=CONTEXT_CONFIG)
    hashes = hash_base_weights(model)
    torch.nn.init.normal_(model.lm_head.weight)
    other = hash_base_weights(model)
    assert {part for part in hashes if hashes[part] != other[part]} == {"lm_head"}


def test_a_base_that_computes_otherwise_or_cannot_be_compared_is_warned_of(trainer, tmp_path, caplog):
    load_policy(str(tmp_path / "adapter"))
    assert not [record for record in caplog.records if record.name.startswith("np_trl")]  # correct is silent
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    load_policy(str(tmp_path / "adapter"), dtype=torch.float16)
    assert "5 of 5 parts of" in caplog.text and "cannot be compared" in caplog.text
    assert "another ['rms_norm_eps'] in its configuration" in caplog.text


def test_a_policy_in_a_subfolder_is_loaded_with_its_own_config(trainer, tmp_path):
    shutil.copytree(tmp_path / "adapter", tmp_path / "several" / "adapter")
    for name, film_site in (("", "block"), ("second", "attention")):
        tiny_policy(tmp_path / "base", film_site=film_site).save_pretrained(tmp_path / "several" / name)
    assert load_policy(str(tmp_path / "several")).config.film_site == "block"
    second = load_policy(str(tmp_path / "several"), subfolder="second").eval()
    assert second.config.film_site == "attention"
    expected = load_policy(str(tmp_path / "several" / "second")).eval()
    assert torch.equal(second(TOKENS, **USERS).logits, expected(TOKENS, **USERS).logits)
    tiny_base(tmp_path / "base")
    adapter = load_policy(str(tmp_path / "several"), subfolder="adapter")
    assert type(adapter) is FiLMPeftModel


def test_pickles_are_not_saved(trainer, tmp_path):
    with pytest.raises(ValueError, match="`safe_serialization=False`, but weights are read from safetensors alone"):
        trainer.model.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    assert not (tmp_path / "pickle").exists()


def test_an_adapter_stays_when_it_is_merged(trainer, tmp_path):
    with pytest.raises(ValueError, match="holds an adapter, and whoever loads it would get that"):
        trainer.save_merged(str(tmp_path / "adapter"))
    logits = trainer.model.eval()(TOKENS, **USERS).logits
    trainer.save_merged(str(tmp_path / "merged"))
    trainer.save_model(tmp_path / "late")
    assert torch.equal(load_policy(str(tmp_path / "late")).eval()(TOKENS, **USERS).logits, logits)


def train(base, out, peft_config=None, tokenizer=None, **kwargs) -> NPDPOTrainer:
    trainer = NPDPOTrainer(
        base,
        args=dpo_config(out, **kwargs),
        train_dataset=style_rows(8),
        processing_class=tiny_tokenizer() if tokenizer is None else tokenizer,
        peft_config=peft_config,
    )
    trainer.train()
    return trainer


class Stopped(Exception):
    """What stops a process."""


def stop(*args):
    raise Stopped


def stop_at(monkeypatch, call: int) -> None:
    """Stop the process at one of the moves by which an adapter gets its place."""
    calls = []

    def replace(*args):
        calls.append(args)
        if len(calls) > call:
            raise Stopped
        shutil.move(*args)

    monkeypatch.setattr(film_adapter.os, "replace", replace)


def test_film_above_the_trunk_comes_back_with_its_adapter(tmp_path):
    film_kwargs = {"film_layers": "above_trunk", "context_layer": 1, "context_config": CONTEXT_CONFIG}
    trainer = train(tiny_base(tmp_path / "base"), tmp_path / "out", lora(), film_kwargs=film_kwargs)
    trainer.save_model()
    policy = load_policy(tmp_path / "out").eval()
    assert policy.config.film_layers == "above_trunk"
    logits = trainer.model.eval()(TOKENS, **USERS).logits
    assert torch.equal(policy(TOKENS, **USERS).logits, logits)
    assert not torch.equal(logits, policy(TOKENS).logits)
    trainer.save_merged(tmp_path / "merged")
    merged = load_policy(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(TOKENS, **USERS).logits, logits, rtol=1e-4, atol=1e-5)
    for field, value in {"film_layers": "all", "context_layer": 2}.items():  # other sizes than the weights have
        trainer.save_model()
        edit(tmp_path / "out", "film", **{field: value})
        with pytest.raises(ValueError, match="does not fit|film_units"):
            load_policy(tmp_path / "out")


@pytest.mark.parametrize("is_new", [True, False])
def test_an_adapter_that_is_not_saved_to_its_end_is_never_taken_for_a_plain_one(
    trainer, tmp_path, monkeypatch, is_new
):
    folder = tmp_path / ("new" if is_new else "adapter")
    for name in ("model.layers.1.self_attn.q_proj.lora_B.default", "model.film.modules_to_save.default"):
        torch.nn.init.normal_(dict(trainer.model.base_model.model.named_parameters())[f"{name}.weight"])
    with monkeypatch.context() as patch:
        patch.setattr(FiLMPeftModel, "_mark", stop)
        with pytest.raises(Stopped):
            trainer.model.save_pretrained(folder)
    for call in (None, 0, 1):
        if call is not None:
            with monkeypatch.context() as patch:
                stop_at(patch, call)
                with pytest.raises(Stopped):
                    trainer.model.save_pretrained(folder)
        with pytest.raises((KeyError, ValueError), match="adapter_config.json|adapter with FiLM: load it with np_trl"):
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(folder))
        if call is None and not is_new:
            load_policy(str(folder))  # what was there before
        else:
            with pytest.raises(OSError, match="holds neither an adapter .* it was not saved to its end"):
                load_policy(str(folder))
    trainer.model.save_pretrained(folder)
    logits = trainer.model.eval()(TOKENS, **USERS).logits
    assert torch.equal(load_policy(str(folder)).eval()(TOKENS, **USERS).logits, logits)
    assert not list(folder.glob(".np_trl_*"))


def test_weights_of_another_save_are_found_out(trainer, tmp_path):
    torch.nn.init.normal_(
        dict(trainer.model.named_parameters())["base_model.model.model.film.modules_to_save.default.weight"]
    )
    trainer.save_model(tmp_path / "later")
    shutil.copy(tmp_path / "later" / "adapter_model.safetensors", tmp_path / "adapter")
    with pytest.raises(OSError, match="not those that its `adapter_config.json` was saved with"):
        load_policy(str(tmp_path / "adapter"))
    content = bytearray((tmp_path / "later" / "adapter_model.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "later" / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(OSError, match="was replaced or damaged"):
        load_policy(str(tmp_path / "later"))


def test_an_adapter_ends_where_it_was_trained_to(tmp_path, caplog):
    base = tiny_base(tmp_path / "base", "qwen2", eos_token_id=3, pad_token_id=None, bos_token_id=None)
    trainer = train(base, tmp_path / "out", lora())
    assert tiny_tokenizer().eos_token_id == 1
    trainer.model.generation_config.repetition_penalty = 1.5
    trainer.save_model(tmp_path / "adapter")
    caplog.clear()
    loaded = load_policy(str(tmp_path / "adapter"))
    assert not [record for record in caplog.records if record.name.startswith("np_trl")]  # of a pad token, for one
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        assert getattr(loaded.config, name) == getattr(trainer.model.config, name)
    assert loaded.generation_config.to_dict() == trainer.model.generation_config.to_dict()
    assert 1 in loaded.generation_config.eos_token_id and loaded.generation_config.repetition_penalty == 1.5


@pytest.mark.parametrize("architecture, is_tied", [("gemma", True), ("llama", False)])
def test_added_tokens_come_back(tmp_path, architecture, is_tied):
    base = tiny_base(tmp_path / "base", architecture, tie_word_embeddings=is_tied)
    policy = POLICIES[architecture].from_pretrained(base, context_config=CONTEXT_CONFIG)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<u1>", "<u2>"])
    policy.resize_token_embeddings(len(tokenizer))
    trainer = train(policy, tmp_path / "out", lora(), tokenizer)
    trainer.save_model(tmp_path / "adapter")
    tokens = torch.tensor([[5, 6, len(tokenizer) - 1]])
    logits = trainer.model.eval()(tokens).logits
    assert torch.equal(load_policy(str(tmp_path / "adapter")).eval()(tokens).logits, logits)
    randomise(tmp_path / "base") if is_tied else shutil.rmtree(tmp_path / "base")
    with pytest.raises((ValueError, OSError), match="4 of 5 parts differ|There is no folder"):
        load_policy(str(tmp_path / "adapter"))


def test_the_reference_of_an_adapter_that_was_trained_further_goes_with_it(tmp_path):
    film = {"context_config": CONTEXT_CONFIG, "film_site": "lora"}
    first = train(tiny_base(tmp_path / "base"), tmp_path / "out", lora(), film_kwargs=film)
    first.save_model(tmp_path / "first")
    start = load_policy(str(tmp_path / "first")).eval()(TOKENS).logits
    for name in ("second", "third"):  # the third time there is a reference already, which makes way
        policy = load_policy(str(tmp_path / "first"))
        policy.set_adapter("default")
        trainer = train(policy, tmp_path / "out", learning_rate=1e-1)
        trainer.save_model(tmp_path / name)
        loaded = load_policy(str(tmp_path / name)).eval()
        assert loaded.active_adapter == "default" and not any(weight.requires_grad for weight in loaded.parameters())
        assert torch.equal(loaded(TOKENS, **USERS).logits, trainer.model.eval()(TOKENS, **USERS).logits)
        assert not torch.equal(loaded(TOKENS).logits, start)
        loaded.set_adapter("ref")
        assert torch.equal(loaded(TOKENS).logits, start)
        loaded.save_pretrained(tmp_path / "first")  # with its reference
        start = load_policy(str(tmp_path / "first")).eval()(TOKENS).logits
    first.save_model(tmp_path / "third")  # in the folder of an earlier run, whose reference is none of this one's
    assert list(load_policy(str(tmp_path / "third")).peft_config) == ["default"]


RECORDS = {
    "format_version": ["9", None, 1.0, True],
    "base_weights": [None, {}, [], {"norm": 5}],
    "base_config": [None, [1]],
    "peft_type": [None, 5, "NOTHING", "PROMPT_TUNING", "XLORA"],
    "film_site": ["evil", None],
    "film_layers": ["evil", None],
    "film_scaling": ["evil", None],
    "film_units": [[1.0], "x"],
    "num_gates": ["x"],
    "context_layer": [10**9, "1", None],
    "context_config": ["x", {"latent_size": 10**9}, {"latent_size": "x"}, {"embed_size": 32, "hidden_size": 10**10}],
    "dpo_beta": ["x", None],
    "generation_config": [None, [1]],
    "tokens": [None, {"eos_token_id": "x"}, {"hidden_size": 5}],
    "reference": ["../other", 5],
    "base_dtypes": ["torch.float16"],
}


def test_records_that_no_adapter_has_are_refused(trainer, tmp_path):
    file = tmp_path / "adapter" / "adapter_config.json"
    saved = json.loads(file.read_text())
    for field, values in RECORDS.items():
        for value in values:
            file.write_text(json.dumps({**saved, "film": {**saved["film"], field: value}}))
            with pytest.raises(ValueError, match=field if value not in ("PROMPT_TUNING", "XLORA") else value):
                load_policy(str(tmp_path / "adapter"))
    for fields in (
        {"r": "4"},
        {"r": 10**9},
        {"r": None},
        {"lora_alpha": "x"},
        {"rank_pattern": {"q_proj": 10**9}},
        {"film": [1]},
    ):
        file.write_text(json.dumps({**saved, **fields}))
        with pytest.raises(ValueError, match=next(iter(fields))):
            load_policy(str(tmp_path / "adapter"))
    for content in ("", "[]", '{"film"', "[" * 100_000, "null"):
        file.write_text(content)
        with pytest.raises(ValueError, match="`adapter_config.json` in .*adapter'"):
            load_policy(str(tmp_path / "adapter"))


def test_weights_that_no_adapter_has_are_refused(trainer, tmp_path):
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    edits = {
        "NaN or infinite values": lambda weight: weight * torch.nan,
        "torch.int8": lambda weight: weight.to(torch.int8),
        "torch.complex64": lambda weight: weight.to(torch.complex64),
        "has the shape": lambda weight: weight.new_zeros(3),
    }
    for message, edit in edits.items():
        for part in ("film.weight", "context_encoder.empty_set", "layers.2.self_attn.q_proj.lora_B"):
            save_file({name: edit(weight) if part in name else weight for name, weight in weights.items()}, file)
            expected = "does not fit" if (message, part[:6]) == ("has the shape", "layers") else message
            with pytest.raises(ValueError, match=expected):
                load_policy(str(tmp_path / "adapter"))


def test_a_base_that_nobody_can_compare_is_warned_of_where_it_could_not_be(trainer, tmp_path, caplog):
    none = dict.fromkeys(hash_base_weights(trainer.model.get_base_model(), ["default"]))
    edit(tmp_path / "adapter", "film", base_weights=none)
    with pytest.raises(ValueError, match=r"no hash of its base's weights, though they were \['torch.float32'\]"):
        load_policy(str(tmp_path / "adapter"))
    edit(tmp_path / "adapter", "film", base_dtypes=["torch.float16"])
    load_policy(str(tmp_path / "adapter"))
    assert "5 of 5 parts of" in caplog.text


def test_adapters_of_np_trl_0_1_are_still_read(trainer, tmp_path, caplog):
    logits = trainer.model.eval()(TOKENS, **USERS).logits
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    for field in LATER_RECORDS:
        del config["film"][field]
    config["film"]["base_config"] |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 7}
    file.write_text(json.dumps(config))
    assert torch.equal(load_policy(str(tmp_path / "adapter")).eval()(TOKENS, **USERS).logits, logits)
    assert not [record for record in caplog.records if record.name.startswith("np_trl")]


@pytest.mark.parametrize("film_site", ["block", "lora"])
def test_no_user_is_forgotten_beside_other_adapters(tmp_path, film_site):
    model = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", film_kwargs={"context_config": CONTEXT_CONFIG, "film_site": film_site}),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=lora(),
    ).model.eval()
    torch.nn.init.normal_(model.get_base_model().model.film.modules_to_save["default"].weight, std=0.3)
    ours = lora(task_type="CAUSAL_LM", modules_to_save=["film", "context_encoder"])
    for name, config in {"second": ours, "plain": lora(task_type="CAUSAL_LM")}.items():
        model.add_adapter(name, config)
    torch.nn.init.normal_(model.get_base_model().model.film.modules_to_save["second"].weight, std=0.3)
    expected = model(TOKENS, **USERS).logits
    with pytest.raises(ValueError, match="`adapter_names=.* choose the adapter by `set_adapter`"):
        model.generate(input_ids=TOKENS, adapter_names=["default"] * 2, max_new_tokens=1, **USERS)
    assert torch.equal(model(TOKENS, **USERS).logits, expected)  # no hook was left behind
    context = {"context_embeds": torch.randn(2, 3, 2, 32), "context_mask": torch.ones(2, 3, dtype=torch.bool)}
    model.set_adapter("plain")
    for method in (lambda: model(TOKENS, **USERS), lambda: model.infer_latents(**context)):
        with pytest.raises(ValueError, match="the adapter that is on knows none"):
            method()
    model.set_adapter("second")
    assert not torch.equal(model(TOKENS, **USERS).logits, model(TOKENS).logits)
    model.set_adapter("default")
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6)
    model.save_pretrained(tmp_path / "adapters")
    loaded = load_policy(tmp_path / "adapters")
    assert torch.equal(loaded(TOKENS, **USERS).logits, expected)
    assert loaded.generation_config.temperature == 0.6
    with pytest.raises(ValueError, match="holds no FiLM"):
        load_policy(tmp_path / "adapters", subfolder="plain")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert type(PeftModel.from_pretrained(base, tmp_path / "adapters" / "plain")) is not FiLMPeftModel
