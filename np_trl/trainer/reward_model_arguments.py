"""Arguments of a script that builds a reward model, as TRL's `ModelConfig` is for a language model."""

from dataclasses import dataclass, field

from datasets import Dataset

from np_trl.data.preference_rows import ID_COLUMNS
from np_trl.data.validation import check_embeddings
from np_trl.models import NPRewardModel, NPRewardModelConfig


@dataclass
class RewardModelArguments:
    """Sizes and variant of an [`NPRewardModel`]."""

    hidden_size: int = field(default=256, metadata={"help": "Width of the reward head and of the context encoder."})
    latent_size: int = field(default=256, metadata={"help": "Size Z of the latent, the memory channel included."})
    memory_size: int = field(default=128, metadata={"help": "Size of the memory channel. 0 turns it off."})
    pooling: str = field(
        default="sum", metadata={"help": "How context pairs are pooled: sum, mean, attention or posterior."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the standardised embeddings."})
    latent_distribution: str = field(
        default="deterministic", metadata={"help": "deterministic, or gaussian (see --latent_objective)."}
    )
    option_vectors: bool = field(
        default=False,
        metadata={"help": "Whether options of the training set carry a learned vector beside their embedding."},
    )
    option_dropout: float = field(
        default=0.1, metadata={"help": "Probability that an option goes without its vector in a training step."}
    )

    def build(self, train_dataset: Dataset, context_config: dict | None = None, **kwargs) -> NPRewardModel:
        """
        Build a model for a dataset.

        Args:
            train_dataset ([`~datasets.Dataset`]):
                Embedded pairs, with the columns `chosen_option_id` and `rejected_option_id` for `option_vectors`.
            context_config (`dict`, *optional*):
                Fields of the context encoder that differ.
            kwargs:
                Fields of the [`NPRewardModelConfig`] that differ.
        """
        option_ids = None
        if self.option_vectors:
            option_ids = sorted({key for name in ID_COLUMNS for key in train_dataset.unique(name) if key is not None})
        encoder = {
            "hidden_size": self.hidden_size,
            "latent_size": self.latent_size,
            "memory_size": self.memory_size,
            "pooling": self.pooling,
            "dropout": self.dropout,
            "latent_distribution": self.latent_distribution,
            **(context_config or {}),
        }
        fields = {
            "embed_size": check_embeddings(train_dataset, "train"),
            "hidden_size": self.hidden_size,
            "dropout": self.dropout,
            "option_ids": option_ids,
            "option_dropout": self.option_dropout,
            **kwargs,
        }
        return NPRewardModel(NPRewardModelConfig(context_config=encoder, **fields))
