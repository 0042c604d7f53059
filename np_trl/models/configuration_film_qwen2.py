"""Configuration of a Qwen2 whose layers are modulated by a user's latent."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config

from .configuration_film import FiLMConfigMixin


@strict
class FiLMQwen2Config(FiLMConfigMixin, Qwen2Config):
    """Configuration of a [`FiLMQwen2Model`]: Qwen2's own fields and those of [`FiLMConfigMixin`]."""

    model_type = "film_qwen2"
    film_auto_map = {
        "AutoConfig": "configuration_film_qwen2.FiLMQwen2Config",
        "AutoModel": "modeling_film_qwen2.FiLMQwen2Model",
        "AutoModelForCausalLM": "modeling_film_qwen2.FiLMQwen2ForCausalLM",
    }
