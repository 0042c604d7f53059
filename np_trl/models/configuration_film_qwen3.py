"""Configuration of a Qwen3 whose layers are modulated by a user's latent."""

from transformers import Qwen3Config
from transformers.configuration_utils import strict

from .configuration_film import FiLMConfigMixin


@strict
class FiLMQwen3Config(FiLMConfigMixin, Qwen3Config):
    """Configuration of a [`FiLMQwen3Model`]: the decoder's own fields and those of [`FiLMConfigMixin`]."""

    model_type = "film_qwen3"
