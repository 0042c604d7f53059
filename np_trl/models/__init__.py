"""Models. The files beside this one are shared with a pushed model: they import torch, transformers and each other."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_context_encoder import ContextEncoderConfig
from .configuration_film import FiLMConfigMixin
from .configuration_np_reward import NPRewardModelConfig
from .context_encoder import ContextEncoder
from .film import FiLMForCausalLMMixin

# the decoders, one a line: `POLICIES`, `__all__` and the registration with transformers follow from these lines
from .modeling_film_gemma import FiLMGemmaConfig, FiLMGemmaForCausalLM, FiLMGemmaModel
from .modeling_film_gemma2 import FiLMGemma2Config, FiLMGemma2ForCausalLM, FiLMGemma2Model
from .modeling_film_gemma3 import FiLMGemma3Config, FiLMGemma3ForCausalLM, FiLMGemma3Model
from .modeling_film_llama import FiLMLlamaConfig, FiLMLlamaForCausalLM, FiLMLlamaModel
from .modeling_film_mistral import FiLMMistralConfig, FiLMMistralForCausalLM, FiLMMistralModel
from .modeling_film_qwen2 import FiLMQwen2Config, FiLMQwen2ForCausalLM, FiLMQwen2Model
from .modeling_film_qwen3 import FiLMQwen3Config, FiLMQwen3ForCausalLM, FiLMQwen3Model
from .modeling_np_reward import NPRewardModel
from .text_embedder import TextEmbedder


# type of a base model -> the same with FiLM
POLICIES = {
    super(FiLMConfigMixin, policy.config_class).model_type: policy for policy in FiLMForCausalLMMixin.__subclasses__()
}

__all__ = [
    "POLICIES",
    "ContextEncoder",
    "ContextEncoderConfig",
    "NPRewardModel",
    "NPRewardModelConfig",
    "TextEmbedder",
]

# registered with transformers, and with the auto classes whose code `save_pretrained` copies beside the weights
for causal_lm in POLICIES.values():
    config, backbone = causal_lm.config_class, causal_lm.model_class
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, backbone)
    AutoModelForCausalLM.register(config, causal_lm)
    config.register_for_auto_class("AutoConfig")
    backbone.register_for_auto_class("AutoModel")
    causal_lm.register_for_auto_class("AutoModelForCausalLM")
    __all__ += [model_class.__name__ for model_class in (config, backbone, causal_lm)]

AutoConfig.register("np_reward", NPRewardModelConfig)
AutoModel.register(NPRewardModelConfig, NPRewardModel)
NPRewardModelConfig.register_for_auto_class("AutoConfig")
NPRewardModel.register_for_auto_class("AutoModel")
