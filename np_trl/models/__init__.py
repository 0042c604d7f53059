"""Models. The files beside this one are shared with a pushed model: they import torch, transformers and each other."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_context_encoder import ContextEncoderConfig
from .configuration_np_reward import NPRewardModelConfig
from .context_encoder import ContextEncoder
from .film import FiLMForCausalLMMixin

# the decoders that have a FiLM version, one line each
from .modeling_film_gemma import FiLMGemmaConfig, FiLMGemmaForCausalLM, FiLMGemmaModel
from .modeling_film_gemma2 import FiLMGemma2Config, FiLMGemma2ForCausalLM, FiLMGemma2Model
from .modeling_film_gemma3 import FiLMGemma3Config, FiLMGemma3ForCausalLM, FiLMGemma3Model
from .modeling_film_llama import FiLMLlamaConfig, FiLMLlamaForCausalLM, FiLMLlamaModel
from .modeling_film_mistral import FiLMMistralConfig, FiLMMistralForCausalLM, FiLMMistralModel
from .modeling_film_qwen2 import FiLMQwen2Config, FiLMQwen2ForCausalLM, FiLMQwen2Model
from .modeling_film_qwen3 import FiLMQwen3Config, FiLMQwen3ForCausalLM, FiLMQwen3Model
from .modeling_np_reward import NPRewardModel
from .text_embedder import TextEmbedder


# type of a plain decoder -> the policy that is made of it
POLICIES = {policy.config_class.plain_type(): policy for policy in FiLMForCausalLMMixin.__subclasses__()}

__all__ = [
    "POLICIES",
    "ContextEncoder",
    "ContextEncoderConfig",
    "NPRewardModel",
    "NPRewardModelConfig",
    "TextEmbedder",
]

# registered with transformers, and with the auto classes whose code `save_pretrained` copies beside the weights
for policy in POLICIES.values():
    AutoConfig.register(policy.config_class.model_type, policy.config_class)
    AutoModel.register(policy.config_class, policy.model_class)
    AutoModelForCausalLM.register(policy.config_class, policy)
    policy.config_class.register_for_auto_class("AutoConfig")
    policy.model_class.register_for_auto_class("AutoModel")
    policy.register_for_auto_class("AutoModelForCausalLM")
    __all__ += [policy.config_class.__name__, policy.model_class.__name__, policy.__name__]

AutoConfig.register("np_reward", NPRewardModelConfig)
AutoModel.register(NPRewardModelConfig, NPRewardModel)
NPRewardModelConfig.register_for_auto_class("AutoConfig")
NPRewardModel.register_for_auto_class("AutoModel")
