"""FiLM on Qwen2: what is its own, and training. The laws that it shares with Gemma are in `test_film.py`."""

import pytest
import torch
from peft import LoraConfig
from transformers import Qwen2ForCausalLM

from np_trl import FiLMQwen2ForCausalLM, NPDPOTrainer, load_policy

from .testing_utils import CONTEXT_CONFIG, dpo_config, losses, style_rows, tiny_qwen2, tiny_tokenizer


def test_lora_training_starts_at_log_2_and_the_adapter_comes_back(tmp_path):
    trainer = NPDPOTrainer(
        tiny_qwen2(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", max_steps=4),
        train_dataset=style_rows(),
        eval_dataset=style_rows(num_users=8, seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[1, 2]),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert isinstance(trainer.model.get_base_model(), FiLMQwen2ForCausalLM)
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
        plain = Qwen2ForCausalLM.from_pretrained(tmp_path / "base").eval()
        assert torch.equal(loaded(tokens).logits, plain(tokens).logits)


def test_layers_of_both_attention_types_are_modulated(tmp_path):
    base = tiny_qwen2(tmp_path, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    model = FiLMQwen2ForCausalLM.from_pretrained(base, context_config=CONTEXT_CONFIG).eval()
    assert model.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    torch.nn.init.normal_(model.model.film.bias, std=0.2)
    prompt, latents = torch.arange(3, 13).unsqueeze(0), torch.zeros(1, CONTEXT_CONFIG["latent_size"])
    kwargs = {"latents": latents, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    written = model.generate(prompt, **kwargs)
    assert torch.equal(written, model.generate(prompt, use_cache=False, **kwargs))
    plain = model(prompt, output_hidden_states=True).hidden_states
    steered = model(prompt, latents=latents, output_hidden_states=True).hidden_states
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(plain[1:], steered[1:], strict=True))
