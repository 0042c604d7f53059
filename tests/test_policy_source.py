"""What is taken out of TRL's hands is handed back: one source, one seed, and arguments that stay unchanged."""

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GemmaForCausalLM

from np_trl import NPDPOTrainer, NPRewardModel, NPRewardTrainer, load_policy

from .testing_utils import (
    CONTEXT_CONFIG,
    dpo_config,
    embedded_rows,
    losses,
    reward_config,
    style_rows,
    tiny_base,
    tiny_policy,
    tiny_tokenizer,
    with_embeddings,
)


LORA = {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1, 2]}


def build(base, path, peft_config=None, **kwargs) -> NPDPOTrainer:
    return NPDPOTrainer(
        base,
        args=dpo_config(path, **kwargs),
        train_dataset=style_rows(4),
        processing_class=tiny_tokenizer(),
        peft_config=peft_config,
    )


def test_policy_reference_and_tokenizer_come_from_one_folder_in_one_precision(tmp_path):
    other = tiny_base(tmp_path / "repository")
    inner = tiny_base(tmp_path / "repository" / "inner", hidden_size=16, head_dim=4)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<inner>"])
    tokenizer.save_pretrained(inner)
    args = dpo_config(tmp_path / "out", model_init_kwargs={"subfolder": "inner", "dtype": "bfloat16"})
    before = copy.deepcopy(vars(args))
    trainers = [NPDPOTrainer(Path(other), args=args, train_dataset=style_rows(4)) for _ in range(2)]
    for trainer in trainers:
        assert trainer.model.config.hidden_size == trainer.ref_model.config.hidden_size == 16
        assert trainer.model.dtype == trainer.ref_model.dtype == torch.bfloat16
        assert type(trainer.ref_model) is GemmaForCausalLM  # which knows no users
        assert "<inner>" in trainer.processing_class.get_vocab()
    assert vars(args)["model_init_kwargs"] == before["model_init_kwargs"]
    assert vars(args)["film_kwargs"] == before["film_kwargs"]
    weights = [dict(trainer.model.named_parameters()) for trainer in trainers]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_the_seed_reaches_every_new_weight(tmp_path):
    base = tiny_base(tmp_path / "base")

    def start(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.seed())  # whatever ran before
        model = build(base, tmp_path / "out", LoraConfig(**LORA), seed=seed).model
        return {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    # others start at zero or one, or as an identity
    drawn = [name for name in first if name.endswith("weight") and "encoder.input" in name or "lora_A" in name]
    assert drawn and not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_the_old_name_of_the_dtype_is_honoured(tmp_path, dtype):
    base = tiny_base(tmp_path / "base")
    assert load_policy(base, torch_dtype=dtype).dtype == torch.bfloat16
    trainer = build(base, tmp_path / "out", model_init_kwargs={"torch_dtype": dtype})
    assert trainer.model.dtype == trainer.ref_model.dtype == torch.bfloat16


def test_two_quantisations_are_refused(tmp_path):
    config = BitsAndBytesConfig(load_in_4bit=True)
    args = dpo_config(tmp_path / "out", model_init_kwargs={"quantization_config": config})
    with pytest.raises(ValueError, match="Pass it once, to the trainer"):
        NPDPOTrainer(tiny_base(tmp_path / "base"), args=args, train_dataset=style_rows(4), quantization_config=config)


def test_quantisers_leave_the_context_encoder_and_film_alone(tmp_path):
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    model = load_policy(tiny_base(tmp_path / "base"))
    for part in (model, model.model):
        kept = HfQuantizer.get_modules_to_not_convert(part, ["lm_head"], part._keep_in_fp32_modules)
        names = [name for name, module in part.named_modules() if isinstance(module, torch.nn.Linear)]
        ours = [name for name in names if "context_encoder" in name]
        assert ours and not any(should_convert_module(name, kept) for name in ours)
        assert should_convert_module(next(name for name in names if name.endswith("q_proj")), kept)


@pytest.mark.parametrize("source", ["trunk", "columns"])
def test_an_adapter_without_targets_gets_those_of_the_base_architecture(tmp_path, source):
    from peft import get_peft_model

    base = tiny_base(tmp_path / "base")
    expected = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig()).peft_config["default"]
    rows, given = style_rows(4), LoraConfig()
    rows = with_embeddings(rows) if source == "columns" else rows
    args = dpo_config(tmp_path / "out")
    for model in (base, load_policy(base, film_kwargs=None) if source == "trunk" else base):
        trainer = NPDPOTrainer(
            model, args=args, train_dataset=rows, processing_class=tiny_tokenizer(), peft_config=given
        )
        adapter = trainer.model.peft_config["default"]
        assert set(adapter.target_modules) == set(expected.target_modules) == {"q_proj", "v_proj"}
        layers = {int(name.split("layers.")[1][0]) for name, _ in trainer.model.named_parameters() if "lora_A" in name}
        assert layers == ({1, 2} if source == "trunk" else {0, 1, 2})
    assert given.target_modules is None and given.modules_to_save is None


def test_what_trains_the_trunk_is_refused(tmp_path):
    base = tiny_base(tmp_path / "base", "qwen2")
    for more in ({"modules_to_save": ["embed_tokens"]}, {"bias": "all"}, {"modules_to_save": ["norm"]}):
        with pytest.raises(ValueError, match="The adapter reaches .* is trained.*`context_layer=1`"):
            build(base, tmp_path / "out", LoraConfig(**LORA, **more))
    trainer = build(base, tmp_path / "out", LoraConfig(**LORA), learning_rate=1e-1)
    row = trainer.train_dataset[0]
    trainer.train()
    pair = {key: row[key] for key in ("prompt", "chosen", "rejected")}
    now = trainer.model.eval().embed_pairs([pair], tiny_tokenizer())[0, 0, 0]
    torch.testing.assert_close(now, torch.tensor(row["chosen_embeds"]), rtol=1e-4, atol=1e-5)


def test_a_loaded_adapter_is_trained_further_when_that_is_asked_for(tmp_path):
    base = tiny_base(tmp_path / "base")
    trainer = build(base, tmp_path / "out", LoraConfig(**LORA))
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"`load_policy\(path, is_trainable=True\)`"):
        build(load_policy(tmp_path / "adapter"), tmp_path / "out").train()
    further = build(load_policy(tmp_path / "adapter", is_trainable=True), tmp_path / "out")
    further.train()
    named = dict(further.model.named_parameters())
    loaded = dict(load_policy(tmp_path / "adapter").named_parameters())
    lora = [name for name in loaded if "lora_B" in name]
    # the reference is the adapter that it started from, which stays
    assert all(torch.equal(named[name.replace("default", "ref")], loaded[name]) for name in lora)
    assert not any(torch.equal(named[name], loaded[name]) for name in lora)


def test_cached_reference_log_probs_are_those_of_the_same_tokens(tmp_path):
    rows = style_rows(4)
    rows.save_to_disk(tmp_path / "rows")

    def reference(name: str = "base", **kwargs) -> list[float]:
        from datasets import load_from_disk

        trainer = NPDPOTrainer(
            str(tmp_path / name),
            args=dpo_config(tmp_path / "out", precompute_ref_log_probs=True, **kwargs),
            train_dataset=load_from_disk(tmp_path / "rows"),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(**LORA),
        )
        return trainer.train_dataset["ref_chosen_logps"][:]

    tiny_base(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    model.model.norm.weight.data.add_(1.0)
    model.save_pretrained(tmp_path / "other")
    kinds = [{}, {"max_length": 35}, {"max_length": 35, "truncation_mode": "keep_end"}, {"name": "other"}]
    first = [reference(**kind) for kind in kinds]
    assert len({tuple(values) for values in first}) == len(kinds)
    os.utime(tmp_path / "rows")
    assert [reference(**kind) for kind in kinds] == first


def test_columns_of_another_run_are_not_trusted_by_their_name(tmp_path):
    rows = style_rows(4)
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        rows = rows.add_column(column, [-50.0 * (column == "ref_chosen_logps")] * len(rows))
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        rows = rows.add_column(column, [[5, 6]] * len(rows))
    rows = rows.add_column("context", ["a text"] * len(rows))
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out"),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.693147, abs=1e-4)
    assert len(trainer.train_dataset[0]["prompt_ids"]) > 2
    evaluated = trainer.evaluate(trainer.eval_dataset)  # what the trainer has prepared itself
    assert evaluated["eval_nc2_accuracy"] == trainer.evaluate()["eval_nc2_accuracy"]


@pytest.mark.parametrize("path", ["none/such/folder", "./none", "", "a name"])
def test_a_path_that_is_not_there_is_named(tmp_path, path):
    base = tiny_base(tmp_path / "base")
    for load in (
        load_policy,
        NPRewardModel.from_pretrained,
        lambda path: NPRewardTrainer(path, args=reward_config(tmp_path / "out"), train_dataset=embedded_rows()),
        lambda path: build(path, tmp_path / "out"),
        lambda path: build(base, tmp_path / "out", LoraConfig(**LORA), context_encoder_path=path),
    ):
        with pytest.raises(OSError, match=f"There is no folder '{path}', and no model on the Hub can have that name"):
            load(path)


def test_what_is_no_path_is_named(tmp_path):
    for path in (None, 3):
        with pytest.raises(TypeError, match=f"The path of a model is {path}"):
            load_policy(path)
    with pytest.raises(TypeError, match="`ref_model` is a str, but must be a model"):
        NPDPOTrainer(
            tiny_base(tmp_path / "base"), "ref", args=dpo_config(tmp_path / "out"), train_dataset=style_rows(4)
        )


def test_an_adapter_knows_the_subfolder_of_its_base(tmp_path):
    tiny_base(tmp_path / "repository" / "inner")
    build(
        tmp_path / "repository", tmp_path / "out", LoraConfig(**LORA), model_init_kwargs={"subfolder": "inner"}
    ).save_model(tmp_path / "adapter")
    load_policy(tmp_path / "adapter").save_pretrained(tmp_path / "again")
    assert load_policy(tmp_path / "again").config.num_hidden_layers == 3
    (tmp_path / "repository").rename(tmp_path / "moved")
    with pytest.raises(OSError, match="It is the base of the adapter in .*: say where it is by `base_model`"):
        load_policy(tmp_path / "again")
    with pytest.raises(OSError, match="holds an adapter, not a model. Load it with `np_trl.load_policy`"):
        build(tmp_path / "again", tmp_path / "out")


def test_fields_of_the_configuration_are_taken_as_transformers_takes_them(tmp_path):
    base = tiny_base(tmp_path / "base")
    trainer = build(base, tmp_path / "out", model_init_kwargs={"attention_dropout": 0.25})
    assert trainer.model.config.attention_dropout == trainer.ref_model.config.attention_dropout == 0.25
    for name in ("config", "film_site"):
        with pytest.raises(ValueError, match=f"{name}.* among the arguments of `from_pretrained`"):
            build(base, tmp_path / "out", model_init_kwargs={name: "attention"})


def test_a_policy_is_not_trained_further_as_another_one(tmp_path, caplog):
    tiny_policy(tmp_path / "base").save_pretrained(tmp_path / "policy")
    other = {"context_config": CONTEXT_CONFIG, "film_site": "attention"}
    with pytest.raises(ValueError, match="is a policy already, and `film_kwargs` would change .*'block', 'attention'"):
        build(tmp_path / "policy", tmp_path / "out", film_kwargs=other)
    build(load_policy(tmp_path / "policy"), tmp_path / "out", film_kwargs=other)
    assert "`film_kwargs` is ignored" in caplog.text
    assert build(tmp_path / "policy", tmp_path / "out").model.config.film_site == "block"


def test_adapters_that_could_not_be_saved_with_film_are_refused_before_training(tmp_path):
    base = tiny_base(tmp_path / "base")
    for adapter in (
        PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
        LoraConfig(**LORA, layer_replication=[[0, 2], [1, 3]]),
    ):
        with pytest.raises(ValueError, match="FiLM and the context encoder cannot be saved with a prompt"):
            build(base, tmp_path / "out", adapter)
