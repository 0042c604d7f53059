"""Training arguments of NP-DPO."""

from dataclasses import dataclass, field
from typing import Any

from trl import DPOConfig

from np_trl.trainer.context_config import ContextConfigMixin


@dataclass
class NPDPOConfig(ContextConfigMixin, DPOConfig):
    """
    Configuration of the [`NPDPOTrainer`]: TRL's [`~trl.DPOConfig`], [`ContextConfigMixin`] and these.

    Defaults are for your own data and a pre-trained language model; the paper's (App. C.2) are in its recipes,
    `np_dpo_gemma_hh` and the like. With them, 3 epochs of few users hardly move a policy.

    Args:
        learning_rate (`float`, *optional*):
            Initial learning rate of the language model. If not set, 2e-4 for an adapter and 1e-6 for whole weights.
        np_learning_rate (`float`, *optional*, defaults to `2e-3`):
            Initial learning rate of the context encoder and of the map from the latent to FiLM or gates.
        num_targets (`int`, *optional*, defaults to `4`), max_context (`int`, *optional*, defaults to `10`), context_in_target
            (`bool`, *optional*, defaults to `False`):
            As in [`ContextConfigMixin`]: contexts are as large as in evaluation, and disjoint from the targets.
        context_encoder_path (`str`, *optional*):
            A saved [`NPRewardModel`] or policy whose context encoder is the starting point.
        reward_steps (`int`, *optional*), reward_learning_rate (`float`, *optional*, defaults to `2e-3`):
            Steps of an NP-BTL reward model on the same embeddings, trained first, whose context encoder is the starting point,
            and its learning rate. None if 0. If not set, 400; but none for a stream of tasks, for a policy that has been trained,
            with `context_encoder_path`, or under DeepSpeed or FSDP.
        film_kwargs (`dict`, *optional*):
            Fields of [`FiLMConfigMixin`] to set when `model` is a path, such as `{"film_site": "lora"}`.
        embed_batch_size (`int`, *optional*, defaults to `64`):
            Pairs of options that the trunk embeds at once, when the dataset has no embedding columns.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "film_kwargs"]

    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Initial learning rate of the language model. Default: 2e-4 for an adapter, 1e-6 for whole weights."
        },
    )
    np_learning_rate: float = field(
        default=2e-3, metadata={"help": "Initial learning rate of the context encoder and of FiLM."}
    )
    num_targets: int = field(default=4, metadata={"help": "Number of target pairs N_T of a task."})
    max_context: int = field(default=10, metadata={"help": "Largest number of context pairs N_C of a task."})
    context_in_target: bool = field(
        default=False,
        metadata={"help": "Whether the context set is a part of the target set (True) or disjoint from it (False)."},
    )
    context_encoder_path: str | None = field(
        default=None,
        metadata={"help": "A saved NP-BTL reward model or policy whose context encoder is the starting point."},
    )
    reward_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps of NP-BTL on the same embeddings, whose context encoder NP-DPO starts from. 0: none. Default: 400."
        },
    )
    reward_learning_rate: float = field(default=2e-3, metadata={"help": "Learning rate of that NP-BTL model."})
    film_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Fields of the FiLM config to set when the model is given as a path."}
    )
    embed_batch_size: int = field(
        default=64, metadata={"help": "Pairs of options that the trunk embeds at once, without embedding columns."}
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_at_least("embed_batch_size", 1)
        if self.reward_steps is not None:
            self._check_at_least("reward_steps", 0)
        if not 0 < self.reward_learning_rate < float("inf"):
            raise ValueError(f"`reward_learning_rate={self.reward_learning_rate}` must be positive.")
        if self.reward_steps and self.context_encoder_path is not None:
            raise ValueError(
                f"`reward_steps={self.reward_steps}` and `context_encoder_path={self.context_encoder_path!r}` both say what the "
                "context encoder starts from. Set one of them."
            )
        sorted_losses = [name for name in self.loss_type if name.startswith("aot")]
        if sorted_losses:
            raise ValueError(
                f"`loss_type` {sorted_losses} sorts margins across the batch, which mixes the users in it. Choose a loss of "
                "single pairs, such as 'sigmoid', 'ipo' or 'hinge'."
            )
