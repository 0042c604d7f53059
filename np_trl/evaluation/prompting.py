"""
What the base model does when the prompt describes the user: by the choices as text, or by an instruction in words.

An instruction says in one fixed wording what type of user it is, which nobody knows in use.
"""

import time

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from np_trl.evaluation.dpo_baselines import put_before, show_choices
from np_trl.evaluation.generations import Generations, StyleJudge, write
from np_trl.metrics import UserAccuracy
from np_trl.models.completion_log_probs import completion_log_probs
from np_trl.models.text_context import tokenize_pair


class Prompting:
    """
    The users and prompts of some generations, answered by the reference policy.

    Args:
        generations ([`Generations`]):
            The users, their contexts and the prompts.
        judge ([`StyleJudge`]):
            Says what the users want.
    """

    def __init__(self, generations: Generations, judge: StyleJudge):
        self.generations, self.judge = generations, judge

    def few_shot(self) -> dict[str, float]:
        """Show each user's choices as text before the prompt: `few_shot_steering_accuracy` and the like."""
        rows, tokenizer = self.generations.rows, self.generations.tokenizer
        targets, contexts = self.generations.targets, self.generations.contexts
        prompts = show_choices(rows.dataset, targets, contexts, tokenizer.eos_token)["prompt"]
        return self._measure("few_shot", list(prompts)) | self._accuracy("few_shot", list(prompts))

    def instruction(self) -> dict[str, float]:
        """Say in words what each user wants: `instruction_steering_accuracy` and the like."""
        wishes = [self.judge.attributes.instruct(style) for style in self.judge.styles[self.generations.users]]
        prompts = [
            put_before(prompt, f"{wish}\n\n") for prompt, wish in zip(self.generations.prompts, wishes, strict=True)
        ]
        return self._measure("instruction", prompts) | self._accuracy("instruction", prompts)

    def _measure(self, name: str, prompts: list) -> dict[str, float]:
        generations = self.generations
        prompt_ids = generations.tokenize(prompts)
        answers = write(
            generations.reference, generations.tokenizer, prompt_ids, None, generations.max_new_tokens, batch_size=16
        )
        texts = generations.tokenizer.batch_decode(answers, skip_special_tokens=True)
        found = self.judge.describe(texts, generations.users)
        found |= request_cost(generations.reference, prompt_ids[:5])
        return {f"{name}_{key}": value for key, value in found.items()}

    def _accuracy(self, name: str, prompts: list) -> dict[str, float]:
        """How often the chosen completion of the pair of a prompt is the more likely one, and the standard error."""
        generations, margins = self.generations, []
        for prompt, pair in zip(prompts, generations.rows.take(generations.targets), strict=True):
            start, *options = tokenize_pair({**pair, "prompt": prompt}, generations.tokenizer)
            options = [torch.tensor(option) for option in options]
            lengths = torch.tensor([[len(option)] for option in options])
            positions = torch.arange(int(lengths.max()))
            present = positions < lengths
            tokens = {
                "input_ids": pad_sequence(options, batch_first=True),
                "attention_mask": present.long(),
                "completion_mask": (present & (positions >= start)).long(),
            }
            tokens = {key: value.to(generations.model.device) for key, value in tokens.items()}
            chosen, rejected = completion_log_probs(generations.reference, tokens).tolist()
            margins.append(chosen - rejected)
        accuracy = UserAccuracy().compute(margins=margins, users=generations.users.tolist())
        return {f"{name}_{key}": value for key, value in accuracy.items() if key.startswith("accuracy")}


@torch.no_grad()
def request_cost(
    model: nn.Module, prompt_ids: list[list[int]], latents: torch.Tensor | None = None, num_tokens: int = 16
) -> dict[str, float]:
    """
    Measure what a request costs, one at a time.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model that writes.
        prompt_ids (`list[list[int]]`):
            Tokens of N prompts.
        latents (`torch.Tensor` of shape `(N, Z)`, *optional*):
            The users of the prompts.
        num_tokens (`int`, *optional*, defaults to `16`):
            Tokens after the first, over which the time of one is measured.

    Returns:
        `dict[str, float]`: means of `prompt_tokens`; medians of `seconds_to_first_token` and `seconds_per_token`.
    """
    tokens, first, following = [], [], []
    for index, ids in enumerate(prompt_ids):
        input_ids = torch.tensor([ids], device=model.device)
        users = {} if latents is None else {"latents": latents[index : index + 1]}
        seconds = []
        for number in (1, 1 + num_tokens):
            start = time.perf_counter()
            model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                **users,
                do_sample=False,
                min_new_tokens=number,
                max_new_tokens=number,
            )
            seconds.append(time.perf_counter() - start)
        tokens.append(input_ids.shape[1])
        first.append(seconds[0])
        following.append((seconds[1] - seconds[0]) / num_tokens)
    return {
        "prompt_tokens": float(np.mean(tokens)),
        "seconds_to_first_token": float(np.median(first)),
        "seconds_per_token": float(np.median(following)),
    }
