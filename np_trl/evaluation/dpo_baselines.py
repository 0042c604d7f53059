"""
The baselines of NP-DPO. Each is trained with the arguments of the run, for `--baseline_steps` steps, and evaluated on the target
pairs of the run's evaluation, each once.

- mixture: DPO on the choices of all users, without a context;
- dedicated: a DPO policy for each group of users, trained on that group alone. An upper bound: it knows the groups;
- few_shot: DPO with a user's choices as text in the prompt, which costs their tokens with every answer;
- base: the base model. Its implicit reward is 0, so its accuracy is that of its log-likelihood.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from np_trl.data import PreferenceRows
from np_trl.metrics import UserAccuracy
from np_trl.models.texts import plain_text
from np_trl.trainer import NPDPOTrainer
from np_trl.trainer.policy import np_parameters


BASELINES = ("mixture", "dedicated", "few_shot", "base")


class DPOBaselines:
    """
    The baselines of one NP-DPO run.

    Args:
        trainer ([`NPDPOTrainer`]):
            The run, with its data sets tokenised and embedded.
        build (`Callable`):
            Builds a trainer of the same base model from `args`, `train_dataset` and `eval_dataset`.
        num_steps (`int`, *optional*):
            Training steps of each baseline, a tenth of them at most warm-up. As many as the run has if not set.
        dedicated_column (`str`, *optional*), dedicated_groups (`list[str]`, *optional*):
            The column of the groups that have a dedicated policy, `eval_group_column` if not set; and which of them, all of
            the evaluation set if not set.

    Attributes:
        policies (`dict[str, NPDPOTrainer]`): the mixture's policy, when it was measured.
    """

    def __init__(
        self,
        trainer: NPDPOTrainer,
        build: Callable[..., NPDPOTrainer],
        num_steps: int | None = None,
        dedicated_column: str | None = None,
        dedicated_groups: list[str] | None = None,
    ):
        self.trainer, self.build = trainer, build
        self.column, self.groups = dedicated_column or trainer.args.eval_group_column, dedicated_groups
        self.num_steps = trainer.args.max_steps if num_steps is None else num_steps
        self.policies = {}
        # the targets are the same at every N_C
        draws = draw_evaluation(trainer, min(trainer.args.eval_num_contexts))
        self.targets = trainer.eval_dataset.select(np.unique(np.concatenate([targets for _, targets in draws])))

    def measure(self, name: str) -> dict[str, float]:
        """Train and evaluate one of the `BASELINES`: `eval_{name}_nc{N}_accuracy` and the like."""
        return getattr(self, name)()

    def mixture(self) -> dict[str, float]:
        self.policies["mixture"] = self._train("mixture", self.trainer.train_dataset, self.targets)
        return _rename(self.policies["mixture"].evaluate(), "mixture")

    def dedicated(self) -> dict[str, float]:
        """Each group with the policy of its own, and the mean over their users; NP-DPO on these users if they are a part."""
        metrics, evaluated = {}, []
        for group in self._find_groups():
            datasets = [
                _of_group(dataset, self.column, group) for dataset in (self.trainer.train_dataset, self.targets)
            ]
            evaluated.append(self._train(f"dedicated/{group}", *datasets).evaluate())
            metrics[f"eval_dedicated_nc0_{group}_accuracy"] = evaluated[-1]["eval_nc0_accuracy"]
        return {**metrics, **_pool(evaluated), **(self._evaluate_groups() if self.groups else {})}

    def _find_groups(self) -> list[str]:
        """The groups that have a dedicated policy."""
        if self.column is None:
            raise ValueError("A dedicated policy needs groups of users. Name their column: `--eval_group_column`.")
        groups = sorted(set(map(str, self.targets.unique(self.column))))
        unknown = sorted(set(self.groups or []) - set(groups))
        if unknown:
            raise ValueError(f"`--dedicated_groups` {unknown} are no values of `{self.column}`, which has {groups}.")
        return self.groups or groups

    def _evaluate_groups(self) -> dict[str, float]:
        """Evaluate NP-DPO on the users of the groups that have a dedicated policy."""
        trainer, everybody, wanted = self.trainer, self.trainer.eval_dataset, set(self._find_groups())
        values = everybody.select_columns(self.column)[:][self.column]
        trainer.eval_dataset = everybody.select([row for row, value in enumerate(values) if str(value) in wanted])
        try:
            return _rename(trainer.evaluate(), "dedicated_users")
        finally:
            trainer.eval_dataset = everybody

    def few_shot(self) -> dict[str, float]:
        """The contexts of NP-DPO's evaluation as text, and their cost in tokens and time."""
        args, metrics = self.trainer.args, {}
        eval_datasets = {f"nc{n}": self._show_contexts(n) for n in args.eval_num_contexts}
        policy = self._train("few_shot", self._show_random_choices(), eval_datasets, args.precompute_ref_log_probs)
        evaluated = policy.evaluate()
        for name, dataset in policy.eval_dataset.items():
            prefix = f"eval_few_shot_{name}"
            metrics |= {
                key.replace(f"eval_{name}_nc0", prefix): value
                for key, value in evaluated.items()
                if key.startswith(f"eval_{name}_nc0_")
            }
            tokens = np.array([len(ids) for ids in dataset["prompt_ids"]])
            metrics[f"{prefix}_prompt_tokens"] = float(tokens.mean())
            if args.max_length is not None:  # of which the rest is cut off
                metrics[f"{prefix}_truncated"] = float((tokens >= args.max_length).mean())
            metrics[f"{prefix}_seconds_per_pair"] = evaluated[f"eval_{name}_runtime"] / len(dataset)
        return metrics

    @torch.no_grad()
    def base(self) -> dict[str, float]:
        if "ref_chosen_logps" in self.targets.column_names:
            margins = np.subtract(self.targets["ref_chosen_logps"][:], self.targets["ref_rejected_logps"][:]).tolist()
        else:
            margins = self._reference_margins()
        users = np.unique(self.targets["user_id"], return_inverse=True)[1].tolist()
        accuracy = UserAccuracy().compute(margins=margins, users=users)
        return {f"eval_base_nc0_{key}": value for key, value in accuracy.items()}

    def _reference_margins(self) -> list[float]:
        """The log-likelihood of every chosen option less that of the rejected one, by the reference policy."""
        trainer, margins = self.trainer, []
        tokens = self.targets.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
        for batch in DataLoader(tokens, trainer.args.per_device_eval_batch_size, collate_fn=trainer.data_collator):
            batch = trainer._prepare_inputs(batch)
            chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch)
            margins += (chosen - rejected).tolist()
        return margins

    def _train(self, name: str, train_dataset: Dataset, eval_dataset, precompute: bool = False) -> NPDPOTrainer:
        """Train plain DPO: FiLM, which starts as the identity, stays it."""
        protocol = dataclasses.replace(
            self.trainer.args.evaluation_protocol,
            num_contexts=[0],
            shuffled_contexts=[],
            num_targets=int(PreferenceRows(self.targets).counts.max()),
            num_draws=1,
        )
        args = dataclasses.replace(
            self.trainer.args,
            output_dir=f"{self.trainer.args.output_dir}/{name}",
            max_steps=self.num_steps,
            warmup_steps=min(self.trainer.args.warmup_steps, max(self.num_steps // 10, 0)),
            min_context=0,
            max_context=0,
            **protocol.as_arguments(),
            drop_short_users=True,
            precompute_ref_log_probs=precompute,  # the run's own data sets have them already
            context_encoder_path=None,
            reward_steps=0,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            push_to_hub=False,
            report_to="none",
        )
        trainer = self.build(args=args, train_dataset=train_dataset, eval_dataset=eval_dataset)
        for parameter in np_parameters(trainer.model).values():
            parameter.requires_grad_(False)
        trainer.train()
        return trainer

    def _show_contexts(self, num_context: int) -> Dataset:
        draws = draw_evaluation(self.trainer, num_context)
        shown = [(index, contexts) for contexts, targets in draws for index in targets]
        return show_choices(self.trainer.eval_dataset, *zip(*shown, strict=True), self._end)

    def _show_random_choices(self) -> Dataset:
        """Show, in the prompt of every training pair, other pairs of the same user, as many as NP-DPO may see."""
        args, dataset = self.trainer.args, self.trainer.train_dataset
        rng, rows = np.random.default_rng(args.seed), PreferenceRows(dataset)
        choices = {}
        for user in range(len(rows)):
            members = rows.of_user(user)
            for index in members:
                size = min(int(rng.integers(args.min_context, args.max_context, endpoint=True)), len(members) - 1)
                choices[index] = rng.choice(members[members != index], size, replace=False)
        return show_choices(dataset, list(choices), list(choices.values()), self._end)

    @property
    def _end(self) -> str:
        return self.trainer.processing_class.eos_token


def draw_evaluation(trainer: NPDPOTrainer, num_context: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw the row numbers of the context and the target set of every task that `trainer` evaluates at this N_C."""
    tasks = trainer.args.evaluation_protocol.tasks(PreferenceRows(trainer.eval_dataset))
    items = (tasks[index] for index in range(len(tasks)))
    return [task.draw() for task in items if task.num_context == num_context]


def show_choices(dataset: Dataset, indices: list[int], choices: list[np.ndarray], end: str) -> Dataset:
    """
    Put choices as text before the prompts of pairs: in a conversation, before what its user said first.

    Args:
        dataset ([`~datasets.Dataset`]):
            Tokenised pairs.
        indices (`list[int]`), choices (`list[np.ndarray]`):
            Rows of `dataset`, and for each the rows of the choices that its prompt shows.
        end (`str`):
            The end-of-sequence token, which is not shown.

    Returns:
        [`~datasets.Dataset`] with a row for each of `indices`, not tokenised.
    """
    texts = dataset.select_columns(["prompt", "chosen", "rejected"])[:]

    def show(row: int) -> str:
        prompt, chosen, rejected = (plain_text(texts[name][row]).removesuffix(end) for name in texts)
        space = "" if isinstance(texts["prompt"][row], str) else " "  # messages do not begin with one
        return f"{prompt}\nPreferred:{space}{chosen}\nOther:{space}{rejected}\n\n"

    prompts = [
        put_before(texts["prompt"][i], "".join(map(show, shown))) for i, shown in zip(indices, choices, strict=True)
    ]
    stale = [name for name in dataset.column_names if name == "prompt" or name.endswith(("_ids", "_logps"))]
    return dataset.select(indices).remove_columns(stale).add_column("prompt", prompts)


def put_before(prompt: str | list[dict], shown: str) -> str | list[dict]:
    """Put a text before a prompt: in a conversation, before what its user said first."""
    if not shown:
        return prompt
    if isinstance(prompt, str):
        return shown + prompt
    first = next((index for index, message in enumerate(prompt) if message["role"] == "user"), 0)
    content = prompt[first]["content"]
    content = [{"type": "text", "text": shown}, *content] if isinstance(content, list) else shown + (content or "")
    return [*prompt[:first], {**prompt[first], "content": content}, *prompt[first + 1 :]]


def _of_group(dataset: Dataset, column: str, group: str) -> Dataset:
    values = dataset.select_columns(column)[:][column]
    return dataset.select([index for index, value in enumerate(values) if str(value) == group])


def _pool(evaluated: list[dict[str, float]]) -> dict[str, float]:
    """The mean accuracy over the users of all groups, and its standard error, from those of each group."""
    sizes, means, errors = (
        np.array([metrics[f"eval_nc0_{key}"] for metrics in evaluated]) for key in ("users", "accuracy", "accuracy_se")
    )
    mean, num_users = np.average(means, weights=sizes), sizes.sum()
    within = np.nan_to_num(errors) ** 2 * sizes * (sizes - 1)  # a single user has no standard error
    deviations = (within + sizes * (means - mean) ** 2).sum()
    pooled = {"eval_dedicated_nc0_accuracy": float(mean), "eval_dedicated_nc0_users": int(num_users)}
    if num_users > 1:
        pooled["eval_dedicated_nc0_accuracy_se"] = float((deviations / (num_users - 1) / num_users) ** 0.5)
    return pooled


def _rename(metrics: dict[str, float], name: str) -> dict[str, float]:
    return {
        key.replace("eval_", f"eval_{name}_"): value for key, value in metrics.items() if key.startswith("eval_nc")
    }
