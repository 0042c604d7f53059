"""Mistral with FiLM: the mixins of `film.py` on the classes of transformers."""

from transformers import MistralForCausalLM, MistralModel
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralDecoderLayer

from .configuration_film_mistral import FiLMMistralConfig
from .film import FiLMAttentionMixin, FiLMDecoderLayerMixin, FiLMForCausalLMMixin, FiLMModelMixin


class FiLMMistralAttention(FiLMAttentionMixin, MistralAttention):
    pass


class FiLMMistralDecoderLayer(FiLMDecoderLayerMixin, MistralDecoderLayer):
    attention_class = FiLMMistralAttention


class FiLMMistralModel(FiLMModelMixin, MistralModel):
    """Mistral's backbone, modulated by a latent in every layer: [`FiLMModelMixin`]."""

    config_class = FiLMMistralConfig
    layer_class = FiLMMistralDecoderLayer
    _no_split_modules = ["FiLMMistralDecoderLayer"]


class FiLMMistralForCausalLM(FiLMForCausalLMMixin, MistralForCausalLM):
    """Mistral that writes for a user: [`FiLMForCausalLMMixin`]."""

    config_class = FiLMMistralConfig
    model_class = FiLMMistralModel
    _no_split_modules = ["FiLMMistralDecoderLayer"]
