"""
Train a policy for one user with TRL's GRPO, on the rewards of NP-BTL after a few of the user's choices: the paper's other
route from choices to a policy, which any policy can take, but which is a training run for each user.

Without arguments: a new user of the style population, known by ten choices, and a tiny Gemma, offline on 2 CPU cores in a
few minutes. It prints what is written for the user by the base model, as the best of 8 of its answers, and after GRPO.

```sh
accelerate launch examples/grpo.py
```

On your own prompts (column `prompt`), with a reward model that `np_reward.py` trained with its `--embedder_name_or_path` and
a user who is given by choices (see `score.py`):

```sh
accelerate launch examples/grpo.py \
    --model_name_or_path google/gemma-2b \
    --dataset_name prompts.parquet \
    --reward_model_name_or_path runs/np_reward \
    --user user.json \
    --output_dir runs/grpo \
    --beta 0.05
```
"""

import sys
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config, get_quantization_config

from np_trl import (
    NPRewardConfig,
    NPRewardModel,
    NPRewardTrainer,
    TextEmbedder,
    UserProfile,
    UserReward,
    best_of_n,
)
from np_trl.data import PreferenceRows
from np_trl.data.loading import load_preferences
from np_trl.data.ranges import check_at_least
from np_trl.evaluation.generations import StyleJudge, check_writer, write
from np_trl.populations import style_population
from np_trl.populations.style import STYLES, split_prompts
from np_trl.populations.style_grammar import share_grammatical
from np_trl.scripts.reward_model_arguments import RewardModelArguments
from np_trl.trainer.uploads import UploadingTrainerMixin


HERE = Path(__file__).resolve().parent
EXAMPLE = "style_population"
STYLE_GEMMA = str(HERE / "style_gemma")


@dataclass
class ScriptArguments:
    dataset_name: str = field(
        default=EXAMPLE, metadata={"help": "File (parquet, JSON lines, CSV) or dataset on the Hub, of prompts."}
    )
    reward_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A reward model whose config names its embedder. Default: one is trained on the example."},
    )
    user: str | None = field(
        default=None,
        metadata={
            "help": "JSON file with the choices of a user, or a profile (.safetensors). Default: a new user of the example."
        },
    )
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads. `accelerate launch` gives a process one if this is not set."}
    )
    user_number: int = field(
        default=10, metadata={"help": f"Which of the {len(STYLES)} types of '{EXAMPLE}' the new user is, from 0."}
    )
    num_choices: int = field(default=10, metadata={"help": "Choices that the new user is known by."})
    num_train_users: int = field(default=256, metadata={"help": "Users that the reward model is trained on."})
    reward_steps: int = field(default=300, metadata={"help": "Training steps of the reward model."})
    num_candidates: int = field(default=8, metadata={"help": "n of best-of-n."})
    num_answers: int = field(default=160, metadata={"help": "Answers that the evaluation judges."})

    def __post_init__(self):
        check_at_least(1, num_choices=self.num_choices, num_train_users=self.num_train_users)
        check_at_least(1, num_candidates=self.num_candidates, num_answers=self.num_answers)
        check_at_least(1, reward_steps=self.reward_steps)
        if self.dataset_name == EXAMPLE and self.user is not None:
            raise ValueError(f"`user={self.user!r}` goes with a `dataset_name`: the example draws its user.")
        if self.dataset_name != EXAMPLE and None in (self.user, self.reward_model_name_or_path):
            raise ValueError(
                f"`dataset_name={self.dataset_name!r}` needs `user` and `reward_model_name_or_path`. Only the example has its "
                "own."
            )
        if not 0 <= self.user_number < len(STYLES):
            raise ValueError(f"`user_number={self.user_number}` must be at least 0 and less than {len(STYLES)}.")


def train_reward_model(script_args: ScriptArguments, training_args: GRPOConfig) -> NPRewardModel:
    """Train NP-BTL on the style population, whose answers the lower layers of the tiny Gemma embed."""
    model_args = RewardModelArguments(
        hidden_size=64,
        latent_size=32,
        memory_size=0,
        pooling="posterior",
        embedder_name_or_path=STYLE_GEMMA,
        embedder_layer=2,
        embedder_max_length=128,
    )
    args = NPRewardConfig(
        output_dir=f"{training_args.output_dir}/np_reward",
        max_steps=script_args.reward_steps,
        warmup_steps=script_args.reward_steps // 10,
        lr_scheduler_type="cosine",
        learning_rate=1e-2,
        num_targets=5,
        max_context=script_args.num_choices,
        context_in_target=False,
        bf16=training_args.bf16,  # one setting for the process
        fp16=training_args.fp16,
        use_cpu=training_args.use_cpu,
        save_strategy="no",
        report_to="none",
        logging_steps=100,
        seed=training_args.seed,
    )
    train_dataset = style_population(split_prompts()[0], script_args.num_train_users, 20, seed=2 * training_args.seed)
    embedder = TextEmbedder(STYLE_GEMMA, layer=2, max_length=128)
    for side in ("chosen", "rejected"):
        embeds = embedder.embed(train_dataset[side], args.device)
        train_dataset = train_dataset.add_column(f"{side}_embeds", list(embeds.cpu().numpy()))
    set_seed(training_args.seed)  # before the model starts
    trainer = NPRewardTrainer(model_args.build(train_dataset), args=args, train_dataset=train_dataset)
    trainer.train()
    trainer.save_model()
    return trainer.accelerator.unwrap_model(trainer.model)


def load_prompts(name: str) -> Dataset:
    """Load prompts."""
    dataset = load_preferences(name)
    if "prompt" not in dataset.column_names:
        raise ValueError(f"{name!r} has no column `prompt`, only {dataset.column_names}. Name a data set of prompts.")
    return dataset.select_columns(["prompt"])


def draw_choices(script_args: ScriptArguments, seed: int) -> Dataset:
    """Draw the choices of a new user of the style population."""
    users = style_population(split_prompts()[0], len(STYLES), script_args.num_choices, seed=2 * seed + 1)
    return users.select(PreferenceRows(users).of_user(script_args.user_number))


class SharedGRPOTrainer(UploadingTrainerMixin, GRPOTrainer):
    """TRL's trainer, which shares the policy and not the reward model beside it."""


def build_trainer(
    training_args: GRPOConfig, model_args: ModelConfig, prompts: Dataset, reward: UserReward
) -> GRPOTrainer:
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    set_seed(training_args.seed)  # before LoRA starts
    return SharedGRPOTrainer(
        model_args.model_name_or_path or STYLE_GEMMA,
        reward_funcs=reward,
        args=training_args,
        train_dataset=prompts,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )


class StyleExamination:
    """
    What is written for a user of the style population, to prompts that neither NP-BTL nor GRPO was trained on.

    Args:
        trainer ([`~trl.GRPOTrainer`]), reward ([`UserReward`]):
            The policy, and the user's reward.
        choices ([`~datasets.Dataset`]):
            The user's choices, with the `style` that they were made by.
        num_answers (`int`):
            Number of answers.
    """

    def __init__(self, trainer: GRPOTrainer, reward: UserReward, choices: Dataset, num_answers: int):
        self.trainer, self.reward, self.judge = trainer, reward, StyleJudge(PreferenceRows(choices))
        self.prompts = list(islice(cycle(split_prompts()[1]), num_answers))
        self.texts = {}  # what wrote -> answers

    def write(self) -> list[str]:
        policy, tokenizer = self.trainer.accelerator.unwrap_model(self.trainer.model), self.trainer.processing_class
        answers = write(policy.eval(), tokenizer, tokenizer(self.prompts)["input_ids"])
        return tokenizer.batch_decode(answers, skip_special_tokens=True)

    def write_untrained(self, n: int, user: UserProfile) -> None:
        """Write before training: an answer to each prompt, and the best of n."""
        candidates = [self.write() for _ in range(n)]
        of_prompts = [list(texts) for texts in zip(*candidates, strict=True)]
        best = best_of_n(self.reward.reward_model, self.prompts, of_prompts, user)
        self.texts |= {"base model": candidates[0], f"best of {n}": best}

    def measure(self, name: str) -> dict[str, float]:
        """Measure the user's reward, the share of attributes as wanted, and that of grammatical answers."""
        texts = self.texts[name]
        return {
            "reward": float(np.mean(self.reward(self.prompts, texts))),
            "as_wanted": float(self.judge(self.prompts, texts, np.zeros(len(texts), dtype=int)).mean()),
            "grammatical": share_grammatical(self.prompts, texts),
        }

    def report(self) -> None:
        """Save what was measured, and print it with answers to two prompts."""
        metrics = {name: self.measure(name) for name in self.texts}
        figures = {f"eval_{name}_{key}": value for name, row in metrics.items() for key, value in row.items()}
        self.trainer.save_metrics("eval", {key.lower().replace(" ", "_"): value for key, value in figures.items()})
        if not self.trainer.is_world_process_zero():
            return
        print(f"\n{'':<12}{'reward':>13}{'as wanted':>13}{'grammatical':>13}")
        for name, row in metrics.items():
            print(f"{name:<12}" + "".join(f"{value:>13.3f}" for value in row.values()))
        for index, prompt in enumerate(self.prompts[:2]):
            print(f"\n{prompt}")
            for name, texts in self.texts.items():
                print(f"  {name}:\n   " + texts[index].replace("\n", "\n    "))


def main(script_args: ScriptArguments, training_args: GRPOConfig, model_args: ModelConfig) -> None:
    if script_args.num_threads is not None:
        check_at_least(1, num_threads=script_args.num_threads)
        torch.set_num_threads(script_args.num_threads)
    check_writer(model_args.model_name_or_path or STYLE_GEMMA)
    is_example = script_args.dataset_name == EXAMPLE
    if script_args.reward_model_name_or_path is None:
        reward_model = train_reward_model(script_args, training_args)
    else:
        reward_model = NPRewardModel.from_pretrained(script_args.reward_model_name_or_path)
    reward_model = reward_model.to(training_args.device)
    if is_example:
        choices = draw_choices(script_args, training_args.seed)
        user = UserProfile(reward_model, pairs=choices)
        prompts = Dataset.from_dict({"prompt": split_prompts()[0]})
    else:
        user = UserProfile.from_file(script_args.user, reward_model)
        prompts = load_prompts(script_args.dataset_name)
    reward = UserReward(reward_model, user)
    trainer = build_trainer(training_args, model_args, prompts, reward)
    if is_example:
        examination = StyleExamination(trainer, reward, choices, script_args.num_answers)
        examination.write_untrained(script_args.num_candidates, user)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if is_example:
        examination.texts["GRPO"] = examination.write()
        examination.report()
    if training_args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.print(f"\nPolicy: {training_args.output_dir}")


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
    arguments = sys.argv[1:] or ["--config", str(HERE / "configs" / "grpo_style.yaml")]
    main(*parser.parse_args_and_config(arguments))
