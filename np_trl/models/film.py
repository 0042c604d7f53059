"""
Modulation of a decoder by a user's latent.

Four mixins turn any decoder of transformers into a conditional one: attention, decoder layer, backbone, causal LM. What is
modulated, and how, is one of [`MODULATIONS`]. It sits in the backbone, because TRL's fused LM head calls the backbone and skips
`ForCausalLM.forward`. Without a latent nothing is computed and the model is bit-identical to the base model; at the start every
latent is the identity.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .context_encoder import ContextEncoder
from .film_generation import FiLMGenerationMixin
from .hypernetwork import Hypernetwork
from .lora_gate import LayerGates
from .modulation import modulate
from .pairs import check_conditions, check_latents, stack_latents
from .pooling import pool_tokens
from .text_context import TextContextMixin
from .weights import WholeWeightsMixin


NP_MODULES = ("context_encoder", "film")  # modules that a policy has beside a plain decoder


class FiLMAttentionMixin:
    """Mix into an attention module: modulate its output before the residual is added."""

    def forward(self, *args, film: torch.Tensor | None = None, **kwargs):
        output, weights = super().forward(*args, **kwargs)
        return (output if film is None else modulate(output, film)), weights


class FiLMDecoderLayerMixin:
    """
    Mix into a decoder layer. The class names its attention, one with [`FiLMAttentionMixin`], in `attention_class`.

    `modulation` travels as a positional argument: reentrant gradient checkpointing loses the gradient of keyword arguments.
    """

    attention_class: type[nn.Module]
    is_skipped = False  # in [`skip_layers`]
    enter = None  # what is done to the hidden states that come in, outside of gradient checkpointing

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.modulation, self.film_index = config.modulation, layer_idx - config.first_film_layer
        self.self_attn = self.attention_class(config, layer_idx)
        self.gates = LayerGates()

    def __call__(self, hidden_states: torch.Tensor, *args, modulation: torch.Tensor | None = None, **kwargs):
        if self.enter is not None:
            hidden_states = self.enter(hidden_states)
        return super().__call__(hidden_states, modulation, *args, **kwargs)

    def forward(self, hidden_states: torch.Tensor, modulation: torch.Tensor | None = None, *args, **kwargs):
        if self.is_skipped:
            return hidden_states
        if modulation is None or self.film_index < 0:
            return super().forward(hidden_states, *args, **kwargs)
        return self.modulation.run(self, super().forward, modulation, hidden_states, *args, **kwargs)


@contextmanager
def skip_layers(layers: Iterable[FiLMDecoderLayerMixin]) -> Iterator[None]:
    """Have some layers of a decoder return what they are given, at no cost."""
    layers = list(layers)
    for layer in layers:
        layer.is_skipped = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_skipped = False


class FiLMInitMixin(WholeWeightsMixin):
    """Mix into a model that holds a [`ContextEncoder`] and a [`Hypernetwork`], which initialise themselves."""

    _may_add = NP_MODULES

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (ContextEncoder, Hypernetwork)):
            module.reset_parameters()


class FiLMModelMixin(FiLMInitMixin):
    """Mix into a backbone. The class names its layers, those with [`FiLMDecoderLayerMixin`], in `layer_class`."""

    _keep_in_fp32_modules_strict = list(NP_MODULES)
    # which quantisers leave unchanged; they match names from the start
    _keep_in_fp32_modules = [*NP_MODULES, *(f"model.{name}" for name in NP_MODULES)]
    layer_class: type[nn.Module]

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList([self.layer_class(config, index) for index in range(config.num_hidden_layers)])
        self.add_film(config)
        self.post_init()

    def add_film(self, config) -> None:
        """Add the context encoder and the modulation, which is saved under the name of `film` whichever it is."""
        self.context_encoder = ContextEncoder(config.context_config)
        self.film = config.modulation.of(config)
        # whatever the dtype of the base: their updates are too small for bfloat16
        config.context_config.dtype = torch.float32
        for module in (self.context_encoder, self.film):
            module.float()

    def infer_latents(self, context_embeds: torch.Tensor, context_mask: torch.Tensor) -> torch.Tensor:
        """Infer latents `(U, Z)` from context sets: [`ContextEncoder.forward`]."""
        return self.context_encoder(context_embeds, context_mask)

    def infer_moments(
        self, context_embeds: torch.Tensor, context_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Infer means and standard deviations of the latents, `(U, Z)` each: [`ContextEncoder.moments`]."""
        return self.context_encoder(context_embeds, context_mask, return_moments=True)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        *args,
        latents: torch.Tensor | None = None,
        context_embeds: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        context_index: torch.LongTensor | None = None,
        modulation: torch.Tensor | None = None,
        **kwargs,
    ):
        """
        Run the backbone for the users given by `latents`, or by their context sets.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`):
                Tokens.
            latents (`torch.Tensor` of shape `(B, Z)`, *optional*):
                The latent of each row's user; with `context_index`, `(U, Z)`. `None`, without a context either, is the base
                model.
            context_embeds (`torch.Tensor` of shape `(U, C, 2, E)`, *optional*), context_mask (`torch.Tensor` of shape
                `(U, C)`, *optional*):
                The users' context sets, instead of `latents`.
            context_index (`torch.LongTensor` of shape `(B,)`, *optional*):
                The user of each row. Not needed when there is one user a row, in order.
            modulation (`torch.Tensor` of shape `(B, L, 2, H)`, or `(B, G)` of gates, *optional*):
                What `infer_modulation` returns for the users, instead of all the above, where it serves several calls.

        Raises:
            `ValueError`: if `latents` are not of size Z or not finite, or not one for each row of the batch; or if users are
            given in two ways.
        """
        check_conditions(
            latents=latents, context_embeds=context_embeds, context_mask=context_mask, modulation=modulation
        )
        if modulation is None:
            modulation = self.infer_modulation(latents, context_embeds, context_mask, context_index)
        if modulation is not None:
            inputs = input_ids if input_ids is not None else kwargs["inputs_embeds"]
            _check_rows(modulation, batch_size=inputs.shape[0])
            kwargs["modulation"] = modulation
        return super().forward(input_ids, *args, **kwargs)

    def infer_modulation(
        self,
        latents: torch.Tensor | None = None,
        context_embeds: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        context_index: torch.LongTensor | None = None,
    ) -> torch.Tensor | None:
        """
        Compute the modulation of every layer for the users given by `latents` or by their context sets, which are those
        of [`FiLMModelMixin.forward`].

        Returns:
            `torch.Tensor` of shape `(B, L, 2, H)`: scales and shifts; or `(B, G)`: gates. `None` without users.

        Raises:
            `ValueError`: if `latents` are not of size Z, not finite, or far beyond those of any choices; or if users are given
            in two ways, or not whole.
        """
        check_conditions(
            latents=latents, context_embeds=context_embeds, context_mask=context_mask, context_index=context_index
        )
        if latents is not None:
            check_latents(latents, self.config.context_config.latent_size)
        elif context_embeds is not None:
            latents = self.infer_latents(context_embeds, context_mask)  # (U, Z)
        if latents is None:
            return None
        return self.film(latents if context_index is None else latents[context_index])  # of (B, Z)

    @torch.no_grad()
    def embed_options(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor, completion_mask: torch.Tensor
    ) -> torch.Tensor:
        """
        Embed options with the trunk: hidden states at `context_layer`, pooled over the completion.

        FiLM is off, so the embedding of an option does not depend on a user.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`), attention_mask (`torch.Tensor` of shape `(B, T)`):
                Prompts with their completions.
            completion_mask (`torch.Tensor` of shape `(B, T)`):
                1 on the completion's tokens.

        Returns:
            `torch.Tensor` of shape `(B, H)`, float32.
        """
        with skip_layers(self.layers[self.config.context_layer :]):
            outputs = super().forward(
                input_ids, attention_mask=attention_mask, output_hidden_states=True, use_cache=False
            )
        hidden_states = outputs.hidden_states[self.config.context_layer].float()  # (B, T, H)
        return pool_tokens(hidden_states, completion_mask, self.config.option_pooling)


def _check_rows(modulation: torch.Tensor, batch_size: int) -> None:
    if modulation.shape[0] != batch_size:
        raise ValueError(
            f"`latents` has {modulation.shape[0]} rows, but this batch has {batch_size}: one latent a row. For one user in "
            f"every row, pass `latents.expand({batch_size}, -1)`."
        )


class FiLMForCausalLMMixin(FiLMGenerationMixin, TextContextMixin, FiLMInitMixin):
    """
    Mix into a causal LM. The class names its backbone, one with [`FiLMModelMixin`], in `model_class`.

    Example:
    ```python
    >>> latents = model.infer_user(pairs, tokenizer)  # (1, Z)
    >>> model.generate(**tokenizer("How do I fix the bike?", return_tensors="pt"), latents=latents)
    ```
    """

    model_class: type[nn.Module]

    def __init__(self, config):
        super().__init__(config)
        self.model = self.model_class(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args,
        latents: torch.Tensor | None = None,
        context_embeds: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        context_index: torch.LongTensor | None = None,
        users: list | None = None,
        modulation: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,  # named, so that `generate` asks for the last token's logits alone
        **kwargs,
    ):
        """
        Run the language model for the users given by `latents` or by a context ([`FiLMModelMixin.forward`]), or by `users`
        as in [`FiLMGenerationMixin.generate`].
        """
        check_conditions(
            users=users,
            latents=latents,
            context_embeds=context_embeds,
            context_mask=context_mask,
            modulation=modulation,
        )
        conditions = {
            "latents": latents if users is None else stack_latents(users, self),
            "context_embeds": context_embeds,
            "context_mask": context_mask,
            "context_index": context_index,
            "modulation": modulation,
        }
        return super().forward(input_ids, attention_mask, *args, logits_to_keep=logits_to_keep, **conditions, **kwargs)

    def infer_latents(self, context_embeds: torch.Tensor, context_mask: torch.Tensor) -> torch.Tensor:
        """Infer latents `(U, Z)` from context sets: [`ContextEncoder.forward`]."""
        return self.model.infer_latents(context_embeds, context_mask)

    def infer_moments(
        self, context_embeds: torch.Tensor, context_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Infer means and standard deviations of the latents, `(U, Z)` each: [`ContextEncoder.moments`]."""
        return self.model.infer_moments(context_embeds, context_mask)

    def embed_options(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor, completion_mask: torch.Tensor
    ) -> torch.Tensor:
        """Embed options `(B, H)` with the trunk: [`FiLMModelMixin.embed_options`]."""
        return self.model.embed_options(input_ids, attention_mask, completion_mask)
