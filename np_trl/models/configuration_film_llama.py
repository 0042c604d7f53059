"""Configuration of a Llama whose layers are modulated by a user's latent."""

from transformers import LlamaConfig
from transformers.configuration_utils import strict

from .configuration_film import FiLMConfigMixin


@strict
class FiLMLlamaConfig(FiLMConfigMixin, LlamaConfig):
    """Configuration of a [`FiLMLlamaModel`]: the decoder's own fields and those of [`FiLMConfigMixin`]."""

    model_type = "film_llama"
