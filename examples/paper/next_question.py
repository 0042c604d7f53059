"""
Section 7: how fast a new user is known if the questions are chosen (`select_pairs`), and if they are drawn at random.

Each new user's pairs are split: half of them, at most `num_open`, are questions that may be asked, the others are what the
user's choices are predicted on. Both ways of asking draw from the same questions. Reward models are trained here, one a
seed; policies were trained before.

```sh
python examples/paper/next_question.py --figure next_question_4_1
python examples/paper/next_question.py --figure next_question_4_3 --dataset_name example_4_3
python examples/paper/next_question.py --figure next_question_style --config examples/configs/np_reward_style.yaml
python examples/paper/next_question.py --figure next_question_jester --config examples/configs/np_reward_jester.yaml
python examples/paper/next_question.py --figure next_question_policy --config examples/configs/np_reward_style.yaml \
    --policies runs/policy_0 runs/policy_1 runs/policy_2 --num_users 32 --num_open 24 --num_samples 16
```

The policy of seed 0 is that of `np_dpo.py --config examples/configs/np_dpo_style.yaml --seed 0 --output_dir runs/policy_0`.
`next_question_policy_imagined_10` is measured with `--num_imagined 10`.
"""

from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import Dataset
from figures import COLORS, HERE, FigureArguments, error_bars, fit, parse, with_seed

from np_trl import (
    NPRewardConfig,
    QuestionPool,
    TextEmbedder,
    UserProfile,
    load_policy,
    select_pairs,
)
from np_trl.data import PreferenceRows
from np_trl.data.embeddings import add_option_ids
from np_trl.data.loading import with_roles
from np_trl.evaluation.report import summarize_runs
from np_trl.populations import style_population
from np_trl.populations.correlated import correlated_population
from np_trl.populations.piecewise import piecewise_population
from np_trl.populations.style import split_prompts
from np_trl.scripts.preference_arguments import PreferenceArguments
from np_trl.scripts.reward_model_arguments import RewardModelArguments


WAYS = ("chosen", "random")


@dataclass
class ScriptArguments(FigureArguments, PreferenceArguments):
    num_questions: int = field(default=10, metadata={"help": "Number of questions that a user is asked."})
    num_users: int = field(default=200, metadata={"help": "Number of new users of each run."})
    num_open: int = field(default=50, metadata={"help": "Largest number of questions to choose from."})
    num_samples: int = field(default=64, metadata={"help": "Draws of a user's latent."})
    num_imagined: int = field(default=4, metadata={"help": "Questions whose answers each draw simulates."})
    policies: list[str] | None = field(
        default=None, metadata={"help": "Trained policies, one a seed, in place of reward models."}
    )

    def __post_init__(self):
        if self.policies is not None:
            self.num_seeds = len(self.policies)

    def draw(self, seed: int) -> tuple[Dataset, Dataset]:
        """Draw or load training users and new users."""
        if self.dataset_name == "example_4_1":
            return piecewise_population(4000, 40, 2 * seed), piecewise_population(
                self.num_users, 2 * self.num_open, 2 * seed + 1
            )
        if self.dataset_name == "example_4_3":
            # conflict rate 25 %; all targets conflict, so that an error on them is an error about z*
            questions = correlated_population(self.num_users, self.num_open, 0.7, 3 * seed + 1)
            targets = correlated_population(self.num_users, 20, -1.0, 3 * seed + 2)
            return correlated_population(4000, 40, 0.7, 3 * seed), with_roles(questions, targets)
        if self.dataset_name == "style_population":
            train_prompts, eval_prompts = split_prompts()
            train_dataset = style_population(train_prompts, 384, 20, 2 * seed)
            eval_dataset = style_population(eval_prompts, self.num_users, 2 * self.num_open, 2 * seed + 1)
            if self.policies is not None:  # which read texts
                return train_dataset, eval_dataset
            embedder = TextEmbedder(str(HERE.parent / "style_gemma"), layer=2, max_length=128)
            return embed(train_dataset, embedder), embed(eval_dataset, embedder)
        return tuple(add_option_ids(dataset) for dataset in self.load())


def embed(dataset: Dataset, embedder: TextEmbedder) -> Dataset:
    """Add the embeddings of both answers."""
    for side in ("chosen", "rejected"):
        dataset = dataset.add_column(f"{side}_embeds", list(embedder.embed(dataset[side]).numpy()))
    return dataset


def different_pairs(users: PreferenceRows, number: int) -> np.ndarray:
    """Rows of the different pairs of a user, so that no question is a target too."""
    rows = users.of_user(number)
    return rows[np.sort(np.unique(users.pair_codes[rows], return_index=True)[1])]


def split(rows: list[dict], num_open: int, disjoint_prompts: bool, rng: np.random.Generator) -> tuple[list, list]:
    """Split the pairs of a user into questions and targets."""
    if "role" in rows[0]:
        return tuple([row for row in rows if row["role"] == role] for role in ("context", "target"))
    if disjoint_prompts:
        prompts = sorted({row["prompt"] for row in rows})
        open_prompts = set(rng.permutation(prompts)[: len(prompts) // 2])
        is_open = np.array([row["prompt"] in open_prompts for row in rows])
    else:
        is_open = rng.permutation(len(rows)) < len(rows) // 2
    questions = rng.permutation(np.flatnonzero(is_open))[:num_open]
    return [rows[i] for i in questions], [rows[i] for i in np.flatnonzero(~is_open)]


def ask(
    user: UserProfile, questions: QuestionPool, targets: QuestionPool, way: str, script_args: ScriptArguments, rng
):
    """
    Ask a user one question after another.

    Returns:
        `np.ndarray` of shape `(num_questions + 1, targets)`: log-odds of what the user chose, after 0, 1, ... answers.
    """
    margins, order = [], rng.permutation(len(questions))
    for number in range(script_args.num_questions + 1):
        margins.append(targets.cross_logits(user.latents, torch.arange(len(targets)))[0].numpy())
        if number < script_args.num_questions:
            if way == "chosen":
                (question,) = select_pairs(
                    questions, user, num_samples=script_args.num_samples, num_imagined=script_args.num_imagined
                )
                user.add(question.pair)
            else:
                user.add(questions[order[number]])
    return np.stack(margins)


def run(
    script_args: ScriptArguments,
    training_args: NPRewardConfig,
    model_args: RewardModelArguments,
    policy: str | None = None,
) -> dict:
    """Train a model on one seed, or load a policy, and ask new users."""
    train_dataset, eval_dataset = script_args.draw(training_args.seed)
    if policy is None:
        model = fit(training_args, model_args, train_dataset).model.cpu().eval()
    else:
        model = load_policy(policy).eval()
    rng = np.random.default_rng(training_args.seed)
    users = PreferenceRows(eval_dataset)
    correct = {way: [] for way in WAYS}  # of each user, after each number of answers
    known = {way: [] for way in WAYS}
    for number in rng.permutation(len(users)):
        rows = eval_dataset.select(different_pairs(users, number)).to_list()
        questions, targets = split(rows, script_args.num_open, training_args.eval_disjoint_prompts, rng)
        if len(questions) <= script_args.num_questions or not targets:
            continue
        questions, targets = QuestionPool(questions, model), QuestionPool(targets, model)
        for way in WAYS:
            margins = ask(UserProfile(model), questions, targets, way, script_args, rng)
            correct[way].append(((margins > 0) + (margins == 0) / 2).mean(axis=1))
            known[way].append((1 + np.sign(margins.sum(axis=1))) / 2)
        if len(correct["random"]) == script_args.num_users:
            break
    metrics = {"num_users": len(correct["random"])}
    for number in range(script_args.num_questions + 1):
        values = {f"{way}_n{number}_accuracy": np.array(correct[way])[:, number] for way in WAYS}
        values[f"gain_n{number}_accuracy"] = (
            values[f"chosen_n{number}_accuracy"] - values[f"random_n{number}_accuracy"]
        )
        if script_args.dataset_name == "example_4_3":
            values |= {f"{way}_n{number}_user_error": 1 - np.array(known[way])[:, number] for way in WAYS}
        for key, value in values.items():
            metrics[key], metrics[f"{key}_se"] = float(value.mean()), float(value.std() / len(value) ** 0.5)
    return metrics


def main(script_args: ScriptArguments, training_args: NPRewardConfig, model_args: RewardModelArguments) -> None:
    policies = script_args.policies or [None] * script_args.num_seeds
    numbers = summarize_runs(
        [
            run(script_args, with_seed(training_args, index), model_args, policy)
            for index, policy in enumerate(policies)
        ]
    )
    picture, ax = plt.subplots(figsize=(4.2, 3.2), layout="constrained")
    asked = list(range(script_args.num_questions + 1))
    for way, color in zip(WAYS, COLORS, strict=False):
        error_bars(ax, asked, numbers, [f"{way}_n{n}_accuracy" for n in asked], color=color, label=f"{way} questions")
    ax.set(xlabel="questions answered", ylabel="accuracy on unseen pairs", title=script_args.figure)
    ax.legend()
    script_args.save(picture, numbers)
    for way in WAYS:
        print(f"{way:<8}" + "".join(f"{numbers[f'{way}_n{n}_accuracy']:>8.3f}" for n in asked))


if __name__ == "__main__":
    main(*parse(ScriptArguments, "np_reward_example_4_1"))
