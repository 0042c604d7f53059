"""Qwen3 with FiLM: the mixins of `film.py` on the classes of transformers."""

from transformers import Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer

from .configuration_film_qwen3 import FiLMQwen3Config
from .film import FiLMAttentionMixin, FiLMDecoderLayerMixin, FiLMForCausalLMMixin, FiLMModelMixin


class FiLMQwen3Attention(FiLMAttentionMixin, Qwen3Attention):
    pass


class FiLMQwen3DecoderLayer(FiLMDecoderLayerMixin, Qwen3DecoderLayer):
    attention_class = FiLMQwen3Attention


class FiLMQwen3Model(FiLMModelMixin, Qwen3Model):
    """Qwen3's backbone, modulated by a latent in every layer: [`FiLMModelMixin`]."""

    config_class = FiLMQwen3Config
    layer_class = FiLMQwen3DecoderLayer
    _no_split_modules = ["FiLMQwen3DecoderLayer"]


class FiLMQwen3ForCausalLM(FiLMForCausalLMMixin, Qwen3ForCausalLM):
    """Qwen3 that writes for a user: [`FiLMForCausalLMMixin`]."""

    config_class = FiLMQwen3Config
    model_class = FiLMQwen3Model
    _no_split_modules = ["FiLMQwen3DecoderLayer"]
