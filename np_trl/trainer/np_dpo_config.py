"""Training arguments of NP-DPO."""

from dataclasses import dataclass, field
from typing import Any

from trl import DPOConfig

from np_trl.trainer.context_config import ContextConfigMixin


@dataclass
class NPDPOConfig(ContextConfigMixin, DPOConfig):
    """
    Configuration of the [`NPDPOTrainer`]: TRL's [`~trl.DPOConfig`], [`ContextConfigMixin`] and these.

    Defaults are the paper's (App. C.2), but for `np_learning_rate`: at the paper's 1e-6 the context encoder and FiLM do
    not learn.

    Args:
        np_learning_rate (`float`, *optional*, defaults to `1e-3`):
            Initial learning rate of the context encoder and of the map from the latent to FiLM or gates. `learning_rate` is that of the language model.
        context_encoder_path (`str`, *optional*):
            A saved [`NPRewardModel`] or policy whose context encoder is the starting point.
        reward_steps (`int`, *optional*, defaults to `0`), reward_learning_rate (`float`, *optional*, defaults to `2e-3`):
            Steps of an NP-BTL reward model on the same embeddings, trained first, whose context encoder is the starting point,
            and its learning rate. None if 0.
        film_kwargs (`dict`, *optional*):
            Fields of [`FiLMConfigMixin`] to set when `model` is a path, such as `{"film_site": "lora"}`.
        embed_batch_size (`int`, *optional*, defaults to `64`):
            Pairs of options that the trunk embeds at once, when the dataset has no embedding columns.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "film_kwargs"]

    np_learning_rate: float = field(
        default=1e-3, metadata={"help": "Initial learning rate of the context encoder and of FiLM."}
    )
    context_encoder_path: str | None = field(
        default=None,
        metadata={"help": "A saved NP-BTL reward model or policy whose context encoder is the starting point."},
    )
    reward_steps: int = field(
        default=0,
        metadata={
            "help": "Steps of NP-BTL on the same embeddings, whose context encoder NP-DPO starts from. 0: none."
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
