"""The implicit reward of a policy (eq. 8), and the answers of users that it predicts."""

import torch

from .choice_reader import ChoiceReaderMixin
from .completion_log_probs import TOKENS, completion_log_probs


class ImplicitRewardMixin(ChoiceReaderMixin):
    """Mix into a policy that has `tokenize_pairs`."""

    # Override: answers are tokens, and compared with those of the reference policy.
    @torch.no_grad()
    def read_questions(self, pairs: list[dict], tokenizer=None, reference=None) -> dict[str, torch.Tensor]:
        """
        Read pairs of texts that users may be asked: [`ChoiceReaderMixin.read_questions`].

        Returns:
            `dict[str, torch.Tensor]`: the context set; `input_ids`, `attention_mask` and `completion_mask` `(2P, T)`; and
            `reference_margins` `(P,)`, those of the reference policy.
        """
        context = self.read_pairs(pairs, tokenizer)
        tokens = self.tokenize_pairs(pairs, tokenizer)
        margins = (self if reference is None else reference).option_margins(tokens, torch.arange(len(pairs)))
        return {**context, **tokens, "reference_margins": margins}

    def answer_logits(
        self, latents: torch.Tensor, questions: dict[str, torch.Tensor], numbers: torch.LongTensor | None = None
    ) -> torch.Tensor:
        """
        Predict the answers of users to questions: [`ChoiceReaderMixin.answer_logits`]. The log-odds are `dpo_beta` times how
        much more than the reference policy the policy favours the option for the user (eq. 8).
        """
        reference = questions["reference_margins"]
        numbers = torch.arange(len(reference)) if numbers is None else numbers
        numbers = numbers.to(reference.device)
        latents = latents.expand(*latents.shape[:-2], len(numbers), -1)  # (P, Z) or (S, P, Z)
        asked = numbers.expand(latents.shape[:-1])  # (P,) or (S, P)
        margins = self.option_margins(questions, asked.flatten(), latents.flatten(end_dim=-2))
        return self.config.dpo_beta * (margins.view(asked.shape) - reference[numbers])

    def option_margins(
        self, tokens: dict[str, torch.Tensor], numbers: torch.LongTensor, latents: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Compute how much more log-probability the first option of pairs has than the second.

        Args:
            tokens (`dict[str, torch.Tensor]`):
                What `tokenize_pairs` returned of P pairs.
            numbers (`torch.LongTensor` of shape `(N,)`):
                The number of the pair of each margin.
            latents (`torch.Tensor` of shape `(N, Z)`, *optional*):
                The latent of each one's user. The base model if not given.

        Returns:
            `torch.Tensor` of shape `(N,)`, float32: differences of log-probabilities, summed over the completions' tokens.
        """
        rows = torch.stack([2 * numbers, 2 * numbers + 1], dim=1).flatten().to(self.device)  # (2N,)
        latents = None if latents is None else latents.repeat_interleave(2, dim=0)
        log_probs = completion_log_probs(self, {name: tokens[name][rows] for name in TOKENS}, latents)
        chosen, rejected = log_probs.view(-1, 2).unbind(dim=1)
        return chosen - rejected
