"""Configuration of the reward model."""

from dataclasses import asdict

from transformers.configuration_utils import PreTrainedConfig, strict

from .checkpoint_format import FORMAT_VERSION, check_format, name_what_is_wrong, without_code
from .configuration_context_encoder import ContextEncoderConfig
from .text_embedder import TextEmbedder


# the file that holds each class, for whoever loads the model without np_trl
_AUTO_MAP = {
    "AutoConfig": "configuration_np_reward.NPRewardModelConfig",
    "AutoModel": "modeling_np_reward.NPRewardModel",
}
REWARD_HEADS = ("bradley_terry", "mean_variance")


@strict
class NPRewardModelConfig(PreTrainedConfig):
    r"""
    Configuration of an [`NPRewardModel`].

    Args:
        embed_size (`int`, *optional*, defaults to `384`):
            Size E of an option's embedding.
        hidden_size (`int`, *optional*, defaults to `256`):
            Width of the reward head.
        dropout (`float`, *optional*, defaults to `0.0`), embed_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout probabilities on the inputs of the option encoder, and on the standardised embeddings wherever they
            go, as in the context encoder.
        head (`str`, *optional*, defaults to `"bradley_terry"`):
            `"bradley_terry"`: one reward (eq. 7); `"mean_variance"`: a normal distribution of it (DPL).
        conditional (`bool`, *optional*, defaults to `True`):
            Whether there is a context encoder. Without one this is the plain BTL or DPL model of one population.
        context_config (`dict` or [`ContextEncoderConfig`], *optional*):
            The context encoder. Its `embed_size` is that of the reward model.
        option_ids (`list[str]`, *optional*):
            Options that recur across users, each with a learned vector beside its embedding. All others are scored by
            their embedding alone.
        option_dropout (`float`, *optional*, defaults to `0.1`):
            Probability that an option goes without its vector in a training step, as unseen options do.
        embedder (`dict`, *optional*):
            What embeds texts, as the training set was embedded: the arguments of a [`TextEmbedder`]. Without it the model
            takes embeddings alone.
        format_version (`int`, *optional*):
            The format that the model was saved in.
    """

    model_type = "np_reward"
    sub_configs = {"context_config": ContextEncoderConfig}

    embed_size: int = 384
    hidden_size: int = 256
    dropout: float | int = 0.0
    embed_dropout: float | int = 0.0
    head: str = "bradley_terry"
    conditional: bool = True
    context_config: dict | ContextEncoderConfig | None = None
    option_ids: list[str] | None = None
    option_dropout: float | int = 0.1
    embedder: dict | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        check_format(self.format_version)
        self.format_version = FORMAT_VERSION  # in which it will be saved
        if self.context_config is None or isinstance(self.context_config, dict):
            fields = {**(self.context_config or {}), "embed_size": self.embed_size}
            self.context_config = ContextEncoderConfig(**fields)
        if self.embedder is not None:
            self.embedder = asdict(TextEmbedder.from_settings(self.embedder))
        kwargs.setdefault("num_labels", 1)
        super().__post_init__(**without_code(kwargs))
        self.auto_map = dict(_AUTO_MAP)
        for name, limit in {"embed_size": 1, "hidden_size": 0}.items():
            if getattr(self, name) < limit:
                raise ValueError(f"`{name}={getattr(self, name)}` must be at least {limit}.")
        if self.head not in REWARD_HEADS:
            raise ValueError(f"`head={self.head!r}` is unknown. Choose one of {list(REWARD_HEADS)}.")

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """Make a configuration from the fields of a file, without those that name code."""
        with name_what_is_wrong(cls.model_type):
            return super().from_dict(without_code(config_dict), **without_code(kwargs))

    def to_dict(self) -> dict:
        """The configuration as it is saved. The code that it names is ours, whatever a file or a caller said."""
        return {**without_code(super().to_dict()), "auto_map": dict(_AUTO_MAP)}
