"""Gemma with FiLM: the mixins of `film.py` on the classes of transformers (App. C.2.2 of the paper)."""

from transformers import GemmaForCausalLM, GemmaModel
from transformers.models.gemma.modeling_gemma import GemmaAttention, GemmaDecoderLayer

from .configuration_film_gemma import FiLMGemmaConfig
from .film import FiLMAttentionMixin, FiLMDecoderLayerMixin, FiLMForCausalLMMixin, FiLMModelMixin


class FiLMGemmaAttention(FiLMAttentionMixin, GemmaAttention):
    pass


class FiLMGemmaDecoderLayer(FiLMDecoderLayerMixin, GemmaDecoderLayer):
    attention_class = FiLMGemmaAttention


class FiLMGemmaModel(FiLMModelMixin, GemmaModel):
    """Gemma's backbone, modulated by a latent in every layer: [`FiLMModelMixin`]."""

    config_class = FiLMGemmaConfig
    layer_class = FiLMGemmaDecoderLayer
    _no_split_modules = ["FiLMGemmaDecoderLayer"]


class FiLMGemmaForCausalLM(FiLMForCausalLMMixin, GemmaForCausalLM):
    """Gemma that writes for a user: [`FiLMForCausalLMMixin`]."""

    config_class = FiLMGemmaConfig
    model_class = FiLMGemmaModel
    _no_split_modules = ["FiLMGemmaDecoderLayer"]
