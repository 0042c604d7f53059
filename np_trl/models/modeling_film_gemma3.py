"""Gemma 3 (text) with FiLM: the mixins of `film.py` on the classes of transformers."""

from transformers import Gemma3ForCausalLM, Gemma3TextModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention, Gemma3DecoderLayer

from .configuration_film_gemma3 import FiLMGemma3Config
from .film import FiLMAttentionMixin, FiLMDecoderLayerMixin, FiLMForCausalLMMixin, FiLMModelMixin


class FiLMGemma3Attention(FiLMAttentionMixin, Gemma3Attention):
    pass


class FiLMGemma3DecoderLayer(FiLMDecoderLayerMixin, Gemma3DecoderLayer):
    attention_class = FiLMGemma3Attention


class FiLMGemma3Model(FiLMModelMixin, Gemma3TextModel):
    """Gemma 3 (text)'s backbone, modulated by a latent in every layer: [`FiLMModelMixin`]."""

    config_class = FiLMGemma3Config
    layer_class = FiLMGemma3DecoderLayer
    _no_split_modules = ["FiLMGemma3DecoderLayer"]


class FiLMGemma3ForCausalLM(FiLMForCausalLMMixin, Gemma3ForCausalLM):
    """Gemma 3 (text) that writes for a user: [`FiLMForCausalLMMixin`]."""

    config_class = FiLMGemma3Config
    model_class = FiLMGemma3Model
    _no_split_modules = ["FiLMGemma3DecoderLayer"]
