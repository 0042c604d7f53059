"""
Evaluate a trained reward model or policy on other users: accuracy, likelihood and calibration for every number of
context pairs, with other users' contexts as a control.

```sh
python examples/evaluate.py --model_name_or_path runs/np_reward --dataset_name test.parquet --output_dir runs/evaluation
```

Texts with their embeddings in a file of their own, and only some of the rows:

```sh
python examples/evaluate.py \
    --model runs/np_reward_jester \
    --dataset_name pairs.parquet \
    --embeddings embeddings.parquet \
    --where split=val \
    --num_contexts 0 1 3 5 10 20 \
    --output_dir runs/evaluation
```

A merged policy needs its reference policy (the base model it was trained from). With `--num_generations` it writes for the
users too: length, repetition, KL to the reference and, given an opponent and judges, how often it wins:

```sh
python examples/evaluate.py \
    --model_name_or_path runs/np_dpo/merged \
    --ref_model_name_or_path google/gemma-2b \
    --dataset_name test.parquet \
    --group_column group \
    --num_generations 2 \
    --opponent runs/np_dpo/mixture \
    --judges helpfulness=runs/reward_helpfulness honesty=runs/reward_honesty \
    --output_dir runs/evaluation
```

A judge is a reward model of texts that knows one group alone (`np_reward.py --where group=honesty --max_context 0
--embedder_name_or_path ...`), or `style`: the exact detectors of the style population.
"""

import json
import sys
from dataclasses import dataclass, field


sys.path.append(sys.path.pop(0))  # this folder last: its namesake would hide the library `evaluate`

from generations import Generations, Judge, reward_judge, style_judge  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.hf_argparser import HfArg  # noqa: E402
from trl import TrlParser  # noqa: E402

from np_trl import NPDPOConfig, NPDPOTrainer, NPRewardConfig, NPRewardModelConfig, NPRewardTrainer, load_policy  # noqa: E402
from np_trl.data.embeddings import add_option_ids  # noqa: E402
from np_trl.data.loading import load_preferences  # noqa: E402


@dataclass
class ScriptArguments:
    model_name_or_path: str = HfArg(aliases=["--model"], help="A trained NP-BTL reward model or NP-DPO policy.")
    dataset_name: str = field(metadata={"help": "File (parquet, JSON lines, CSV) or dataset of users to evaluate on."})
    output_dir: str = field(metadata={"help": "Where eval_results.json goes."})
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The reference policy of a policy: its base model."}
    )
    embeddings: str | None = field(
        default=None, metadata={"help": "File or dataset with `text_id` and `embedding` of every text, once."}
    )
    embedding_kind: str = field(
        default="response", metadata={"help": "What was embedded: `response` or `prompt_response`."}
    )
    where: list[str] = field(default_factory=list, metadata={"help": "Conditions `column=value` on the rows."})
    split: str = field(default="test", metadata={"help": "Split of a dataset that has several."})
    num_contexts: list[int] = field(default_factory=lambda: [0, 1, 3, 5, 10], metadata={"help": "Values of N_C."})
    num_targets: int = field(default=20, metadata={"help": "Largest number of target pairs of a user."})
    num_draws: int | None = field(
        default=None,
        metadata={"help": "Draws of each user's contexts and targets. Default: 4, and more for less than 100 users."},
    )
    disjoint_prompts: bool = field(
        default=False, metadata={"help": "Whether targets must have other prompts than the context."}
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Column that says which group a user is in, to report each group too."}
    )
    num_generations: int = field(
        default=0, metadata={"help": "Answers that a policy writes for each user, at each N_C. 0: none."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Largest number of tokens of an answer."})
    opponent: str | None = field(
        default=None, metadata={"help": "A policy that knows no users, to win against: the mixture's."}
    )
    judges: list[str] = field(
        default_factory=list,
        metadata={"help": "Who judges the answers: `GROUP=PATH` of a reward model for each group, or `style`."},
    )
    drop_short_users: bool = field(
        default=True, metadata={"help": "Leave users out where they have too few pairs, instead of raising an error."}
    )
    drop_ties: bool = field(
        default=True, metadata={"help": "Leave out pairs of identical options, instead of raising an error."}
    )
    beta: float = field(default=0.1, metadata={"help": "Temperature of the implicit reward of a policy."})
    batch_size: int = field(default=32, metadata={"help": "Tasks at once."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws of contexts and targets."})


def build_trainer(script_args: ScriptArguments) -> NPRewardTrainer | NPDPOTrainer:
    dataset = load_preferences(
        script_args.dataset_name,
        script_args.split,
        script_args.where,
        script_args.embeddings,
        script_args.embedding_kind,
    )
    num_users = len(dataset.unique("user_id"))
    path = script_args.model_name_or_path
    config = reward_config(path)
    if config is not None and config.option_ids and "chosen" in dataset.column_names:
        dataset = add_option_ids(dataset)
    training_args = {
        "output_dir": script_args.output_dir,
        "num_targets": 1,
        "max_context": 0,
        "eval_num_contexts": script_args.num_contexts,
        "eval_num_targets": script_args.num_targets,
        "eval_num_draws": script_args.num_draws or max(4, -(-400 // num_users)),
        "eval_disjoint_prompts": script_args.disjoint_prompts,
        "eval_group_column": script_args.group_column,
        "drop_short_users": script_args.drop_short_users,
        "drop_ties": script_args.drop_ties,
        "per_device_eval_batch_size": script_args.batch_size,
        "bf16": False,
        "report_to": "none",
        "seed": script_args.seed,
    }
    datasets = {"train_dataset": dataset, "eval_dataset": dataset}
    if config is not None:
        return NPRewardTrainer(path, args=NPRewardConfig(**training_args), **datasets)
    policy, reference = load_policy(path), script_args.ref_model_name_or_path
    if reference is None and not isinstance(policy, PeftModel):
        raise ValueError(
            f"{path!r} is a merged policy, whose implicit reward needs the reference policy. Pass its base model as "
            "`--ref_model_name_or_path`."
        )
    return NPDPOTrainer(
        policy,
        ref_model=None if reference is None else AutoModelForCausalLM.from_pretrained(reference),
        args=NPDPOConfig(**training_args, beta=script_args.beta),
        processing_class=AutoTokenizer.from_pretrained(path),
        **datasets,
    )


def reward_config(path: str) -> NPRewardModelConfig | None:
    """Return the configuration of a reward model; none of a policy."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):  # an adapter has no config of its own
        return None
    return config if config.model_type == NPRewardModelConfig.model_type else None


def build_judge(names: list[str], generations: Generations, group_column: str | None) -> Judge | None:
    """Load the judges that the command line names."""
    if not names:
        return None
    if names == ["style"]:
        return style_judge(generations.rows)
    paths = dict(name.split("=", maxsplit=1) for name in names if "=" in name)
    if len(paths) < len(names) or group_column is None:
        raise ValueError(f"`--judges {names}` must each be `GROUP=PATH`, of the groups that `--group_column` names.")
    models = {group: AutoModel.from_pretrained(path).eval() for group, path in paths.items()}
    return reward_judge(models, generations.rows.groups(group_column))


def evaluate_generations(trainer: NPDPOTrainer, script_args: ScriptArguments) -> dict[str, float]:
    """Write for the users after each number of choices, and judge what is written."""
    opponent, metrics = script_args.opponent and load_policy(script_args.opponent).to(trainer.accelerator.device), {}
    for num_context in script_args.num_contexts:
        generations = Generations(trainer, num_context, script_args.num_generations, script_args.max_new_tokens)
        judge = build_judge(script_args.judges, generations, script_args.group_column)
        written = generations.evaluate(judge, opponent)
        metrics |= {f"eval_nc{num_context}_{key}": value for key, value in written.items()}
    return metrics


def main(script_args: ScriptArguments) -> None:
    trainer = build_trainer(script_args)
    metrics = trainer.evaluate()
    if script_args.num_generations and isinstance(trainer, NPDPOTrainer):
        metrics |= evaluate_generations(trainer, script_args)
    trainer.save_metrics("eval", metrics)
    curve = {key: value for key, value in metrics.items() if key.startswith("eval_nc")}
    trainer.accelerator.print(json.dumps(curve, indent=2))


if __name__ == "__main__":
    (script_args,) = TrlParser(ScriptArguments).parse_args_and_config()
    main(script_args)
