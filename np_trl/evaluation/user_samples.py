"""What a policy writes to the same prompts for a few users, in the course of training and after it."""

import torch
from transformers import TrainerCallback
from trl.models.utils import unwrap_model_for_generation

from np_trl.data import PreferenceRows
from np_trl.evaluation.generations import infer_latents, write
from np_trl.models.text_context import tokenize_prompt
from np_trl.models.texts import plain_text, template_kwargs
from np_trl.trainer import NPDPOTrainer


class UserSamples(TrainerCallback):
    """
    Prints what the policy writes for two users of the evaluation set, each known by the largest N_C of its choices. As a
    callback it does so after every evaluation before the last step, for the first prompt.

    Args:
        trainer ([`NPDPOTrainer`]):
            Whose policy writes.
        names (`dict[str, str]`, *optional*):
            Ids of the users, and what they are called. The first two with enough choices if not set.
        prompts (`list`, *optional*):
            Prompts. The prompt of a pair that is among the choices of neither if not set.
        max_new_tokens (`int`, *optional*, defaults to `96`):
            Largest length of an answer.
    """

    def __init__(
        self,
        trainer: NPDPOTrainer,
        names: dict[str, str] | None = None,
        prompts: list[str | list[dict]] | None = None,
        max_new_tokens: int = 96,
    ):
        self.trainer, self.max_new_tokens = trainer, max_new_tokens
        self.rows, protocol = PreferenceRows(trainer.eval_dataset), trainer.args.evaluation_protocol
        tasks = protocol.tasks(self.rows)
        drawn = [task for task in map(tasks.__getitem__, range(len(tasks))) if self._is_wanted(task.user, names)]
        num_context = max(task.num_context for task in drawn)
        drawn = [task for task in drawn if task.num_context == num_context][:2]
        ids = [str(self.rows.user_ids[task.user]) for task in drawn]
        self.names = ids if names is None else [names[user] for user in ids]
        contexts, targets = zip(*(task.draw() for task in drawn), strict=True)
        (pair,) = self.rows.take(targets[0][:1])
        self.contexts, self.prompts, self.template = list(contexts), prompts, {}
        if prompts is None:
            self.prompts, self.template = [pair["prompt"]], template_kwargs(pair)

    def _is_wanted(self, user: int, names: dict[str, str] | None) -> bool:
        return names is None or str(self.rows.user_ids[user]) in names

    # Override: TRL's own callback of this kind needs Weights & Biases or Comet, and knows of no users.
    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step < state.max_steps:
            self.print(num_prompts=1)

    @torch.no_grad()
    def print(self, num_prompts: int | None = None) -> None:
        """Print an answer to each prompt, or to the first ones, for each of the users, by a seed of its own."""
        trainer, tokenizer, prompts = self.trainer, self.trainer.processing_class, self.prompts[:num_prompts]
        accelerator, was_training = trainer.accelerator, trainer.model.training
        prompt_ids = [tokenize_prompt(prompt, tokenizer, **self.template) for prompt in prompts for _ in self.names]
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),  # training draws what it draws without samples
            unwrap_model_for_generation(trainer.model_wrapped, accelerator) as model,
        ):
            torch.manual_seed(trainer.args.seed)
            model.eval()
            latents = infer_latents(model, self.rows, self.contexts).repeat(len(prompts), 1)  # (prompts * users, Z)
            answers = write(model, tokenizer, prompt_ids, latents, self.max_new_tokens)
            model.train(was_training)
        texts = iter(tokenizer.batch_decode(answers, skip_special_tokens=True))
        for prompt in prompts:
            accelerator.print(f"\n{plain_text(prompt)}")
            for name in self.names:
                accelerator.print(f"  to {name}:\n    " + next(texts).replace("\n", "\n    "))
