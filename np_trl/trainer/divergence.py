"""The end of a run that diverged: an error that says when, and what to lower."""

import torch


class DivergenceMixin:
    """
    Mix into a contextual trainer: stop at the first step whose loss is not finite.

    Transformers keeps such losses out of its logs (`logging_nan_inf_filter`) and trains on, on weights that are lost.
    """

    # Override: the narrowest place that sees the step's loss.
    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except torch.linalg.LinAlgError as error:  # of weights or latents that are not finite
            raise self._diverged("the context encoder has no solution") from error
        if not loss.isfinite():
            raise self._diverged(f"the loss is {loss.item()}")
        return loss

    def _diverged(self, what: str) -> FloatingPointError:
        names = ("learning_rate", "np_learning_rate", "max_grad_norm")
        shown = ", ".join(f"{name}={getattr(self.args, name)}" for name in names if hasattr(self.args, name))
        return FloatingPointError(
            f"Training diverged at step {self.state.global_step + 1}: {what}. It ran with {shown}. Lower the learning rates, "
            "raise `warmup_steps`, or check the embeddings for entries that are far from the others; resume from a checkpoint "
            "before that step, if there is one."
        )
