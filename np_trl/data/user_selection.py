"""Selection of the users of a dataset: checks, ties, and users with too few pairs."""

from dataclasses import dataclass

from datasets import Dataset

from np_trl.data.embedding_columns import EMBED_COLUMNS
from np_trl.data.evaluation_protocol import EvaluationProtocol
from np_trl.data.tasks import TaskSampling
from np_trl.data.ties import drop_ties, leave_out_embedding_ties
from np_trl.data.validation import (
    check_option_embeddings,
    check_preferences,
    drop_foreign_columns,
    read_embeddings,
    select_users,
)


@dataclass(frozen=True)
class UserSelection:
    """
    Check preference pairs, and leave out ties and the users with too few pairs, or raise.

    Args:
        required_pairs (`int`):
            Pairs that a user needs.
        drop_short_users (`bool`), drop_ties (`bool`):
            Whether users with fewer, and ties, are left out with a logged count, or refused.
        is_evaluation (`bool`):
            Whether the pairs are those of an evaluation.
    """

    required_pairs: int
    drop_short_users: bool
    drop_ties: bool
    is_evaluation: bool

    @classmethod
    def of_training(cls, sampling: TaskSampling, drop_short_users: bool, drop_ties: bool) -> "UserSelection":
        """The selection for training tasks."""
        return cls(sampling.required_pairs, drop_short_users, drop_ties, is_evaluation=False)

    @classmethod
    def of_evaluation(cls, protocol: EvaluationProtocol, drop_short_users: bool, drop_ties: bool) -> "UserSelection":
        """The selection for an evaluation: a user who is dropped is dropped where it is too short, and kept where it is not."""
        return cls(protocol.required_pairs(drop_short_users), drop_short_users, drop_ties, is_evaluation=True)

    def select(self, dataset: Dataset, name: str, text_columns: tuple[str, ...] = ()) -> tuple[Dataset, int | None]:
        """
        Check and select the rows of a dataset.

        Args:
            dataset ([`~datasets.Dataset`]):
                Preference pairs.
            name (`str`):
                What to call the dataset in an error.
            text_columns (`tuple[str, ...]`, *optional*):
                Columns of texts that it must have, where the model sees those too.

        Returns:
            `tuple[Dataset, int | None]`: the rows that are left, and the size of their embeddings if they have some.

        Raises:
            `ValueError`: if rows are not what training takes.
        """
        dataset = drop_foreign_columns(dataset, name)
        dataset = drop_ties(dataset, name) if self.drop_ties else dataset
        check_preferences(dataset, name, text_columns)
        size = None
        if not set(EMBED_COLUMNS).isdisjoint(dataset.column_names):
            has_texts = bool(text_columns)
            size, dataset = self.check_embeddings(dataset, name, has_texts)
            check_option_embeddings(dataset, name, has_texts=has_texts)
        return self.select_by_counts(dataset, name), size

    def check_embeddings(self, dataset: Dataset, name: str, has_texts: bool) -> tuple[int, Dataset]:
        """Check embedding columns, and leave out their ties; those of texts that differ are ties in the context alone."""
        size, ties = read_embeddings(dataset, name)
        return size, leave_out_embedding_ties(dataset, ties, name, drop=self.drop_ties or has_texts)

    def select_by_counts(self, dataset: Dataset, name: str) -> Dataset:
        """Leave out users with too few pairs, or raise."""
        return select_users(
            dataset, name, self.required_pairs, drop=self.drop_short_users, evaluation=self.is_evaluation
        )
