"""Models. The files beside this one are shared with a pushed model: they import torch, transformers and each other."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_context_encoder import ContextEncoderConfig
from .configuration_film_gemma import FiLMGemmaConfig
from .configuration_np_reward import NPRewardModelConfig
from .context_encoder import ContextEncoder
from .modeling_film_gemma import FiLMGemmaForCausalLM, FiLMGemmaModel
from .modeling_np_reward import NPRewardModel
from .text_embedder import TextEmbedder


__all__ = [
    "ContextEncoder",
    "ContextEncoderConfig",
    "FiLMGemmaConfig",
    "FiLMGemmaForCausalLM",
    "FiLMGemmaModel",
    "NPRewardModel",
    "NPRewardModelConfig",
    "TextEmbedder",
]

AutoConfig.register("film_gemma", FiLMGemmaConfig)
AutoConfig.register("np_reward", NPRewardModelConfig)
AutoModel.register(FiLMGemmaConfig, FiLMGemmaModel)
AutoModel.register(NPRewardModelConfig, NPRewardModel)
AutoModelForCausalLM.register(FiLMGemmaConfig, FiLMGemmaForCausalLM)

# so that `save_pretrained` copies the code beside the weights
FiLMGemmaConfig.register_for_auto_class("AutoConfig")
FiLMGemmaModel.register_for_auto_class("AutoModel")
FiLMGemmaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
NPRewardModelConfig.register_for_auto_class("AutoConfig")
NPRewardModel.register_for_auto_class("AutoModel")
