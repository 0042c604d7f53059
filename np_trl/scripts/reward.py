"""The command that trains NP-BTL: `np-trl reward`, `examples/np_reward.py`."""

import copy
import sys
from dataclasses import dataclass, field

import torch
from transformers import set_seed

from np_trl.data.embeddings import add_option_ids
from np_trl.data.ranges import check_at_least
from np_trl.populations.piecewise import piecewise_bayes_accuracy, piecewise_population
from np_trl.scripts.command_parser import CommandParser
from np_trl.scripts.preference_arguments import PreferenceArguments
from np_trl.scripts.reward_model_arguments import RewardModelArguments
from np_trl.trainer import NPRewardConfig, NPRewardTrainer


EXAMPLE = "example_4_1"


@dataclass
class ScriptArguments(PreferenceArguments):
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads. `accelerate launch` gives a process one if this is not set."}
    )

    def __post_init__(self):
        self.dataset_name = self.dataset_name or EXAMPLE


def add_baselines(metrics: dict, trainer: NPRewardTrainer, model_args: RewardModelArguments) -> None:
    """Train BTL and DPL, which know no users and need no context, with the same data."""
    args = copy.copy(trainer.args)
    args.max_context, args.eval_num_contexts, args.eval_shuffled_contexts = 0, [0], []
    args.push_to_hub, args.save_strategy = False, "no"
    args.max_steps = min(args.max_steps, 300)  # there is no context to learn to read
    for name, head in (("btl", "bradley_terry"), ("dpl", "mean_variance")):
        model = model_args.build(trainer.train_dataset, conditional=False, head=head)
        baseline = NPRewardTrainer(
            model, args=args, train_dataset=trainer.train_dataset, eval_dataset=trainer.eval_dataset
        )
        baseline.train()
        baseline_metrics = baseline.evaluate()
        for key in ("accuracy", "accuracy_se", "nll"):
            metrics[f"eval_{name}_{key}"] = baseline_metrics[f"eval_nc0_{key}"]


def print_table(metrics: dict, num_contexts: list[int]) -> None:
    def show(name: str, keys: list[str]) -> None:
        print(f"{name:<28}" + "".join(f"{metrics[key]:>9.4f}" if key in metrics else f"{'':>9}" for key in keys))

    print(f"\n{'N_C':<28}" + "".join(f"{n:>9}" for n in num_contexts))
    show("NP-BTL accuracy", [f"eval_nc{n}_accuracy" for n in num_contexts])
    show("  standard error", [f"eval_nc{n}_accuracy_se" for n in num_contexts])
    show("  NLL", [f"eval_nc{n}_nll" for n in num_contexts])
    show("  other users' contexts", [f"eval_nc{n}_shuffled_accuracy" for n in num_contexts])
    if "eval_btl_accuracy" in metrics:
        show("Bayes limit", [f"eval_nc{n}_bayes_accuracy" for n in num_contexts])
        show("BTL accuracy", ["eval_btl_accuracy"] * len(num_contexts))
        show("DPL accuracy", ["eval_dpl_accuracy"] * len(num_contexts))


def main(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> None:
    if script_args.num_threads is not None:
        check_at_least(1, num_threads=script_args.num_threads)
        torch.set_num_threads(script_args.num_threads)
    if script_args.dataset_name == EXAMPLE:
        train_dataset = piecewise_population(num_users=4000, pairs_per_user=40, seed=2 * training_args.seed)
        eval_dataset = piecewise_population(num_users=2000, pairs_per_user=30, seed=2 * training_args.seed + 1)
    else:
        train_dataset, eval_dataset = script_args.load()
    if model_args.option_vectors:
        train_dataset, eval_dataset = add_option_ids(train_dataset), add_option_ids(eval_dataset)

    set_seed(training_args.seed)  # before the model starts
    model = model_args.build(train_dataset, embedding_kind=script_args.embedding_kind)
    trainer = NPRewardTrainer(model, args=training_args, train_dataset=train_dataset, eval_dataset=eval_dataset)
    trainer.create_model_card(dataset_name=script_args.dataset_name)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    metrics = trainer.evaluate()

    if script_args.dataset_name == EXAMPLE:
        for num_context, accuracy in piecewise_bayes_accuracy(training_args.eval_num_contexts).items():
            metrics[f"eval_nc{num_context}_bayes_accuracy"] = accuracy
        add_baselines(metrics, trainer, model_args)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        print_table(metrics, training_args.eval_num_contexts)
        print(f"\nModel and eval_results.json: {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub()


def run() -> None:
    """Parse the command line and run."""
    parser = CommandParser("reward", (ScriptArguments, NPRewardConfig, RewardModelArguments))
    arguments = sys.argv[1:] or ["--config", f"np_reward_{EXAMPLE}"]
    main(*parser.parse_args_and_config(arguments))
