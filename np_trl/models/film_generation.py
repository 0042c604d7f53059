"""Generation for users: every way in which transformers generates writes for the user, or refuses."""

import torch

from .pairs import check_conditions, stack_latents


# arguments of `generate` that say for whom is written
_CONDITIONS = ("latents", "context_embeds", "context_mask", "context_index", "users", "modulation")


class FiLMGenerationMixin:
    """Mix into a causal LM, before the classes of transformers, whose backbone has `infer_modulation`."""

    @torch.no_grad()
    def generate(
        self,
        *args,
        latents: torch.Tensor | None = None,
        context_embeds: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        context_index: torch.LongTensor | None = None,
        users: list | None = None,
        modulation: torch.Tensor | None = None,
        **kwargs,
    ):
        """
        Generate for the users given by `latents` or by a context ([`FiLMModelMixin.forward`]), one user a prompt; or by
        `users`: latents of shape `(1, Z)`, or objects that have such `latents`.

        Everything else is [`~transformers.GenerationMixin.generate`]. The modulation is computed once, not for every token.
        An assistant model drafts without the user; what is written is the policy's own, for the user.

        Raises:
            `ValueError`: if latents are not those of this model, or users are given in two ways, or the paged cache is asked
            for, which knows no users.
        """
        check_conditions(
            users=users,
            latents=latents,
            context_embeds=context_embeds,
            context_mask=context_mask,
            modulation=modulation,
        )
        if modulation is None:  # else a draft by the policy itself, with early exit
            latents = latents if users is None else stack_latents(users, self)
            modulation = self.model.infer_modulation(latents, context_embeds, context_mask, context_index)
        return super().generate(*args, **kwargs, modulation=modulation)

    # Override: continuous batching packs the prompts of several users into one row, without their latents.
    def generate_batch(self, *args, **kwargs):
        """
        Generate for nobody by continuous batching: [`~transformers.generation.ContinuousMixin.generate_batch`].

        Raises:
            `ValueError`: if users are given.
        """
        conditions = {name: kwargs.pop(name, None) for name in _CONDITIONS}
        given = [name for name, value in conditions.items() if value is not None]
        if given:
            raise ValueError(
                f"Continuous batching (`generate_batch`, the paged cache) would write for nobody, but {given} are given. Use "
                "`generate`, or export the users (`np_trl.export_adapter`, `np_trl.export_model`)."
            )
        return super().generate_batch(*args, **kwargs)

    # Override: an assistant does not know the user, and its modulation is not the policy's.
    def _get_candidate_generator(self, *args, model_kwargs: dict, assistant_model=None, **kwargs):
        if assistant_model is not None and assistant_model is not self:
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in _CONDITIONS}
        return super()._get_candidate_generator(
            *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )
