"""Saved models and the users they are evaluated on: what `evaluate_model.py` and the figures of policies share."""

from dataclasses import dataclass, field

from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.hf_argparser import HfArg

from np_trl.data.embeddings import add_option_ids
from np_trl.data.loading import load_preferences, with_roles
from np_trl.models import NPRewardModelConfig
from np_trl.trainer import NPDPOConfig, NPDPOTrainer, NPRewardConfig, NPRewardTrainer, load_policy
from np_trl.users.reference import reference_policy


@dataclass
class EvaluationArguments:
    """Arguments of an evaluation."""

    model_name_or_path: str = HfArg(aliases=["--model"], help="A trained NP-BTL reward model or NP-DPO policy.")
    dataset_name: str = field(metadata={"help": "File (parquet, JSON lines, CSV) or dataset of users to evaluate on."})
    output_dir: str = field(metadata={"help": "Where eval_results.json goes."})
    ref_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The reference policy of a merged policy: its base model. An adapter names its own."},
    )
    embeddings: str | None = field(
        default=None, metadata={"help": "File or dataset with `text_id` and `embedding` of every text, once."}
    )
    embedding_kind: str = field(
        default="response", metadata={"help": "What was embedded: `response` or `prompt_response`."}
    )
    where: list[str] = field(default_factory=list, metadata={"help": "Conditions `column=value` on the rows."})
    context_where: list[str] = field(
        default_factory=list,
        metadata={"help": "Conditions on rows that users are known by. Those of `where` are then targets only."},
    )
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
    drop_short_users: bool = field(
        default=True, metadata={"help": "Leave users out where they have too few pairs, instead of raising an error."}
    )
    drop_ties: bool = field(
        default=True, metadata={"help": "Leave out pairs of identical options, instead of raising an error."}
    )
    beta: float | None = field(
        default=None,
        metadata={"help": "Temperature of the implicit reward of a policy. Default: that of its training."},
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Largest number of tokens that a policy reads of an option. Default: that of its training."},
    )
    truncation_mode: str | None = field(
        default=None,
        metadata={
            "help": "Which end is kept of a longer one: keep_start or keep_end. Default: that of the policy's training."
        },
    )
    dtype: str = field(default="float32", metadata={"help": "Data type of a policy and of its reference."})
    batch_size: int = field(
        default=32, metadata={"help": "Tasks at once, each with two options for every target pair."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draws of contexts and targets."})


def load_users(script_args: EvaluationArguments) -> Dataset:
    """Load the pairs of the users to evaluate on."""
    name, split = script_args.dataset_name, script_args.split
    embeddings = {"embeddings": script_args.embeddings, "embedding_kind": script_args.embedding_kind}
    dataset = load_preferences(name, split, script_args.where, **embeddings)
    if script_args.context_where:
        contexts = load_preferences(name, split, script_args.context_where, **embeddings)
        dataset = with_roles(contexts, dataset)
    return dataset


def build_trainer(script_args: EvaluationArguments) -> NPRewardTrainer | NPDPOTrainer:
    """Build a trainer that evaluates the model on the users that the arguments name."""
    dataset = load_users(script_args)
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
        "eval_num_draws": max(4, -(-400 // num_users)) if script_args.num_draws is None else script_args.num_draws,
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
    policy = load_policy(path, dtype=script_args.dtype)
    config = policy.config
    return NPDPOTrainer(
        policy,
        ref_model=load_reference(policy, script_args),
        args=NPDPOConfig(
            **training_args,
            beta=config.dpo_beta if script_args.beta is None else script_args.beta,
            max_length=script_args.max_length or config.context_max_length,
            truncation_mode=script_args.truncation_mode or config.context_truncation,
        ),
        processing_class=AutoTokenizer.from_pretrained(path),
        **datasets,
    )


def load_reference(policy: PreTrainedModel | PeftModel, script_args: EvaluationArguments) -> nn.Module:
    """Load the reference policy that the arguments name, or else that which an adapter was trained against."""
    name = script_args.ref_model_name_or_path
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name, dtype=script_args.dtype)
    if not isinstance(policy, PeftModel):
        raise ValueError(
            f"{script_args.model_name_or_path!r} is a merged policy, whose implicit reward needs the reference policy. Pass its "
            "base model as `--ref_model_name_or_path`."
        )
    return reference_policy(policy).get_base_model()


def reward_config(path: str) -> NPRewardModelConfig | None:
    """Return the configuration of a reward model; none of a policy."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):  # an adapter has no config of its own
        return None
    return config if config.model_type == NPRewardModelConfig.model_type else None
