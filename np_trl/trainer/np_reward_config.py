"""Training arguments of NP-BTL."""

from dataclasses import dataclass, field

from trl import RewardConfig

from np_trl.trainer.context_config import ContextConfigMixin
from np_trl.trainer.latent_objectives import LATENT_OBJECTIVES


@dataclass
class NPRewardConfig(ContextConfigMixin, RewardConfig):
    """
    Configuration of the [`NPRewardTrainer`]: TRL's [`~trl.RewardConfig`] and [`ContextConfigMixin`].

    `num_targets`, `max_context` and the batch of 64 tasks are the paper's (App. C.1). The learning rate is not: at 1e-4
    the model needs far more steps. The last four arguments concern models with Gaussian latents only.
    """

    num_targets: int = field(default=20, metadata={"help": "Number of target pairs N_T of a task."})
    max_context: int = field(default=10, metadata={"help": "Largest number of context pairs N_C of a task."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Initial learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Tasks per device in a training step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Tasks per device in an evaluation step."})
    disable_dropout: bool = field(
        default=False, metadata={"help": "Whether to switch the model's dropout off. TRL's default would, silently."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Not supported: the model is a few layers on embeddings."}
    )
    bf16: bool | None = field(default=False, metadata={"help": "Whether to use bfloat16 mixed precision."})
    latent_objective: str = field(
        default="maximum_likelihood",
        metadata={"help": f"Objective of Gaussian latents: one of {', '.join(LATENT_OBJECTIVES)}."},
    )
    kl_weight: float = field(
        default=1.0, metadata={"help": "Weight of the divergence in the elbo and vpl objectives."}
    )
    num_latent_samples: int = field(default=8, metadata={"help": "Samples of each latent in a training step."})
    eval_num_latent_samples: int = field(
        default=64, metadata={"help": "Samples of each latent over which evaluation averages probabilities."}
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_at_least("num_latent_samples", 1)
        self._check_at_least("eval_num_latent_samples", 1)
        if self.latent_objective not in LATENT_OBJECTIVES:
            raise ValueError(
                f"`latent_objective={self.latent_objective!r}` is unknown. Choose one of {list(LATENT_OBJECTIVES)}."
            )
