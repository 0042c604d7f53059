"""The command that trains NP-DPO: `np-trl dpo`, `examples/np_dpo.py`."""

import copy
import sys
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import AutoTokenizer, set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from np_trl.data.preference_rows import EMBED_COLUMNS, PreferenceRows
from np_trl.data.ranges import check_at_least
from np_trl.evaluation.dpo_baselines import BASELINES, DPOBaselines
from np_trl.evaluation.generations import Generations, StyleJudge
from np_trl.evaluation.policy_evaluation import PolicyEvaluation
from np_trl.evaluation.user_samples import UserSamples
from np_trl.files import whole_file
from np_trl.populations.built_in import POPULATIONS, Population
from np_trl.scripts.command_parser import CommandParser
from np_trl.scripts.demo import STYLE_GEMMA
from np_trl.scripts.preference_arguments import PreferenceArguments
from np_trl.trainer import NPDPOConfig, NPDPOTrainer
from np_trl.trainer.policy import read_policy_config


@dataclass
class ScriptArguments(PreferenceArguments):
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads. `accelerate launch` gives a process one if this is not set."}
    )
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
    num_train_users: int = field(default=384, metadata={"help": "Training users of a population of the package."})
    num_eval_users: int = field(
        default=160, metadata={"help": "Evaluation users of a population of the package, a multiple of 16."}
    )
    answers_per_user: int = field(
        default=2, metadata={"help": "Answers written for each evaluation user of a population of the package."}
    )

    def __post_init__(self):
        check_at_least(1, num_train_users=self.num_train_users, answers_per_user=self.answers_per_user)
        if self.baseline_steps is not None:
            check_at_least(1, baseline_steps=self.baseline_steps)
        if self.population is not None:
            check_at_least(len(self.population.attributes.styles), num_eval_users=self.num_eval_users)
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise ValueError(f"`baselines` {unknown} are unknown. Choose among {list(BASELINES)}.")

    @property
    def population(self) -> Population | None:
        """The population of the package that `dataset_name` names, if it does."""
        return POPULATIONS.get(self.dataset_name)

    def draw(self, seed: int) -> tuple[Dataset, Dataset]:
        """Draw training and evaluation users of the population."""
        return self.population.draw(self.num_train_users, self.num_eval_users, seed)


class TrainerBuilder:
    """
    Builds trainers on the base model that the command line names.

    Args:
        training_args ([`NPDPOConfig`]), model_args ([`ModelConfig`]):
            Arguments.
        embedded (`bool`):
            Whether the data sets have embedding columns. Where they do not, LoRA is kept above the trunk, which embeds the
            options; so it is where FiLM is.
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
        film = self.film_kwargs or {}
        if self.peft_config is not None and (not embedded or film.get("film_layers") == "above_trunk"):
            context_layer = film.get("context_layer", num_layers // 2)
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


def evaluate_generations(
    trainer: NPDPOTrainer,
    population: Population,
    num_context: int,
    answers_per_user: int,
    opponent: NPDPOTrainer | None,
) -> dict[str, float]:
    """
    Write for every user of a population: the share of attributes as wanted, how often more of them are than in what the
    mixture's policy writes, the quality of the answers, and statistics.
    """
    evaluation = PolicyEvaluation.of_trainer(trainer)
    generations = Generations(evaluation, num_context, answers_per_user, population.max_new_tokens)
    judge = StyleJudge(generations.rows, population.attributes)
    metrics = generations.evaluate(
        judge, None if opponent is None else opponent.accelerator.unwrap_model(opponent.model)
    )
    for name, texts in generations.texts.items():
        prefix = "" if name == "policy" else f"{name}_"
        described = judge.describe(texts, generations.users)
        described |= {key: measure(generations.prompts, texts) for key, measure in population.quality.items()}
        metrics |= {f"{prefix}{key}": value for key, value in described.items()}
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


def two_users(trainer: NPDPOTrainer, population: Population | None) -> UserSamples:
    """Samples for two opposite users of a population, or for two users of the evaluation set."""
    if population is None:
        return UserSamples(trainer)
    users, names = PreferenceRows(trainer.eval_dataset).user_ids, population.attributes.styles
    readers = {
        str(users[names.index(style)]): f"a user who chose {name}" for style, name in population.readers.items()
    }
    return UserSamples(trainer, readers, population.prompts, population.max_new_tokens)


def main(script_args: ScriptArguments, training_args: NPDPOConfig, model_args: ModelConfig) -> None:
    if script_args.num_threads is not None:
        check_at_least(1, num_threads=script_args.num_threads)
        torch.set_num_threads(script_args.num_threads)
    population, num_context = script_args.population, max(training_args.eval_num_contexts)
    is_loaded = population is None
    train_dataset, eval_dataset = script_args.load() if is_loaded else script_args.draw(training_args.seed)

    build = TrainerBuilder(training_args, model_args, embedded=set(EMBED_COLUMNS) <= set(train_dataset.column_names))
    trainer = build(args=training_args, train_dataset=train_dataset, eval_dataset=eval_dataset)
    trainer.create_model_card(dataset_name=script_args.dataset_name)
    samples = two_users(trainer, population)
    trainer.add_callback(samples)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    metrics = {**trainer.reward_metrics, **trainer.evaluate()}
    trainer.save_model(training_args.output_dir)

    trainer.save_metrics("eval", metrics)  # whatever becomes of the baselines

    dedicated = {"dedicated_column": script_args.dedicated_column, "dedicated_groups": script_args.dedicated_groups}
    baselines = DPOBaselines(trainer, build, script_args.baseline_steps, **dedicated)
    for name in script_args.baselines:
        metrics |= baselines.measure(name)
    if population is not None:
        if trainer.is_world_process_zero():
            with whole_file(f"{training_args.output_dir}/users.parquet") as part:
                eval_dataset.to_parquet(part)
        for number, accuracy in population.limit(training_args.eval_num_contexts).items():
            metrics[f"eval_nc{number}_bayes_accuracy"] = accuracy
        mixture = baselines.policies.get("mixture")
        metrics |= evaluate_generations(trainer, population, num_context, script_args.answers_per_user, mixture)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        print_curve(metrics, training_args.eval_num_contexts)
    samples.print()
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
