"""Configuration of the context encoder, shared by the reward model and the policy."""

from transformers.configuration_utils import PreTrainedConfig, strict

from .pooling import POOLINGS


PAIR_FEATURES = ("difference_sum", "concatenation")
MEMORY_WEIGHTS = ("gate", "posterior")
LATENT_DISTRIBUTIONS = ("deterministic", "gaussian")


@strict
class ContextEncoderConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ContextEncoder`].

    The defaults are the variant that was measured to be best. The paper's own encoder (eq. 5) is
    `pair_features="concatenation", pooling="mean", linear_skip=False, memory_size=0`; its appendix (eq. 21) has
    `pooling="attention"`.

    Args:
        embed_size (`int`, *optional*, defaults to `384`):
            Size E of an option's embedding.
        hidden_size (`int`, *optional*, defaults to `128`):
            Width of the option and pair encoders.
        latent_size (`int`, *optional*, defaults to `256`):
            Size Z of the latent, the memory channel included.
        memory_size (`int`, *optional*, defaults to `128`):
            Size of the memory channel, at most `latent_size`; 0 turns it off.
        memory_weights (`str`, *optional*, defaults to `"posterior"`):
            How much of a context pair the memory channel keeps: what a learned `"gate"` says, or what Bayes' rule says
            under a normal prior of the user's tastes (`"posterior"`).
        pair_features (`str`, *optional*, defaults to `"difference_sum"`):
            How a pair enters: `"difference_sum"` ([phi(w) - phi(l), phi(w) + phi(l)]) or `"concatenation"`
            ([phi(w), phi(l)], eq. 5).
        pooling (`str`, *optional*, defaults to `"sum"`):
            How pairs are pooled: `"sum"`, `"mean"` (eq. 5), `"attention"` (self-attention, then the sum; eq. 21) or
            `"posterior"`: the sum beside a softmax of summed log-likelihoods, the posterior over `hidden_size` learned
            types of users. The last suits populations of few types; use it with `memory_size=0` (a reward that the
            memory already explains half well leaves the types no reason to form) and a high learning rate.
        linear_skip (`bool`, *optional*, defaults to `True`):
            Whether a linear map runs beside every MLP.
        latent_distribution (`str`, *optional*, defaults to `"deterministic"`):
            `"deterministic"`, or `"gaussian"`: a diagonal normal, sampled in training and replaced by its mean in
            evaluation.
        dropout (`float`, *optional*, defaults to `0.0`):
            Dropout probability on the inputs of the option encoder.
        embed_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout probability on the standardised embeddings wherever they go, the memory channel included. Learned
            vectors of options are added after it, so it suits options that recur and others that will not.
    """

    model_type = "np_context_encoder"

    embed_size: int = 384
    hidden_size: int = 128
    latent_size: int = 256
    memory_size: int = 128
    memory_weights: str = "posterior"
    pair_features: str = "difference_sum"
    pooling: str = "sum"
    linear_skip: bool = True
    latent_distribution: str = "deterministic"
    dropout: float | int = 0.0
    embed_dropout: float | int = 0.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _check_choice("pair_features", self.pair_features, PAIR_FEATURES)
        _check_choice("pooling", self.pooling, tuple(POOLINGS))
        _check_choice("memory_weights", self.memory_weights, MEMORY_WEIGHTS)
        _check_choice("latent_distribution", self.latent_distribution, LATENT_DISTRIBUTIONS)
        for name, limit in {"embed_size": 1, "hidden_size": 0, "latent_size": 1}.items():
            if getattr(self, name) < limit:
                raise ValueError(f"`{name}={getattr(self, name)}` must be at least {limit}.")
        if not 0 <= self.memory_size <= self.latent_size:
            raise ValueError(
                f"`memory_size={self.memory_size}` must lie between 0 and `latent_size={self.latent_size}`: the memory "
                "channel is a part of the latent. Lower `memory_size` or raise `latent_size`."
            )


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}={value!r}` is unknown. Choose one of {list(allowed)}.")
