"""The command that trains NP-DPO: `np-trl dpo`, `examples/np_dpo.py`."""

import copy
import sys
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from np_trl.data.preference_rows import EMBED_COLUMNS
from np_trl.data.ranges import check_at_least
from np_trl.evaluation.dpo_baselines import BASELINES, DPOBaselines
from np_trl.evaluation.generations import Generations, share_grammatical, style_judge
from np_trl.evaluation.policy_evaluation import PolicyEvaluation
from np_trl.files import whole_file
from np_trl.models import NPRewardModel, NPRewardModelConfig
from np_trl.populations import style_bayes_accuracy, style_population
from np_trl.populations.style import STYLES, split_prompts
from np_trl.scripts.command_parser import CommandParser
from np_trl.scripts.demo import STYLE_GEMMA
from np_trl.scripts.preference_arguments import PreferenceArguments
from np_trl.trainer import NPDPOConfig, NPDPOTrainer, NPRewardConfig, NPRewardTrainer
from np_trl.trainer.policy import read_policy_config


EXAMPLE = "style_population"


@dataclass
class ScriptArguments(PreferenceArguments):
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads. `accelerate launch` gives a process one if this is not set."}
    )
    reward_steps: int = field(
        default=0,
        metadata={
            "help": "Steps of NP-BTL on the same embeddings, whose context encoder NP-DPO starts from. 0: none."
        },
    )
    reward_learning_rate: float = field(default=2e-3, metadata={"help": "Learning rate of that NP-BTL model."})
    baselines: list[str] = field(
        default_factory=list, metadata={"help": f"What to train and evaluate beside it: {', '.join(BASELINES)}."}
    )
    baseline_steps: int | None = field(
        default=None, metadata={"help": "Steps of each baseline. Default: as many as NP-DPO."}
    )
    dedicated_column: str | None = field(
        default=None,
        metadata={"help": "Column of the groups that have a dedicated policy. Default: --eval_group_column."},
    )
    dedicated_groups: list[str] | None = field(
        default=None, metadata={"help": "Groups that have a dedicated policy. Default: all."}
    )
    num_train_users: int = field(default=384, metadata={"help": f"Training users of '{EXAMPLE}'."})
    num_eval_users: int = field(default=160, metadata={"help": f"Evaluation users of '{EXAMPLE}', a multiple of 16."})

    def __post_init__(self):
        self.dataset_name = self.dataset_name or EXAMPLE
        check_at_least(0, reward_steps=self.reward_steps)
        check_at_least(1, num_train_users=self.num_train_users)
        if self.baseline_steps is not None:
            check_at_least(1, baseline_steps=self.baseline_steps)
        check_at_least(len(STYLES), num_eval_users=self.num_eval_users)
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise ValueError(f"`baselines` {unknown} are unknown. Choose among {list(BASELINES)}.")

    def draw(self, seed: int) -> tuple[Dataset, Dataset]:
        """Draw training and evaluation users of the style population."""
        train_prompts, eval_prompts = split_prompts()
        return (
            style_population(train_prompts, self.num_train_users, pairs_per_user=20, seed=2 * seed),
            style_population(eval_prompts, self.num_eval_users, pairs_per_user=22, seed=2 * seed + 1),
        )


class TrainerBuilder:
    """
    Builds trainers on the base model that the command line names.

    Args:
        training_args ([`NPDPOConfig`]), model_args ([`ModelConfig`]):
            Arguments.
        embedded (`bool`):
            Whether the data sets have embedding columns. Where they do not, LoRA is kept above the trunk, which embeds the
            options.
    """

    def __init__(self, training_args: NPDPOConfig, model_args: ModelConfig, embedded: bool):
        self.model_args, self.film_kwargs = model_args, training_args.film_kwargs
        self.base = model_args.model_name_or_path or STYLE_GEMMA
        self.source = {
            "revision": model_args.model_revision,
            "trust_remote_code": training_args.trust_remote_code,
        }
        self.model_init_kwargs = {
            "revision": model_args.model_revision,
            "attn_implementation": model_args.attn_implementation,
            "dtype": model_args.dtype,
            **(training_args.model_init_kwargs or {}),
        }
        self.peft_config = get_peft_config(model_args)
        num_layers = read_policy_config(self.base, **self.source).num_hidden_layers  # or raises the error of the base
        if self.peft_config is not None and not embedded:
            context_layer = (self.film_kwargs or {}).get("context_layer", num_layers // 2)
            self.peft_config.layers_to_transform = list(range(context_layer, num_layers))

    def __call__(self, args: NPDPOConfig, **datasets) -> NPDPOTrainer:
        args.model_init_kwargs, args.film_kwargs = dict(self.model_init_kwargs), copy.deepcopy(self.film_kwargs)
        set_seed(args.seed)  # before LoRA, FiLM and the context encoder start
        return NPDPOTrainer(
            self.base,
            args=args,
            processing_class=AutoTokenizer.from_pretrained(self.base, **self.source),
            quantization_config=get_quantization_config(self.model_args),
            peft_config=copy.deepcopy(self.peft_config),
            **datasets,
        )


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
        **args.evaluation_protocol.as_arguments(),
        drop_short_users=True,
        bf16=args.bf16,  # one setting for the process: another would change that of the policy
        fp16=args.fp16,
        use_cpu=args.use_cpu,
        save_strategy="no",
        report_to="none",
        logging_steps=100,
        seed=args.seed,
        data_seed=args.data_seed,
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
    trainer.accelerator.wait_for_everyone()
    trainer.load_context_encoder(reward_args.output_dir)
    return reward_trainer.evaluate(metric_key_prefix="eval_reward")


def evaluate_generations(trainer: NPDPOTrainer, num_context: int, baselines: DPOBaselines) -> dict[str, float]:
    """
    Write for every user of the style population: the share of attributes as wanted, how often more of them are than in
    what the mixture's policy writes, the share of grammatical answers, and statistics.
    """
    generations = Generations(PolicyEvaluation.of_trainer(trainer), num_context)
    judge, mixture = style_judge(generations.rows), baselines.policies.get("mixture")
    opponent = None if mixture is None else mixture.accelerator.unwrap_model(mixture.model)
    metrics = generations.evaluate(judge, opponent)
    scores = judge(generations.prompts, generations.texts["policy"], generations.users)
    metrics["steering_accuracy"] = float(scores.mean())
    metrics["grammatical"] = share_grammatical(generations.prompts, generations.texts["policy"])
    metrics["base_grammatical"] = share_grammatical(generations.prompts, generations.texts["base"])
    return {f"eval_nc{num_context}_{key}": value for key, value in metrics.items()}


def print_curve(metrics: dict[str, float], num_contexts: list[int]) -> None:
    def show(name: str, template: str) -> None:
        values = [metrics.get(template.format(n)) for n in num_contexts]
        if any(value is not None for value in values):
            print(f"{name:<30}" + "".join(f"{'' if value is None else f'{value:.3f}':>8}" for value in values))

    print(f"\n{'context pairs':<30}" + "".join(f"{n:>8}" for n in num_contexts))
    show("accuracy on unseen pairs", "eval_nc{}_accuracy")
    show("  standard error", "eval_nc{}_accuracy_se")
    show("  Bayes limit", "eval_nc{}_bayes_accuracy")
    show("  worst group", "eval_nc{}_worst_group_accuracy")
    show("  other users' contexts", "eval_nc{}_shuffled_accuracy")
    show("NP-BTL reward model", "eval_reward_nc{}_accuracy")
    for name in BASELINES:
        show(f"DPO, {name}", f"eval_{name}_nc{{}}_accuracy")
    show("written as the user wants", "eval_nc{}_steering_accuracy")
    show("  better than the mixture's", "eval_nc{}_win_rate")
    show("written grammatically", "eval_nc{}_grammatical")


def print_two_users(trainer: NPDPOTrainer, num_context: int) -> None:
    """Print answers to the same prompts for two opposite users of the style population, after their choices."""
    generations = Generations(PolicyEvaluation.of_trainer(trainer), num_context, answers_per_user=1)
    readers = {
        "who chose long, formal, sure lists": STYLES.index((1, 1, 1, -1)),
        "who chose short, casual, hedged prose": STYLES.index((-1, -1, -1, 1)),
    }
    _, prompts = split_prompts()
    for prompt in prompts[:2]:
        print(f"\n{prompt}")
        for name, user in readers.items():
            (answer,) = generations.write([prompt], user)
            print(f"  to a user {name}:")
            print("   " + answer.replace("\n", "\n    "))


def main(script_args: ScriptArguments, training_args: NPDPOConfig, model_args: ModelConfig) -> None:
    if script_args.num_threads is not None:
        check_at_least(1, num_threads=script_args.num_threads)
        torch.set_num_threads(script_args.num_threads)
    is_example, num_context = script_args.dataset_name == EXAMPLE, max(training_args.eval_num_contexts)
    train_dataset, eval_dataset = script_args.draw(training_args.seed) if is_example else script_args.load()

    build = TrainerBuilder(training_args, model_args, embedded=set(EMBED_COLUMNS) <= set(train_dataset.column_names))
    trainer = build(args=training_args, train_dataset=train_dataset, eval_dataset=eval_dataset)
    trainer.create_model_card(dataset_name=script_args.dataset_name)
    metrics = {}
    if script_args.reward_steps:
        metrics |= train_context_encoder(trainer, script_args.reward_steps, script_args.reward_learning_rate)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    metrics |= trainer.evaluate()
    trainer.save_model(training_args.output_dir)

    trainer.save_metrics("eval", metrics)  # whatever becomes of the baselines

    dedicated = {"dedicated_column": script_args.dedicated_column, "dedicated_groups": script_args.dedicated_groups}
    baselines = DPOBaselines(trainer, build, script_args.baseline_steps, **dedicated)
    for name in script_args.baselines:
        metrics |= baselines.measure(name)
    if is_example:
        if trainer.is_world_process_zero():
            with whole_file(f"{training_args.output_dir}/users.parquet") as part:
                eval_dataset.to_parquet(part)
        for number, accuracy in style_bayes_accuracy(training_args.eval_num_contexts).items():
            metrics[f"eval_nc{number}_bayes_accuracy"] = accuracy
        metrics |= evaluate_generations(trainer, num_context, baselines)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        print_curve(metrics, training_args.eval_num_contexts)
        if is_example:
            print_two_users(trainer, num_context)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    if trainer.model.config.modulation.needs_lora:
        trainer.accelerator.print("\nWith LoRA gates no merged policy serves all users: `np-trl export` writes each.")
    else:
        merged_id = f"{trainer.hub_model_id}-merged" if training_args.push_to_hub else None
        trainer.save_merged(f"{training_args.output_dir}/merged", merged_id)
        for name, policy in baselines.policies.items():
            policy.save_merged(f"{training_args.output_dir}/{name}")
    trainer.accelerator.print(f"\nModel and eval_results.json: {training_args.output_dir}")


def run() -> None:
    """Parse the command line and run."""
    parser = CommandParser("dpo", (ScriptArguments, NPDPOConfig, ModelConfig))
    arguments = sys.argv[1:] or ["--config", "np_dpo_style"]
    main(*parser.parse_args_and_config(arguments))
