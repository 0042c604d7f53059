"""Configuration of a Gemma whose layers are modulated by a user's latent."""

from huggingface_hub.dataclasses import strict
from transformers import GemmaConfig

from .configuration_film import FiLMConfigMixin


@strict
class FiLMGemmaConfig(FiLMConfigMixin, GemmaConfig):
    """Configuration of a [`FiLMGemmaModel`]: Gemma's own fields and those of [`FiLMConfigMixin`]."""

    model_type = "film_gemma"
    film_auto_map = {
        "AutoConfig": "configuration_film_gemma.FiLMGemmaConfig",
        "AutoModel": "modeling_film_gemma.FiLMGemmaModel",
        "AutoModelForCausalLM": "modeling_film_gemma.FiLMGemmaForCausalLM",
    }
