"""The reference policy of a policy, for questions that are asked while others are written for."""

import copy
from types import MethodType

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel


REFERENCE_ADAPTER = "ref"  # TRL's name of the copy of an adapter that training was resumed from


def reference_policy(policy: PreTrainedModel | PeftModel) -> nn.Module:
    """
    The policy that a policy was trained against, to be run without users: of an adapter its base, or, where training was
    resumed from a saved adapter, that adapter. Of a merged policy, whose base is no longer there, it is the policy itself; so
    it is of a reward model, which needs none.

    PEFT switches adapters off for everyone who runs the model at that moment. So what is returned shares the weights of the
    policy, but no switch: threads that write for users at the same time do not notice.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy.

    Raises:
        `ValueError`: if the adapter is merged into the weights for the moment.
    """
    if not isinstance(policy, PeftModel):
        return policy
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in policy.modules()):
        raise ValueError(
            "The adapter is merged into the weights (`merge_adapter`), so the reference policy is not there. Call "
            "`unmerge_adapter` first."
        )
    tensors = [*policy.parameters(), *policy.buffers()]
    reference = copy.deepcopy(policy, {id(tensor): tensor for tensor in tensors})
    for module in reference.modules():
        if isinstance(vars(module).get("forward"), MethodType):  # TRL's fused head, which runs the policy itself
            del module.forward
    if REFERENCE_ADAPTER in reference.peft_config:
        reference.base_model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
    else:
        reference.base_model.disable_adapter_layers()
    return reference
