"""Models. The files beside this one are shared with a pushed model: they import torch, transformers and each other."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_context_encoder import ContextEncoderConfig
from .configuration_film_gemma import FiLMGemmaConfig
from .configuration_film_qwen2 import FiLMQwen2Config
from .configuration_np_reward import NPRewardModelConfig
from .context_encoder import ContextEncoder
from .modeling_film_gemma import FiLMGemmaForCausalLM, FiLMGemmaModel
from .modeling_film_qwen2 import FiLMQwen2ForCausalLM, FiLMQwen2Model
from .modeling_np_reward import NPRewardModel
from .text_embedder import TextEmbedder


__all__ = [
    "ContextEncoder",
    "ContextEncoderConfig",
    "FiLMGemmaConfig",
    "FiLMGemmaForCausalLM",
    "FiLMGemmaModel",
    "FiLMQwen2Config",
    "FiLMQwen2ForCausalLM",
    "FiLMQwen2Model",
    "NPRewardModel",
    "NPRewardModelConfig",
    "TextEmbedder",
]

AutoConfig.register("film_gemma", FiLMGemmaConfig)
AutoConfig.register("film_qwen2", FiLMQwen2Config)
AutoConfig.register("np_reward", NPRewardModelConfig)
AutoModel.register(FiLMGemmaConfig, FiLMGemmaModel)
AutoModel.register(FiLMQwen2Config, FiLMQwen2Model)
AutoModel.register(NPRewardModelConfig, NPRewardModel)
AutoModelForCausalLM.register(FiLMGemmaConfig, FiLMGemmaForCausalLM)
AutoModelForCausalLM.register(FiLMQwen2Config, FiLMQwen2ForCausalLM)

# so that `save_pretrained` copies the code beside the weights
FiLMGemmaConfig.register_for_auto_class("AutoConfig")
FiLMGemmaModel.register_for_auto_class("AutoModel")
FiLMGemmaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
FiLMQwen2Config.register_for_auto_class("AutoConfig")
FiLMQwen2Model.register_for_auto_class("AutoModel")
FiLMQwen2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
NPRewardModelConfig.register_for_auto_class("AutoConfig")
NPRewardModel.register_for_auto_class("AutoModel")
