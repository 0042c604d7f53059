"""The units of FiLM's shifts: how large the outputs are that it modulates."""

from contextlib import ExitStack

import torch
from torch import nn

from np_trl.models.modulation import FiLM


def set_film_units(model: nn.Module) -> None:
    """
    Measure the units of a policy that is about to be trained from its base model, where its latents are bounded.

    A shift of hidden states is small or large beside them, and they grow with the layers of a pre-trained decoder: in
    SmolLM2-135M their standard deviation is 1 after the first block and 16 after the last. Random tokens tell as much.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy, with its weights gathered. One that has units, or whose FiLM has been trained, stays as it is.
    """
    films = [module for module in model.modules() if isinstance(module, FiLM)]
    config = model.config
    is_new = config.film_units is None and not any(weight.any() for film in films for weight in film.parameters())
    if films and is_new and config.is_film_bounded:
        config.film_units = _measure(model)
        for film in films:
            film.units = config.film_units


@torch.no_grad()
def _measure(model: nn.Module, num_rows: int = 4, length: int = 64) -> list[float]:
    """Of what is modulated in each layer, the standard deviation over tokens: the median over its dimensions."""
    config, outputs = model.config, []
    layers = [module for module in model.modules() if getattr(module, "film_index", -1) >= 0]

    def keep(module, args, output) -> None:
        states = output[0] if isinstance(output, tuple) else output  # (B, T, H)
        outputs.append(states[:, 1:].float())  # not those of the first token, which are far from all others

    input_ids = torch.randint(config.vocab_size, (num_rows, length), generator=torch.Generator().manual_seed(0))
    was_training = model.training
    model.eval()
    with ExitStack() as stack:
        for layer in layers:
            hook = config.modulation.find_site(layer).register_forward_hook(keep)
            stack.callback(hook.remove)
        model(input_ids=input_ids.to(model.device), use_cache=False)
    model.train(was_training)
    units = [states.flatten(0, 1).std(dim=0).median().item() for states in outputs]
    return [float(f"{unit:.2g}") or 1.0 for unit in units]  # not what depends on the order of sums
