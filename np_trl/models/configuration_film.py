"""The fields that FiLM adds to the configuration of a decoder, whichever it is."""

from dataclasses import dataclass

from .checkpoint_format import FORMAT_VERSION, check_format, name_what_is_wrong, without_code
from .configuration_context_encoder import ContextEncoderConfig
from .modulation import MODULATIONS, Modulation


FILM_LAYERS = ("all", "above_trunk")
FILM_SCALINGS = ("none", "bounded")
OPTION_POOLINGS = ("mean", "last")
CONTEXT_SOURCES = ("trunk", "columns")
TRUNCATIONS = ("keep_start", "keep_end")
# fields of FiLM in a saved policy
FILM_FIELDS = (
    "film_site",
    "film_layers",
    "film_scaling",
    "film_units",
    "num_gates",
    "context_layer",
    "option_pooling",
    "context_source",
    "context_max_length",
    "context_truncation",
    "context_config",
    "dpo_beta",
    "reference_name_or_path",
    "reference_revision",
)
# those that earlier policies do not name, with what held for these
LATER_FIELDS = {
    "film_layers": "all",
    "film_scaling": "none",
    "film_units": None,
    "num_gates": None,
    "dpo_beta": 0.1,
    "reference_name_or_path": None,
    "reference_revision": None,
}


# a dataclass of its own: only then do the fields reach the configurations that mix it in
@dataclass(kw_only=True, repr=False, eq=False)
class FiLMConfigMixin:
    r"""
    Mix into the configuration of a decoder, before it: `FiLM{Name}Config` with the `model_type` `film_{name}`, in a file of
    that name, as the models are.

    Args:
        film_site (`str`, *optional*, defaults to `"block"`):
            What a latent changes: `"block"`, `"attention"` or `"lora"`, as in the table of `modulation.py`.
        film_layers (`str`, *optional*, defaults to `"all"`):
            Which layers FiLM modulates: `"all"`, or those `"above_trunk"`, from `context_layer` on.
        film_scaling (`str`, *optional*, defaults to `"bounded"`):
            What enters the modulation: the latent brought into the unit ball (`"bounded"`), so that training is stable however
            long latents are, or as it is (`"none"`), which suits only decoders of a few layers.
        film_units (`list[float]`, *optional*):
            For each modulated layer, the size of what FiLM shifts: shifts are in these units, so that one learning rate suits
            decoders whose hidden states are small or large. With `film_scaling="bounded"` the trainer measures them; 1 if not set.
        num_gates (`int`, *optional*):
            Number of LoRA directions in all decoder layers, with `film_site="lora"`. The trainer counts them.
        context_layer (`int`, *optional*):
            Number of decoder layers in the trunk, whose hidden states embed a user's options. Half of all layers if
            not set.
        option_pooling (`str`, *optional*, defaults to `"mean"`):
            How the hidden states of a completion become one embedding: `"mean"` over its tokens, or its `"last"`.
        context_source (`str`, *optional*, defaults to `"trunk"`):
            What embeds the users' options: the `"trunk"`, or another model, whose embeddings are `"columns"` of the data.
        context_max_length (`int`, *optional*), context_truncation (`str`, *optional*, defaults to `"keep_start"`):
            Largest number of tokens that the trunk embeds of a prompt and its completion, and which are kept, the first or
            the last (`"keep_end"`): those of training.
        context_config (`dict` or [`ContextEncoderConfig`], *optional*):
            The context encoder. Its `embed_size` is the hidden size if not set, as for embeddings from the trunk.
        dpo_beta (`float`, *optional*, defaults to `0.1`):
            The beta of the DPO loss that the policy was trained with: a user's log-odds of a choice are beta times what the
            user changes in the difference of the options' log-probabilities.
        reference_name_or_path (`str`, *optional*), reference_revision (`str`, *optional*):
            The reference policy on the Hub that the policy was trained against, which an evaluation of a merged policy needs.
            None if it is a folder, whose name nobody else could use.
        format_version (`int`, *optional*):
            The format that the model was saved in.
    """

    sub_configs = {"context_config": ContextEncoderConfig}

    film_site: str = "block"
    film_layers: str = "all"
    film_scaling: str = "bounded"
    film_units: list[float] | None = None
    num_gates: int | None = None
    context_layer: int | None = None
    option_pooling: str = "mean"
    context_source: str = "trunk"
    context_max_length: int | None = None
    context_truncation: str = "keep_start"
    context_config: dict | ContextEncoderConfig | None = None
    dpo_beta: float = 0.1
    reference_name_or_path: str | None = None
    reference_revision: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        check_format(self.format_version)
        self.format_version = FORMAT_VERSION  # in which it will be saved
        if self.context_config is None or isinstance(self.context_config, dict):
            fields = {"embed_size": self.hidden_size, **(self.context_config or {})}
            self.context_config = ContextEncoderConfig(**fields)
        if self.context_layer is None:
            self.context_layer = self.num_hidden_layers // 2
        super().__post_init__(**without_code(kwargs))
        self.auto_map = self._auto_map()
        self._check_film()

    @property
    def modulation(self) -> type[Modulation]:
        """What a latent changes."""
        return MODULATIONS[self.film_site]

    @property
    def is_film_bounded(self) -> bool:
        """Whether latents are brought into the unit ball before they modulate."""
        return self.film_scaling == "bounded"

    @property
    def num_film_layers(self) -> int:
        """Number of layers that FiLM modulates."""
        return self.num_hidden_layers - self.first_film_layer

    @property
    def first_film_layer(self) -> int:
        """Number of the lowest layer that FiLM modulates."""
        return 0 if self.film_layers == "all" else self.context_layer

    @classmethod
    def plain_type(cls) -> str:
        """The `model_type` of the plain decoder."""
        return super().model_type

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """
        Make a configuration from the fields of a file: that of a policy, or of a plain decoder of the same type.

        Raises:
            `ValueError`: if it is one of another decoder, or a policy's without its FiLM fields.
        """
        plain_type = cls.plain_type()
        model_type = config_dict.get("model_type", plain_type)
        if model_type not in (cls.model_type, plain_type):
            raise ValueError(
                f"This is the configuration of a {model_type!r}, but {cls.__name__} takes a {cls.model_type!r} or a "
                f"{plain_type!r}. Take the class of that decoder: `NPDPOTrainer` and `load_policy` choose it."
            )
        missing = [field for field in FILM_FIELDS if field not in (*config_dict, *LATER_FIELDS)]
        if model_type == cls.model_type and missing:
            raise ValueError(
                f"This configuration of a {model_type!r} has no {missing}, so its FiLM and context encoder are unknown. "
                "Take the `config.json` that was saved with the weights."
            )
        if model_type == cls.model_type:
            config_dict = {**LATER_FIELDS, **config_dict}
        with name_what_is_wrong(model_type):
            loaded = super().from_dict(without_code(config_dict), **without_code(kwargs))
        (loaded[0] if isinstance(loaded, tuple) else loaded)._check_film()  # what `kwargs` set after it was made
        return loaded

    def to_dict(self) -> dict:
        """The configuration as it is saved. The code that it names is ours, whatever the base's or a caller's was."""
        return {**without_code(super().to_dict()), "auto_map": self._auto_map()}

    def _auto_map(self) -> dict[str, str]:
        """The file that holds each class, for whoever loads the model without np_trl."""
        name, model_type = type(self).__name__.removesuffix("Config"), type(self).model_type
        return {
            "AutoConfig": f"configuration_{model_type}.{name}Config",
            "AutoModel": f"modeling_{model_type}.{name}Model",
            "AutoModelForCausalLM": f"modeling_{model_type}.{name}ForCausalLM",
        }

    def _check_film(self) -> None:
        for field, allowed in (
            ("film_site", tuple(MODULATIONS)),
            ("film_layers", FILM_LAYERS),
            ("film_scaling", FILM_SCALINGS),
            ("option_pooling", OPTION_POOLINGS),
            ("context_source", CONTEXT_SOURCES),
            ("context_truncation", TRUNCATIONS),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"`{field}={value!r}` is unknown. Choose one of {list(allowed)}.")
        units = self.film_units
        if units is not None and not (
            isinstance(units, (list, tuple))
            and len(units) == self.num_film_layers
            and all(isinstance(unit, (int, float)) and 0 < unit < float("inf") for unit in units)
        ):
            raise ValueError(
                f"`film_units={units!r}` must be a positive number for each of the {self.num_film_layers} layers that FiLM "
                "modulates, or not set."
            )
        self.modulation.check_config(self)
        if not 0 <= self.context_layer < self.num_hidden_layers:
            raise ValueError(
                f"`context_layer={self.context_layer}` must lie between 0 and {self.num_hidden_layers - 1}: the trunk "
                f"is the lower part of the {self.num_hidden_layers} layers. Lower `context_layer`."
            )
