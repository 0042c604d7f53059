"""Arguments of a script that builds a reward model, as TRL's `ModelConfig` is for a language model."""

from dataclasses import dataclass, field

from datasets import Dataset

from np_trl.data.preference_rows import option_ids
from np_trl.data.validation import check_embeddings
from np_trl.models import NPRewardModel, NPRewardModelConfig


@dataclass
class RewardModelArguments:
    """Sizes and variant of an [`NPRewardModel`]."""

    hidden_size: int = field(default=256, metadata={"help": "Width of the reward head and of the context encoder."})
    latent_size: int = field(default=256, metadata={"help": "Size Z of the latent, the memory channel included."})
    memory_size: int = field(default=128, metadata={"help": "Size of the memory channel. 0 turns it off."})
    memory_weights: str = field(
        default="posterior", metadata={"help": "What weighs a pair in the memory channel: gate or posterior."}
    )
    pooling: str = field(
        default="sum", metadata={"help": "How context pairs are pooled: sum, mean, attention or posterior."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the inputs of the option encoders."})
    embed_dropout: float = field(
        default=0.0,
        metadata={"help": "Dropout on the embeddings wherever they go, before options' vectors are added."},
    )
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

    embedder_name_or_path: str | None = field(
        default=None,
        metadata={"help": "What embedded the texts, on the Hub or in a folder, so that the model can score texts."},
    )
    embedder_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the embedder."})
    embedder_pooling: str = field(
        default="mean", metadata={"help": "How it pools the tokens of a text: mean or last."}
    )
    embedder_max_length: int = field(default=256, metadata={"help": "Largest number of tokens that it reads."})
    embedder_normalize: bool = field(default=False, metadata={"help": "Whether its embeddings have length 1."})
    embedder_layer: int | None = field(
        default=None, metadata={"help": "Number of layers whose output it pools. Default: all."}
    )
    embedder_chat_template: bool = field(
        default=False, metadata={"help": "Whether it reads an option as a conversation in its chat template."}
    )
    embedder_dtype: str = field(default="auto", metadata={"help": "Data type of its weights."})

    def build(
        self,
        train_dataset: Dataset,
        context_config: dict | None = None,
        embedding_kind: str = "response",
        **kwargs,
    ) -> NPRewardModel:
        """
        Build a model for a dataset.

        Args:
            train_dataset ([`~datasets.Dataset`]):
                Embedded pairs, with the columns `chosen_option_id` and `rejected_option_id` for `option_vectors`.
            context_config (`dict`, *optional*):
                Fields of the context encoder that differ.
            embedding_kind (`str`, *optional*, defaults to `"response"`):
                Which text was embedded, `"response"` or `"prompt_response"`, for an embedder.
            kwargs:
                Fields of the [`NPRewardModelConfig`] that differ.
        """
        encoder = {
            "hidden_size": self.hidden_size,
            "latent_size": self.latent_size,
            "memory_size": self.memory_size,
            "memory_weights": self.memory_weights,
            "pooling": self.pooling,
            "dropout": self.dropout,
            "embed_dropout": self.embed_dropout,
            "latent_distribution": self.latent_distribution,
            **(context_config or {}),
        }
        fields = {
            "embed_size": check_embeddings(train_dataset, "train"),
            "hidden_size": self.hidden_size,
            "dropout": self.dropout,
            "embed_dropout": self.embed_dropout,
            "option_ids": option_ids(train_dataset) if self.option_vectors else None,
            "option_dropout": self.option_dropout,
            "embedder": self._embedder(embedding_kind),
            **kwargs,
        }
        return NPRewardModel(NPRewardModelConfig(context_config=encoder, **fields))

    def _embedder(self, kind: str) -> dict | None:
        if self.embedder_name_or_path is None:
            return None
        return {
            "name_or_path": self.embedder_name_or_path,
            "revision": self.embedder_revision,
            "pooling": self.embedder_pooling,
            "max_length": self.embedder_max_length,
            "normalize": self.embedder_normalize,
            "layer": self.embedder_layer,
            "chat_template": self.embedder_chat_template,
            "dtype": self.embedder_dtype,
            "kind": kind,
        }
