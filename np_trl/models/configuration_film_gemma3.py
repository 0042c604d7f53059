"""Configuration of a Gemma 3 (text) whose layers are modulated by a user's latent."""

from transformers import Gemma3TextConfig
from transformers.configuration_utils import strict

from .configuration_film import FiLMConfigMixin


@strict
class FiLMGemma3Config(FiLMConfigMixin, Gemma3TextConfig):
    """Configuration of a [`FiLMGemma3Model`]: the decoder's own fields and those of [`FiLMConfigMixin`]."""

    model_type = "film_gemma3"
