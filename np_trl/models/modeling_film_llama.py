"""Llama with FiLM: the mixins of `film.py` on the classes of transformers."""

from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from .configuration_film_llama import FiLMLlamaConfig
from .film import FiLMAttentionMixin, FiLMDecoderLayerMixin, FiLMForCausalLMMixin, FiLMModelMixin


class FiLMLlamaAttention(FiLMAttentionMixin, LlamaAttention):
    pass


class FiLMLlamaDecoderLayer(FiLMDecoderLayerMixin, LlamaDecoderLayer):
    attention_class = FiLMLlamaAttention


class FiLMLlamaModel(FiLMModelMixin, LlamaModel):
    """Llama's backbone, modulated by a latent in every layer: [`FiLMModelMixin`]."""

    config_class = FiLMLlamaConfig
    layer_class = FiLMLlamaDecoderLayer
    _no_split_modules = ["FiLMLlamaDecoderLayer"]


class FiLMLlamaForCausalLM(FiLMForCausalLMMixin, LlamaForCausalLM):
    """Llama that writes for a user: [`FiLMForCausalLMMixin`]."""

    config_class = FiLMLlamaConfig
    model_class = FiLMLlamaModel
    _no_split_modules = ["FiLMLlamaDecoderLayer"]
