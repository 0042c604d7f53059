"""Configuration of a Mistral whose layers are modulated by a user's latent."""

from transformers import MistralConfig
from transformers.configuration_utils import strict

from .configuration_film import FiLMConfigMixin


@strict
class FiLMMistralConfig(FiLMConfigMixin, MistralConfig):
    """Configuration of a [`FiLMMistralModel`]: the decoder's own fields and those of [`FiLMConfigMixin`]."""

    model_type = "film_mistral"
