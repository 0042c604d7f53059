"""
Time per token of generation for a batch that mixes users, against the base model without latents; and the time to infer
a user from ten embedded choices, at the size of the demo's policy, against one forward pass of it for one token.

What is compared alternates in one process; the figure is the median of paired ratios.

```sh
python examples/benchmarks/generation.py
```
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import yaml
from report import report
from transformers import AutoConfig

from np_trl.models import FiLMGemmaConfig, FiLMGemmaForCausalLM


BATCH, PROMPT, NEW_TOKENS, LATENT, CHOICES = 8, 16, 64, 256, 10
DEMO = Path(__file__).parents[1]


def build_model() -> FiLMGemmaForCausalLM:
    torch.manual_seed(0)
    config = FiLMGemmaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        context_config={"latent_size": LATENT},
    )
    model = FiLMGemmaForCausalLM(config).eval()
    torch.nn.init.normal_(model.model.film.weight, std=0.01)
    return model


def seconds_per_token(model: FiLMGemmaForCausalLM, inputs: torch.Tensor, **users) -> float:
    start = time.perf_counter()
    model.generate(inputs, **users, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    return (time.perf_counter() - start) / NEW_TOKENS


def build_demo() -> FiLMGemmaForCausalLM:
    """The demo's policy before its training."""
    torch.manual_seed(0)
    film_kwargs = yaml.safe_load((DEMO / "configs" / "np_dpo_style.yaml").read_text())["film_kwargs"]
    base = DEMO / "style_gemma"
    film_kwargs["context_config"]["embed_size"] = AutoConfig.from_pretrained(base).hidden_size
    return FiLMGemmaForCausalLM.from_pretrained(base, **film_kwargs).eval()


@torch.no_grad()
def seconds(function, *args, repeats: int = 20, **kwargs) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function(*args, **kwargs)
    return (time.perf_counter() - start) / repeats


def time_inference(num_rounds: int) -> dict[str, float]:
    """Infer one user's latent, and one user's modulation of every layer."""
    model = build_demo()
    embeds = torch.randn(1, CHOICES, 2, model.config.context_config.embed_size)
    mask, token = torch.ones(1, CHOICES, dtype=torch.bool), torch.tensor([[5]])
    users = {"context_embeds": embeds, "context_mask": mask}
    times = [
        (
            seconds(model.infer_latents, **users),
            seconds(model.model.infer_modulation, **users),
            seconds(model, token, use_cache=False),
        )
        for _ in range(num_rounds + 1)
    ][1:]  # the first is a warm-up
    return {
        "inferring a user, median ms": 1e3 * statistics.median(latent for latent, _, _ in times),
        "with the modulation, median ms": 1e3 * statistics.median(film for _, film, _ in times),
        "demo's forward pass, median ms a token": 1e3 * statistics.median(forward for _, _, forward in times),
        "inferring to a forward pass": statistics.median(latent / forward for latent, _, forward in times),
    }


def time_generation(num_rounds: int) -> dict[str, float]:
    model = build_model()
    inputs, latents = torch.randint(3, 4096, (BATCH, PROMPT)), torch.randn(BATCH, LATENT)
    times = [
        (seconds_per_token(model, inputs, latents=latents), seconds_per_token(model, inputs))
        for _ in range(num_rounds + 1)
    ][1:]  # the first is a warm-up
    return {
        "with latents, median ms a token": 1e3 * statistics.median(ours for ours, _ in times),
        "base model, median ms a token": 1e3 * statistics.median(base for _, base in times),
        "ratio, median of paired rounds": statistics.median(ours / base for ours, base in times),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_rounds", type=int, default=9)
    arguments = parser.parse_args()
    figures = {**time_generation(arguments.num_rounds), **time_inference(arguments.num_rounds)}
    report("generation", figures, seed=0)
