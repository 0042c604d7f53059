"""Configuration of a Gemma whose layers are modulated by a user's latent."""

from transformers import GemmaConfig
from transformers.configuration_utils import strict

from .configuration_film import FiLMConfigMixin


@strict
class FiLMGemmaConfig(FiLMConfigMixin, GemmaConfig):
    """Configuration of a [`FiLMGemmaModel`]: the decoder's own fields and those of [`FiLMConfigMixin`]."""

    model_type = "film_gemma"
