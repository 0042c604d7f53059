"""Arguments of an evaluation: the model, and the users it is evaluated on."""

from dataclasses import dataclass, field

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM
from transformers.hf_argparser import HfArg

from np_trl.data import EvaluationProtocol
from np_trl.data.loading import load_preferences, with_roles
from np_trl.evaluation.evaluate_users import is_reward_model, load_evaluation, load_model
from np_trl.evaluation.user_evaluation import UserEvaluation


@dataclass
class EvaluationArguments:
    """Arguments of an evaluation, beside those of the [`EvaluationProtocol`]."""

    model_name_or_path: str = HfArg(aliases=["--model"], help="A trained NP-BTL reward model or NP-DPO policy.")
    dataset_name: str = field(metadata={"help": "File (parquet, JSON lines, CSV) or dataset of users to evaluate on."})
    output_dir: str = field(metadata={"help": "Where eval_results.json goes."})
    ref_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "The reference policy of a merged policy whose base was a folder: that base. Others name their own."
        },
    )
    embeddings: str | None = field(
        default=None, metadata={"help": "File or dataset with `text_id` and `embedding` of every text, once."}
    )
    embedding_kind: str = field(
        default="response", metadata={"help": "What was embedded: `response` or `prompt_response`."}
    )
    conversational: bool = field(
        default=False, metadata={"help": "Whether pairs of strings become conversations, as they did in training."}
    )
    where: list[str] = field(default_factory=list, metadata={"help": "Conditions `column=value` on the rows."})
    context_where: list[str] = field(
        default_factory=list,
        metadata={"help": "Conditions on rows that users are known by. Those of `where` are then targets only."},
    )
    split: str = field(default="test", metadata={"help": "Split of a dataset that has several."})
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

    def load(self, protocol: EvaluationProtocol) -> UserEvaluation:
        """Load the model and the users."""
        users, path, device = self.load_users(), self.model_name_or_path, PartialState().device
        model, reference = load_model(path, self.dtype).to(device), None
        if not is_reward_model(path):
            settings = {"dpo_beta": self.beta, "context_max_length": self.max_length}
            settings["context_truncation"] = self.truncation_mode
            for name, value in settings.items():
                if value is not None:
                    setattr(model.config, name, value)
        if self.ref_model_name_or_path is not None:
            reference = AutoModelForCausalLM.from_pretrained(self.ref_model_name_or_path, dtype=self.dtype).to(device)
        return load_evaluation(
            model,
            users,
            protocol,
            reference=reference,
            drop_short_users=self.drop_short_users,
            drop_ties=self.drop_ties,
            batch_size=self.batch_size,
        )

    def load_users(self) -> Dataset:
        """Load the pairs of the users to evaluate on."""
        settings = {
            "embeddings": self.embeddings,
            "embedding_kind": self.embedding_kind,
            "conversational": self.conversational,
        }
        dataset = load_preferences(self.dataset_name, self.split, self.where, **settings)
        if self.context_where:
            contexts = load_preferences(self.dataset_name, self.split, self.context_where, **settings)
            dataset = with_roles(contexts, dataset)
        return dataset
