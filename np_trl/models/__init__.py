"""Models. The files beside this one are shared with a pushed model: they import torch, transformers and each other."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_context_encoder import ContextEncoderConfig
from .configuration_film_gemma import FiLMGemmaConfig
from .configuration_film_gemma2 import FiLMGemma2Config
from .configuration_film_gemma3 import FiLMGemma3Config
from .configuration_film_llama import FiLMLlamaConfig
from .configuration_film_mistral import FiLMMistralConfig
from .configuration_film_qwen2 import FiLMQwen2Config
from .configuration_film_qwen3 import FiLMQwen3Config
from .configuration_np_reward import NPRewardModelConfig
from .context_encoder import ContextEncoder
from .modeling_film_gemma import FiLMGemmaForCausalLM, FiLMGemmaModel
from .modeling_film_gemma2 import FiLMGemma2ForCausalLM, FiLMGemma2Model
from .modeling_film_gemma3 import FiLMGemma3ForCausalLM, FiLMGemma3Model
from .modeling_film_llama import FiLMLlamaForCausalLM, FiLMLlamaModel
from .modeling_film_mistral import FiLMMistralForCausalLM, FiLMMistralModel
from .modeling_film_qwen2 import FiLMQwen2ForCausalLM, FiLMQwen2Model
from .modeling_film_qwen3 import FiLMQwen3ForCausalLM, FiLMQwen3Model
from .modeling_np_reward import NPRewardModel
from .text_embedder import TextEmbedder


__all__ = [
    "ContextEncoder",
    "ContextEncoderConfig",
    "FiLMGemma2Config",
    "FiLMGemma2ForCausalLM",
    "FiLMGemma2Model",
    "FiLMGemma3Config",
    "FiLMGemma3ForCausalLM",
    "FiLMGemma3Model",
    "FiLMGemmaConfig",
    "FiLMGemmaForCausalLM",
    "FiLMGemmaModel",
    "FiLMLlamaConfig",
    "FiLMLlamaForCausalLM",
    "FiLMLlamaModel",
    "FiLMMistralConfig",
    "FiLMMistralForCausalLM",
    "FiLMMistralModel",
    "FiLMQwen2Config",
    "FiLMQwen2ForCausalLM",
    "FiLMQwen2Model",
    "FiLMQwen3Config",
    "FiLMQwen3ForCausalLM",
    "FiLMQwen3Model",
    "NPRewardModel",
    "NPRewardModelConfig",
    "TextEmbedder",
]

# registered with transformers, and with the auto classes whose code `save_pretrained` copies beside the weights
for config, backbone, causal_lm in (
    (FiLMGemmaConfig, FiLMGemmaModel, FiLMGemmaForCausalLM),
    (FiLMGemma2Config, FiLMGemma2Model, FiLMGemma2ForCausalLM),
    (FiLMGemma3Config, FiLMGemma3Model, FiLMGemma3ForCausalLM),
    (FiLMLlamaConfig, FiLMLlamaModel, FiLMLlamaForCausalLM),
    (FiLMMistralConfig, FiLMMistralModel, FiLMMistralForCausalLM),
    (FiLMQwen2Config, FiLMQwen2Model, FiLMQwen2ForCausalLM),
    (FiLMQwen3Config, FiLMQwen3Model, FiLMQwen3ForCausalLM),
):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, backbone)
    AutoModelForCausalLM.register(config, causal_lm)
    config.register_for_auto_class("AutoConfig")
    backbone.register_for_auto_class("AutoModel")
    causal_lm.register_for_auto_class("AutoModelForCausalLM")

AutoConfig.register("np_reward", NPRewardModelConfig)
AutoModel.register(NPRewardModelConfig, NPRewardModel)
NPRewardModelConfig.register_for_auto_class("AutoConfig")
NPRewardModel.register_for_auto_class("AutoModel")
