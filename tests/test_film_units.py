"""The units of FiLM's shifts."""

import json

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from np_trl import NPDPOTrainer, load_policy
from np_trl.models import FiLMLlamaConfig, FiLMLlamaForCausalLM

from .testing_utils import CONTEXT_CONFIG, dpo_config, style_rows, tiny_base, tiny_tokenizer


TOKENS = torch.arange(3, 15).view(1, 12)


def build(path, base=None, **film_kwargs) -> NPDPOTrainer:
    return NPDPOTrainer(
        tiny_base(path / "base") if base is None else base,
        args=dpo_config(path / "out", film_kwargs={"context_config": CONTEXT_CONFIG, **film_kwargs}),
        train_dataset=style_rows(8),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM"),
    )


@pytest.mark.parametrize("film_site", ["block", "attention"])
def test_units_are_those_of_what_is_modulated(tmp_path, film_site):
    base = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path / "base"))
    with torch.no_grad():  # the outputs of blocks grow by what the second one adds
        base.model.layers[1].mlp.down_proj.weight.mul_(1e4)
        base.model.layers[2].self_attn.o_proj.weight.mul_(50)
    base.save_pretrained(tmp_path / "grown")
    units = [
        build(tmp_path / name, str(tmp_path / name), film_site=film_site).model.config.film_units
        for name in ("base", "grown")
    ]
    growth = [grown / small for small, grown in zip(*units, strict=True)]
    if film_site == "block":
        assert growth[0] == 1 and growth[1] > 5 and growth[2] > 5
    else:  # what comes into attention is normalised
        assert growth[0] == 1 and growth[1] == 1 and growth[2] == pytest.approx(50, rel=0.5)


def test_only_a_new_policy_with_bounded_latents_is_measured(tmp_path):
    assert build(tmp_path / "a", film_scaling="none").model.config.film_units is None
    assert build(tmp_path / "b", film_units=[1.0, 2.0, 3.0]).model.config.film_units == [1.0, 2.0, 3.0]
    trainer = build(tmp_path / "c")
    units = trainer.model.config.film_units
    assert len(units) == 3 and min(units) > 0
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_config.json"
    assert json.loads(file.read_text())["film"]["film_units"] == units
    latents = torch.randn(1, CONTEXT_CONFIG["latent_size"])
    expected = trainer.model.eval()(TOKENS, latents=latents).logits
    trainer.save_merged(tmp_path / "merged")
    for path in ("saved", "merged"):
        policy = load_policy(str(tmp_path / path)).eval()
        torch.testing.assert_close(policy(TOKENS, latents=latents).logits, expected)
    # a policy of before, which had none
    saved = json.loads(file.read_text())
    del saved["film"]["film_units"]
    file.write_text(json.dumps(saved))
    older = load_policy(str(tmp_path / "saved"), is_trainable=True)
    trainer = NPDPOTrainer(
        older, args=dpo_config(tmp_path / "on"), train_dataset=style_rows(8), processing_class=tiny_tokenizer()
    )
    assert trainer.model.config.film_units is None


def test_shifts_are_in_units(tmp_path):
    fields = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 2, "context_config": CONTEXT_CONFIG}
    films = [
        FiLMLlamaForCausalLM(FiLMLlamaConfig(**fields, film_units=units)).model.film for units in (None, [2.0, 3.0])
    ]
    with torch.no_grad():
        films[0].weight.normal_()
        films[0].bias.normal_()
    films[1].load_state_dict(films[0].state_dict())
    latents = torch.randn(3, CONTEXT_CONFIG["latent_size"])
    plain, scaled = (film(latents) for film in films)
    torch.testing.assert_close(scaled[:, :, 0], plain[:, :, 0])
    torch.testing.assert_close(scaled[:, :, 1], plain[:, :, 1] * torch.tensor([2.0, 3.0]).view(1, 2, 1))


@pytest.mark.parametrize("units", [[1.0], [1.0, 0.0], [1.0, float("inf")], [1.0, "2"], 3])
def test_units_are_checked(units):
    with pytest.raises(Exception, match="film_units"):
        FiLMLlamaConfig(num_hidden_layers=2, film_units=units)
