"""Qwen2 with FiLM: the mixins of `film.py` on the classes of transformers, as the released code of the paper has it."""

from transformers import Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer

from .configuration_film_qwen2 import FiLMQwen2Config
from .film import FiLMAttentionMixin, FiLMDecoderLayerMixin, FiLMForCausalLMMixin, FiLMModelMixin


class FiLMQwen2Attention(FiLMAttentionMixin, Qwen2Attention):
    pass


class FiLMQwen2DecoderLayer(FiLMDecoderLayerMixin, Qwen2DecoderLayer):
    attention_class = FiLMQwen2Attention


class FiLMQwen2Model(FiLMModelMixin, Qwen2Model):
    """Qwen2's backbone, modulated by a latent in every layer: [`FiLMModelMixin`]."""

    config_class = FiLMQwen2Config
    layer_class = FiLMQwen2DecoderLayer
    _no_split_modules = ["FiLMQwen2DecoderLayer"]


class FiLMQwen2ForCausalLM(FiLMForCausalLMMixin, Qwen2ForCausalLM):
    """Qwen2 that writes for a user: [`FiLMForCausalLMMixin`]."""

    config_class = FiLMQwen2Config
    model_class = FiLMQwen2Model
    _no_split_modules = ["FiLMQwen2DecoderLayer"]
