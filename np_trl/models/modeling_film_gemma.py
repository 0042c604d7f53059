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
    """
    Gemma's backbone, modulated by a latent in every layer. See [`FiLMModelMixin`] for its arguments.

    Args:
        config ([`FiLMGemmaConfig`]):
            Sizes and variant.
    """

    config_class = FiLMGemmaConfig
    layer_class = FiLMGemmaDecoderLayer
    _no_split_modules = ["FiLMGemmaDecoderLayer"]


class FiLMGemmaForCausalLM(FiLMForCausalLMMixin, GemmaForCausalLM):
    """
    Gemma that writes for a user: `model.generate(**inputs, latents=latents)` with one latent a row.

    Args:
        config ([`FiLMGemmaConfig`]):
            Sizes and variant.

    Example:
    ```python
    >>> context_embeds = model.embed_pairs(pairs, tokenizer)  # (1, C, 2, E)
    >>> latents = model.infer_latents(context_embeds, torch.ones(context_embeds.shape[:2]))  # (1, Z)
    >>> model.generate(**tokenizer("How do I fix the bike?", return_tensors="pt"), latents=latents)
    ```
    """

    config_class = FiLMGemmaConfig
    model_class = FiLMGemmaModel
    _no_split_modules = ["FiLMGemmaDecoderLayer"]
