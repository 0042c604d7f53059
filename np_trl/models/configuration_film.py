"""The fields that FiLM adds to the configuration of a decoder, whichever it is."""

from dataclasses import dataclass
from typing import ClassVar

from .configuration_context_encoder import ContextEncoderConfig


FILM_SITES = ("block", "attention")
OPTION_POOLINGS = ("mean", "last")


# a dataclass of its own: only then do the fields reach the configurations that mix it in
@dataclass(kw_only=True, repr=False, eq=False)
class FiLMConfigMixin:
    r"""
    Mix into the configuration of a decoder, before it. The class names its files in `film_auto_map`.

    Args:
        film_site (`str`, *optional*, defaults to `"block"`):
            What is scaled and shifted: `"block"`, the output of each decoder block (as the paper's code does), or
            `"attention"`, the output of its attention before the residual is added (eq. 23 read literally).
        context_layer (`int`, *optional*):
            Number of decoder layers in the trunk, whose hidden states embed a user's options. Half of all layers if
            not set.
        option_pooling (`str`, *optional*, defaults to `"mean"`):
            How the hidden states of a completion become one embedding: `"mean"` over its tokens, or its `"last"`.
        context_config (`dict` or [`ContextEncoderConfig`], *optional*):
            The context encoder. Its `embed_size` is the hidden size if not set, as for embeddings from the trunk.
    """

    film_auto_map: ClassVar[dict[str, str]]
    sub_configs = {"context_config": ContextEncoderConfig}

    film_site: str = "block"
    context_layer: int | None = None
    option_pooling: str = "mean"
    context_config: dict | ContextEncoderConfig | None = None

    def __post_init__(self, **kwargs):
        if self.context_config is None or isinstance(self.context_config, dict):
            fields = {"embed_size": self.hidden_size, **(self.context_config or {})}
            self.context_config = ContextEncoderConfig(**fields)
        if self.context_layer is None:
            self.context_layer = self.num_hidden_layers // 2
        # the file that holds each class, for whoever loads the model without np_trl
        kwargs.setdefault("auto_map", dict(self.film_auto_map))
        super().__post_init__(**kwargs)
        self._check_film()

    def _check_film(self) -> None:
        if self.film_site not in FILM_SITES:
            raise ValueError(f"`film_site={self.film_site!r}` is unknown. Choose one of {list(FILM_SITES)}.")
        if self.option_pooling not in OPTION_POOLINGS:
            raise ValueError(
                f"`option_pooling={self.option_pooling!r}` is unknown. Choose one of {list(OPTION_POOLINGS)}."
            )
        if not 0 <= self.context_layer < self.num_hidden_layers:
            raise ValueError(
                f"`context_layer={self.context_layer}` must lie between 0 and {self.num_hidden_layers - 1}: the trunk "
                f"is the lower part of the {self.num_hidden_layers} layers. Lower `context_layer`."
            )
