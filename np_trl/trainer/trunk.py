"""The trunk: the lower layers of a policy, which embed the users' options and must stay those of the base model."""

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel


def check_trunk(model: nn.Module) -> None:
    """
    Check that nothing in the trunk is trained, so that options are embedded in use as they were in training.

    Raises:
        `ValueError`: if an adapter reaches into it, or a parameter of it is trained.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    context_layer, num_layers = base.config.context_layer, base.config.num_hidden_layers
    for name, module in trunk_modules(base):
        trained = [key for key, parameter in module.named_parameters() if parameter.requires_grad]
        if trained or any(isinstance(part, BaseTunerLayer) for part in module.modules()):
            raise ValueError(
                f"The adapter reaches `{name}`{f' ({trained[0]!r} is trained)' if trained else ''}, but `context_layer="
                f"{context_layer}`: the layers below it embed the users' options and must stay those of the base model. Set "
                f"`layers_to_transform=list(range({context_layer}, {num_layers}))` in `peft_config` and leave out what trains "
                '`embed_tokens` or all layers (`modules_to_save`, `bias="all"`), or lower `context_layer`.'
            )


def freeze_trunk(model: PreTrainedModel) -> None:
    """Freeze the trunk of a policy that is trained without an adapter."""
    for _, module in trunk_modules(model):
        module.requires_grad_(False)


def trunk_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The token embeddings and the layers below `context_layer`, with their names."""
    layers = [(f"layers.{index}", model.model.layers[index]) for index in range(model.config.context_layer)]
    return [("embed_tokens", model.get_input_embeddings()), *layers]
