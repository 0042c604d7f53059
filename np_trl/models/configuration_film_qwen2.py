"""Configuration of a Qwen2 whose layers are modulated by a user's latent."""

from transformers import Qwen2Config
from transformers.configuration_utils import strict

from .configuration_film import FiLMConfigMixin


@strict
class FiLMQwen2Config(FiLMConfigMixin, Qwen2Config):
    """Configuration of a [`FiLMQwen2Model`]: the decoder's own fields and those of [`FiLMConfigMixin`]."""

    model_type = "film_qwen2"
