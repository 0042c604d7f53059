"""
Train NP-DPO, a language model that writes for each user after a few of that user's choices.

Without arguments: a simulated population of users with opposed styles and a tiny Gemma, offline on 2 CPU cores in less
than five minutes. It prints how well the policy adapts to new users, against the Bayes limit, other users' contexts and
plain DPO, and two users' answers to the same prompts.

```sh
accelerate launch examples/np_dpo.py
```

On your own preferences (TRL's preference format plus a column `user_id`):

```sh
accelerate launch examples/np_dpo.py \
    --model_name_or_path google/gemma-2b \
    --dataset_name train.parquet \
    --eval_dataset_name validation.parquet \
    --output_dir runs/np_dpo \
    --use_peft --lora_r 512 --lora_alpha 1024 --lora_target_modules q_proj v_proj \
    --precompute_ref_log_probs
```
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


sys.path.pop(0)  # this folder: its evaluate.py would hide the library `evaluate`

import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoConfig, AutoTokenizer, EvalPrediction  # noqa: E402
from trl import DPOConfig, DPOTrainer, ModelConfig, TrlParser, get_peft_config, get_quantization_config  # noqa: E402

from np_trl import NPDPOConfig, NPDPOTrainer, NPRewardConfig, NPRewardModel, NPRewardModelConfig, NPRewardTrainer  # noqa: E402
from np_trl.data import PreferenceRows, style_bayes_accuracy, style_population  # noqa: E402
from np_trl.data.loading import load_preferences  # noqa: E402
from np_trl.data.style_grammar import detect_attributes, is_grammatical  # noqa: E402
from np_trl.data.style_population import STYLES, split_prompts  # noqa: E402


HERE = Path(__file__).resolve().parent
EXAMPLE = "style_population"


@dataclass
class ScriptArguments:
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads. `accelerate launch` gives a process one if this is not set."}
    )
    dataset_name: str = field(
        default=EXAMPLE,
        metadata={
            "help": f"'{EXAMPLE}', a file (parquet, JSON lines, CSV), or a dataset on the Hub, of training users."
        },
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "File or dataset of other users, to evaluate on. Default: split `test`."}
    )
    reward_steps: int = field(
        default=0,
        metadata={
            "help": "Steps of NP-BTL on the same embeddings, whose context encoder NP-DPO starts from. 0: none."
        },
    )
    reward_learning_rate: float = field(default=2e-3, metadata={"help": "Learning rate of that NP-BTL model."})
    mixed_dpo_steps: int = field(
        default=0, metadata={"help": "Steps of plain DPO on the mixture of all users, for comparison. 0: none."}
    )
    num_train_users: int = field(default=384, metadata={"help": f"Training users of '{EXAMPLE}'."})
    num_eval_users: int = field(default=160, metadata={"help": f"Evaluation users of '{EXAMPLE}', a multiple of 16."})


def load_datasets(script_args: ScriptArguments, training_args: NPDPOConfig) -> tuple[Dataset, Dataset]:
    if script_args.dataset_name != EXAMPLE:
        train_dataset = load_preferences(script_args.dataset_name, "train")
        return train_dataset, load_preferences(script_args.eval_dataset_name or script_args.dataset_name, "test")
    train_prompts, eval_prompts = split_prompts()
    seed = 2 * training_args.seed
    return (
        style_population(train_prompts, script_args.num_train_users, pairs_per_user=20, seed=seed),
        style_population(eval_prompts, script_args.num_eval_users, pairs_per_user=22, seed=seed + 1),
    )


def build_peft_config(model_args: ModelConfig, trainer_model: str, training_args: NPDPOConfig, columns: list[str]):
    """Build the LoRA config; where the trunk embeds the options, keep LoRA above it."""
    peft_config = get_peft_config(model_args)
    if peft_config is not None and "chosen_embeds" not in columns:
        num_layers = AutoConfig.from_pretrained(trainer_model).num_hidden_layers
        context_layer = (training_args.film_kwargs or {}).get("context_layer", num_layers // 2)
        peft_config.layers_to_transform = list(range(context_layer, num_layers))
    return peft_config


def train_context_encoder(trainer: NPDPOTrainer, steps: int, learning_rate: float) -> dict[str, float]:
    """Train NP-BTL on the embeddings of the policy's options and start the policy from its context encoder."""
    args, context_config = trainer.args, trainer.model.config.context_config
    reward_args = NPRewardConfig(
        output_dir=f"{args.output_dir}/np_reward",
        max_steps=steps,
        warmup_steps=steps // 10,
        lr_scheduler_type="cosine",
        learning_rate=learning_rate,
        num_targets=5,
        max_context=max(args.eval_num_contexts),
        context_in_target=False,
        eval_num_contexts=args.eval_num_contexts,
        eval_num_targets=args.eval_num_targets,
        save_strategy="no",
        report_to="none",
        logging_steps=100,
        seed=args.seed,
    )
    model = NPRewardModel(
        NPRewardModelConfig(
            embed_size=context_config.embed_size,
            hidden_size=context_config.hidden_size,
            context_config=context_config.to_diff_dict(),
        )
    )
    reward_trainer = NPRewardTrainer(
        model, args=reward_args, train_dataset=trainer.train_dataset, eval_dataset=trainer.eval_dataset
    )
    reward_trainer.train()
    reward_trainer.save_model()
    trainer.load_context_encoder(reward_args.output_dir)
    return reward_trainer.evaluate(metric_key_prefix="eval_reward")


def evaluate_mixed_dpo(trainer: NPDPOTrainer, model_args: ModelConfig, base: str, peft_config, steps: int) -> float:
    """Train plain DPO on the mixture of all users (BTL-DPO) and return its accuracy on the evaluation pairs."""
    args = trainer.args
    baseline_args = DPOConfig(
        output_dir=f"{args.output_dir}/mixed_dpo",
        max_steps=steps,
        per_device_train_batch_size=args.per_device_train_batch_size * args.num_targets,
        per_device_eval_batch_size=args.per_device_eval_batch_size * args.num_targets,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        beta=args.beta,
        loss_type=args.loss_type,
        loss_weights=args.loss_weights,
        bf16=args.bf16,
        gradient_checkpointing=args.gradient_checkpointing,
        save_strategy="no",
        report_to="none",
        logging_steps=20,
        seed=args.seed,
    )

    def head(dataset: Dataset, size: int) -> Dataset:
        dataset = dataset.select_columns(["prompt", "chosen", "rejected"]).shuffle(seed=args.seed)
        return dataset.select(range(min(size, len(dataset))))

    baseline = DPOTrainer(
        base,
        args=baseline_args,
        train_dataset=head(trainer.train_dataset, steps * baseline_args.per_device_train_batch_size),
        eval_dataset=head(trainer.eval_dataset, 1024),
        processing_class=trainer.processing_class,
        quantization_config=get_quantization_config(model_args),
        peft_config=peft_config,
    )
    baseline.train()
    return baseline.evaluate()["eval_rewards/accuracies"]


def worst_style(num_context: int) -> Callable[[EvalPrediction], dict[str, float]]:
    """Accuracy of the worst of the 16 types of users of the style population, whose user i has type i mod 16."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        users, num_contexts = prediction.label_ids.T
        selected = num_contexts == num_context
        margins, _, _ = prediction.predictions
        correct = margins[selected] > 0
        styles = users[selected] % len(STYLES)
        accuracies = [correct[styles == style].mean() for style in np.unique(styles)]
        return {f"nc{num_context}_worst_style_accuracy": float(min(accuracies))}

    return compute


@torch.no_grad()
def write(trainer: NPDPOTrainer, prompts: list[str], latents: torch.Tensor | None) -> list[str]:
    """Sample an answer to each prompt, for the user of the same row; for nobody without `latents`."""
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model).eval(), trainer.processing_class
    inputs = tokenizer(
        prompts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False
    ).to(model.device)
    users = {} if latents is None else {"latents": latents}
    outputs = model.generate(
        **inputs, **users, do_sample=True, temperature=0.7, top_p=0.95, top_k=0, max_new_tokens=64
    )
    return tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def infer_users(trainer: NPDPOTrainer, rows: PreferenceRows, num_context: int) -> torch.Tensor:
    """Infer the latent of every user from its first choices: `(users, Z)`."""
    context = torch.stack([rows.embeds(rows.of_user(user)[:num_context]) for user in range(len(rows))])
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    with torch.no_grad():
        return model.infer_latents(context.to(model.device), torch.ones(context.shape[:2], device=model.device))


def evaluate_generations(trainer: NPDPOTrainer, num_context: int, answers_per_user: int = 2) -> dict[str, float]:
    """
    Write for every evaluation user, and measure how many of the attributes are as the user wants them, and how many
    answers are grammatical; and the latter for the base model.
    """
    rows = PreferenceRows(trainer.eval_dataset)
    latents = infer_users(trainer, rows, num_context).repeat_interleave(answers_per_user, dim=0)
    _, eval_prompts = split_prompts()
    prompts = [eval_prompts[index % len(eval_prompts)] for index in range(len(latents))]
    torch.manual_seed(trainer.args.seed)
    answers = write(trainer, prompts, latents)
    styles = [STYLES[index // answers_per_user % len(STYLES)] for index in range(len(latents))]
    wanted = [np.equal(detect_attributes(answer), style) for answer, style in zip(answers, styles, strict=True)]
    per_user = np.mean(wanted, axis=1).reshape(-1, answers_per_user).mean(axis=1)
    with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
        base_answers = write(trainer, prompts, None)
    return {
        f"eval_nc{num_context}_steering_accuracy": float(per_user.mean()),
        f"eval_nc{num_context}_steering_accuracy_se": float(per_user.std(ddof=1) / len(per_user) ** 0.5),
        f"eval_nc{num_context}_grammatical": share_grammatical(prompts, answers),
        "eval_base_grammatical": share_grammatical(prompts, base_answers),
    }


def share_grammatical(prompts: list[str], answers: list[str]) -> float:
    return float(np.mean([is_grammatical(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]))


def print_curve(metrics: dict[str, float], num_contexts: list[int]) -> None:
    def show(name: str, template: str) -> None:
        values = [metrics.get(template.format(n)) for n in num_contexts]
        if any(value is not None for value in values):
            print(f"{name:<30}" + "".join(f"{'' if value is None else f'{value:.3f}':>8}" for value in values))

    print(f"\n{'context pairs':<30}" + "".join(f"{n:>8}" for n in num_contexts))
    show("accuracy on unseen pairs", "eval_nc{}_accuracy")
    show("  standard error", "eval_nc{}_accuracy_se")
    show("  Bayes limit", "eval_nc{}_bayes_accuracy")
    show("  worst of the 16 types", "eval_nc{}_worst_style_accuracy")
    show("  other users' contexts", "eval_nc{}_shuffled_accuracy")
    show("  NP-BTL reward model", "eval_reward_nc{}_accuracy")
    show("written as the user wants", "eval_nc{}_steering_accuracy")
    show("written grammatically", "eval_nc{}_grammatical")
    if "eval_btl_dpo_accuracy" in metrics:
        print(f"plain DPO on all users: accuracy {metrics['eval_btl_dpo_accuracy']:.3f}")


def print_two_users(trainer: NPDPOTrainer, num_context: int) -> None:
    """Print answers to the same prompts for two opposite users, after their choices, and for nobody."""
    latents = infer_users(trainer, PreferenceRows(trainer.eval_dataset), num_context)
    _, eval_prompts = split_prompts()
    readers = {
        "who chose long, formal, sure lists": latents[STYLES.index((1, 1, 1, -1))],
        "who chose short, casual, hedged prose": latents[STYLES.index((-1, -1, -1, 1))],
    }
    for prompt in eval_prompts[:2]:
        print(f"\n{prompt}")
        for name, latent in readers.items():
            print(f"  to a user {name}:")
            print("   " + write(trainer, [prompt], latent.unsqueeze(0))[0].replace("\n", "\n    "))


def save_merged(trainer: NPDPOTrainer, output_dir: str) -> None:
    """Save the policy with LoRA merged into it and its code beside it, so that it loads in one line."""
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(output_dir)
        trainer.processing_class.save_pretrained(output_dir)


def main(script_args: ScriptArguments, training_args: NPDPOConfig, model_args: ModelConfig) -> None:
    if script_args.num_threads is not None:
        torch.set_num_threads(script_args.num_threads)
    is_example = script_args.dataset_name == EXAMPLE
    base = model_args.model_name_or_path or str(HERE / "style_gemma")
    num_context = max(training_args.eval_num_contexts)
    train_dataset, eval_dataset = load_datasets(script_args, training_args)
    peft_config = build_peft_config(model_args, base, training_args, train_dataset.column_names)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = NPDPOTrainer(
        base,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=AutoTokenizer.from_pretrained(base),
        compute_metrics=worst_style(num_context) if is_example else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=copy.deepcopy(peft_config),
    )
    metrics = {}
    if script_args.reward_steps:
        metrics |= train_context_encoder(trainer, script_args.reward_steps, script_args.reward_learning_rate)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    metrics |= trainer.evaluate()
    if script_args.mixed_dpo_steps:
        metrics["eval_btl_dpo_accuracy"] = evaluate_mixed_dpo(
            trainer, model_args, base, peft_config, script_args.mixed_dpo_steps
        )
    if is_example:
        for number, accuracy in style_bayes_accuracy(training_args.eval_num_contexts).items():
            metrics[f"eval_nc{number}_bayes_accuracy"] = accuracy
        metrics |= evaluate_generations(trainer, num_context)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        print_curve(metrics, training_args.eval_num_contexts)
        if is_example:
            print_two_users(trainer, num_context)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.save_model(training_args.output_dir)
    if is_example:
        save_merged(trainer, f"{training_args.output_dir}/merged")
    trainer.accelerator.print(f"\nModel and eval_results.json: {training_args.output_dir}")


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, NPDPOConfig, ModelConfig))
    arguments = sys.argv[1:] or ["--config", str(HERE / "configs" / "np_dpo_style.yaml")]
    main(*parser.parse_args_and_config(arguments))
