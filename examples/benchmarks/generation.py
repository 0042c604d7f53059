"""
Time per token of generation for a batch that mixes users, against the base model without latents.

The two alternate in one process; the figure is the median of paired ratios.

```sh
python examples/benchmarks/generation.py
```
"""

import argparse
import statistics
import time

import torch
from report import report

from np_trl import FiLMGemmaConfig, FiLMGemmaForCausalLM


BATCH, PROMPT, NEW_TOKENS, LATENT = 8, 16, 64, 256


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_rounds", type=int, default=9)
    arguments = parser.parse_args()
    model = build_model()
    inputs, latents = torch.randint(3, 4096, (BATCH, PROMPT)), torch.randn(BATCH, LATENT)
    times = [
        (seconds_per_token(model, inputs, latents=latents), seconds_per_token(model, inputs))
        for _ in range(arguments.num_rounds + 1)
    ][1:]  # the first is a warm-up
    figures = {
        "with latents, median ms a token": 1e3 * statistics.median(ours for ours, _ in times),
        "base model, median ms a token": 1e3 * statistics.median(base for _, base in times),
        "ratio, median of paired rounds": statistics.median(ours / base for ours, base in times),
    }
    report("generation", figures, seed=0)
