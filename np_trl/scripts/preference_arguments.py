"""Arguments that say which preference pairs a script trains on, and which it evaluates on."""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from np_trl.data.loading import has_one_split, hold_out_users, load_preferences, with_roles


@dataclass
class PreferenceArguments:
    """Arguments of a script that trains on some users and evaluates on others."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "File (parquet, JSON lines, CSV) or dataset on the Hub, of training users."},
    )
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "File or dataset of other users, to evaluate on. Default: split `test`."}
    )
    eval_users: float | None = field(
        default=None,
        metadata={"help": "Share of the users of `dataset_name` to evaluate on, who are not trained on, such as 0.1."},
    )
    where: list[str] = field(
        default_factory=list, metadata={"help": "Conditions `column=value` on the rows to train on."}
    )
    eval_where: list[str] = field(
        default_factory=list, metadata={"help": "Conditions `column=value` on the rows to evaluate on."}
    )
    eval_context_where: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Conditions on rows that the users of the evaluation are known by, such as their training rows. Those of "
            "`eval_where` are then their targets only."
        },
    )
    embeddings: str | None = field(
        default=None, metadata={"help": "File or dataset with `text_id` and `embedding` of every text, once."}
    )
    embedding_kind: str = field(
        default="response", metadata={"help": "What was embedded: `response` or `prompt_response`."}
    )
    conversational: bool = field(
        default=False,
        metadata={"help": "Whether pairs of strings become conversations, for models with a chat template."},
    )

    def load(self) -> tuple[Dataset, Dataset]:
        """Load the pairs to train on and those to evaluate on."""
        if self.dataset_name is None:
            raise ValueError("There is nothing to train on. Name a file or dataset with `--dataset_name`.")
        settings = {
            "embeddings": self.embeddings,
            "embedding_kind": self.embedding_kind,
            "conversational": self.conversational,
        }
        if self.eval_users is not None:
            return self._hold_out(**settings)
        eval_name = self.eval_dataset_name or self.dataset_name
        is_same = Path(eval_name).resolve() == Path(self.dataset_name).resolve()
        if is_same and has_one_split(eval_name) and self.eval_where == self.where:
            raise ValueError(
                f"The file {eval_name!r} would be evaluated on the rows that it is trained on. Name other users with "
                "`--eval_dataset_name` or `--eval_where`, or hold out a share of them by `--eval_users 0.1`."
            )
        eval_dataset = load_preferences(eval_name, "test", self.eval_where, **settings)
        if self.eval_context_where:
            contexts = load_preferences(eval_name, "test", self.eval_context_where, **settings)
            eval_dataset = with_roles(contexts, eval_dataset)
        return load_preferences(self.dataset_name, "train", self.where, **settings), eval_dataset

    def _hold_out(self, **settings) -> tuple[Dataset, Dataset]:
        named = [name for name in ("eval_dataset_name", "eval_where", "eval_context_where") if getattr(self, name)]
        if named:
            raise ValueError(
                f"`--eval_users {self.eval_users}` holds out users of `dataset_name`, but {named} name others to evaluate on. Give "
                "one or the other."
            )
        return hold_out_users(load_preferences(self.dataset_name, "train", self.where, **settings), self.eval_users)
