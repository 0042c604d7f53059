"""Gemma 2 with FiLM: the mixins of `film.py` on the classes of transformers."""

from transformers import Gemma2ForCausalLM, Gemma2Model
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2DecoderLayer

from .configuration_film_gemma2 import FiLMGemma2Config
from .film import FiLMAttentionMixin, FiLMDecoderLayerMixin, FiLMForCausalLMMixin, FiLMModelMixin


class FiLMGemma2Attention(FiLMAttentionMixin, Gemma2Attention):
    pass


class FiLMGemma2DecoderLayer(FiLMDecoderLayerMixin, Gemma2DecoderLayer):
    attention_class = FiLMGemma2Attention


class FiLMGemma2Model(FiLMModelMixin, Gemma2Model):
    """Gemma 2's backbone, modulated by a latent in every layer: [`FiLMModelMixin`]."""

    config_class = FiLMGemma2Config
    layer_class = FiLMGemma2DecoderLayer
    _no_split_modules = ["FiLMGemma2DecoderLayer"]


class FiLMGemma2ForCausalLM(FiLMForCausalLMMixin, Gemma2ForCausalLM):
    """Gemma 2 that writes for a user: [`FiLMForCausalLMMixin`]."""

    config_class = FiLMGemma2Config
    model_class = FiLMGemma2Model
    _no_split_modules = ["FiLMGemma2DecoderLayer"]
