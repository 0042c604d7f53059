"""Configuration of a Gemma 2 whose layers are modulated by a user's latent."""

from transformers import Gemma2Config
from transformers.configuration_utils import strict

from .configuration_film import FiLMConfigMixin


@strict
class FiLMGemma2Config(FiLMConfigMixin, Gemma2Config):
    """Configuration of a [`FiLMGemma2Model`]: the decoder's own fields and those of [`FiLMConfigMixin`]."""

    model_type = "film_gemma2"
