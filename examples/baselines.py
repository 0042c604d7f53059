"""
NP-BTL beside what else predicts the choices of new users, from the same embeddings and evaluated on the same tasks. All are
trained as the recipe says, but for models that read no context (300 steps at most) and the linear features (5 epochs);
option vectors are NP-BTL's, BTL's, DPL's and VPL's.

```sh
python examples/baselines.py --config examples/configs/np_reward_jester.yaml --num_features 96 --output_dir runs/baselines_jester
```

The rows of the table:

- population: Borda scores of the options, where they recur (`--recurring_options`);
- pooled BTL, DPL: one reward for everybody, or its normal distribution (Siththaranjan et al., 2024);
- dedicated BTL: a BTL model for each value of `--group_column`, which no other row knows: an upper bound;
- from scratch: a logistic regression on each user's context alone;
- mean difference: options scored by the mean of (chosen - rejected) of the context, without training;
- linear features: features shared by the training users, a logistic regression on them for a new one (as in RFM, PReF, LoRe);
- empirical Bayes: the same, but learned through the new user's regression;
- VPL: a variational encoder with a standard normal prior (Poddar et al., 2024);
- NP-BTL.
"""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, set_seed
from trl import TrlParser

from np_trl import NPRewardConfig, NPRewardModelConfig, NPRewardTrainer, evaluate_users
from np_trl.data import PreferenceRows
from np_trl.data.embeddings import add_option_ids
from np_trl.data.preference_rows import option_ids
from np_trl.evaluation.report import save_report, summarize_runs
from np_trl.evaluation.reward_baselines import PopulationScore, empirical_bayes, from_scratch, linear_features
from np_trl.models.layers import fit_standardizers
from np_trl.scripts.preference_arguments import PreferenceArguments
from np_trl.scripts.reward_model_arguments import RewardModelArguments


# one number is trained: the variance of the prior
PRIOR_ONLY = {"max_steps": 100, "learning_rate": 0.2, "warmup_steps": 0, "weight_decay": 0.0}
# self-attention over concatenated pairs, one Gaussian latent, nothing linear in the encoder
VPL_ENCODER = {
    "latent_distribution": "gaussian",
    "pair_features": "concatenation",
    "pooling": "attention",
    "linear_skip": False,
    "memory_size": 0,
}
# at a weight of 1 the latent is never used
VPL_TRAINING = {"latent_objective": "vpl", "kl_weight": 0.01, "num_latent_samples": 4}


@dataclass
class ScriptArguments(PreferenceArguments):
    num_seeds: int = field(default=3, metadata={"help": "Number of runs, with the seeds `seed`, `seed + 1`, ..."})
    num_features: int = field(default=16, metadata={"help": "Features of the linear and the empirical Bayes model."})
    group_column: str | None = field(
        default=None, metadata={"help": "Column that tells apart the groups of users that have a dedicated BTL model."}
    )
    recurring_options: bool = field(
        default=False, metadata={"help": "Whether the options of new users are those of the training users."}
    )
    only: list[str] = field(default_factory=list, metadata={"help": "Rows of the table to measure. Default: all."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads."})


class Comparison:
    """
    The rows of the table on one training and one evaluation set, for one seed.

    Args:
        script_args ([`ScriptArguments`]), training_args ([`NPRewardConfig`]), model_args ([`RewardModelArguments`]):
            Arguments. The training arguments are those of NP-BTL, and the other models are trained with them too.
        train_dataset ([`~datasets.Dataset`]), eval_dataset ([`~datasets.Dataset`]):
            Pairs of training users and of new ones.
    """

    def __init__(self, script_args, training_args, model_args, train_dataset: Dataset, eval_dataset: Dataset):
        self.script_args, self.training_args, self.model_args = script_args, training_args, model_args
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.embed_size = len(train_dataset[0]["chosen_embeds"])

    def rows(self) -> dict:
        """The name of each row, and what measures it."""
        rows = {
            "population": self.population if self.script_args.recurring_options else None,
            "pooled BTL": lambda: self.without_context(self.build(conditional=False)),
            "DPL": lambda: self.without_context(self.build(conditional=False, head="mean_variance")),
            "dedicated BTL": self.dedicated if self.script_args.group_column else None,
            "from scratch": lambda: self.measure(
                from_scratch(self.config(self.embed_size, hidden_size=0)), **PRIOR_ONLY
            ),
            "mean difference": self.mean_difference,
            "linear features": self.linear_features,
            "empirical Bayes": lambda: self.measure(empirical_bayes(self.linear_config())),
            "VPL": lambda: self.measure(self.build(VPL_ENCODER), **VPL_TRAINING),
            "NP-BTL": lambda: self.measure(self.build()),
        }
        return {name: measure for name, measure in rows.items() if measure is not None}

    def build(self, context_config: dict | None = None, **fields) -> PreTrainedModel:
        return self.model_args.build(self.train_dataset, context_config=context_config, **fields)

    def evaluate(self, model: PreTrainedModel) -> dict[str, float]:
        """Evaluate a model that is not trained, with the statistics of the training set."""
        fit_standardizers(model, PreferenceRows(self.train_dataset).sample_embeds())
        args = self.training_args
        metrics = evaluate_users(
            model,
            self.eval_dataset,
            args.evaluation_protocol,
            drop_short_users=args.drop_short_users,
            drop_ties=args.drop_ties,
            batch_size=args.eval_batch_size,
        )
        return {key.removeprefix("eval_"): value for key, value in metrics.items()}

    def measure(self, model: PreTrainedModel, groups: dict | None = None, **changes) -> dict:
        """Train a model with the arguments of NP-BTL but for `changes`, and evaluate it."""
        args = dataclasses.replace(self.training_args, **changes)
        datasets = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset, **(groups or {})}
        trainer = NPRewardTrainer(model, args=args, **datasets)
        trainer.train()
        metrics = trainer.evaluate()
        return {key.removeprefix("eval_"): value for key, value in metrics.items() if key.startswith("eval_nc")}

    def without_context(self, model: PreTrainedModel, groups: dict | None = None) -> dict[str, float]:
        """Measure a model that knows no users, in fewer steps: there is no context to learn to read."""
        num_steps = min(self.training_args.max_steps, 300)
        return self.measure(model, groups, max_steps=num_steps, min_context=0, max_context=0)

    def linear_config(self) -> NPRewardModelConfig:
        """Features of the options are learned."""
        sizes = {"hidden_size": self.model_args.hidden_size, "dropout": self.model_args.dropout}
        return self.config(self.script_args.num_features, **sizes)

    def config(self, num_features: int, **fields) -> NPRewardModelConfig:
        context_config = {"latent_size": num_features, "memory_size": num_features}
        return NPRewardModelConfig(
            embed_size=self.embed_size, conditional=False, context_config=context_config, **fields
        )

    def population(self) -> dict[str, float]:
        config = self.build(conditional=False, option_ids=option_ids(self.train_dataset)).config
        return self.evaluate(PopulationScore(config).fit(self.train_dataset))

    def mean_difference(self) -> dict[str, float]:
        # the untrained model, with a memory that is wide enough for the embedding itself
        encoder = {"memory_weights": "gate", "memory_size": self.embed_size, "latent_size": self.embed_size}
        return self.evaluate(self.build(encoder))

    def linear_features(self) -> dict[str, float]:
        return self.measure(linear_features(self.linear_config(), self.train_dataset), **PRIOR_ONLY)

    def dedicated(self) -> dict[str, float]:
        """The mean over groups, each with the model of its own."""
        column = self.script_args.group_column
        measured = []
        for group in self.eval_dataset.unique(column):
            groups = {
                "train_dataset": self.train_dataset.filter(lambda row, group=group: row[column] == group),
                "eval_dataset": self.eval_dataset.filter(lambda row, group=group: row[column] == group),
            }
            measured.append(self.without_context(self.build(conditional=False), groups))
        keys = [key for key in measured[0] if not key.endswith("_se") and "decile" not in key]  # those are no means
        return {key: sum(metrics[key] for metrics in measured) / len(measured) for key in keys}


def print_table(table: dict[str, dict[str, float]], num_contexts: list[int]) -> None:
    for key in ("accuracy", "accuracy_se", "worst_decile_accuracy", "shuffled_accuracy", "nll"):
        print(f"\n{key:<20}" + "".join(f"{n:>9}" for n in num_contexts))
        for name, figures in table.items():
            cells = [figures.get(f"nc{n}_{key}") for n in num_contexts]
            print(f"{name:<20}" + "".join(f"{'':>9}" if cell is None else f"{cell:>9.4f}" for cell in cells))


def main(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> None:
    if script_args.num_threads is not None:
        torch.set_num_threads(script_args.num_threads)
    train_dataset, eval_dataset = script_args.load()
    if script_args.recurring_options or model_args.option_vectors:
        train_dataset, eval_dataset = add_option_ids(train_dataset), add_option_ids(eval_dataset)
    runs = defaultdict(list)
    for seed in range(training_args.seed, training_args.seed + script_args.num_seeds):
        args = dataclasses.replace(training_args, seed=seed)
        for name, measure in Comparison(script_args, args, model_args, train_dataset, eval_dataset).rows().items():
            if not script_args.only or name in script_args.only:
                set_seed(seed)
                runs[name].append(measure())
    table = {name: summarize_runs(metrics) for name, metrics in runs.items()}
    print_table(table, training_args.eval_num_contexts)
    save_report(Path(training_args.output_dir) / "baselines.json", table, num_seeds=script_args.num_seeds)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, NPRewardConfig, RewardModelArguments)).parse_args_and_config())
