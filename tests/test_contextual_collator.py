import numpy as np
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from np_trl.data import (
    ContextualCollator,
    EmbeddingTargets,
    EvaluationTasks,
    PreferenceRows,
    TaskSampling,
    TokenTargets,
    TrainingTasks,
)
from np_trl.data.preference_rows import ID_COLUMNS

from .testing_utils import embedded_rows


SAMPLING = TaskSampling(min_context=0, max_context=4, num_targets=3, context_in_target=False)


def tokenized_rows():
    """Rows whose tokens name them: the completion of row i is [10 + i, ...]."""
    dataset = embedded_rows(num_users=4, pairs_per_user=8)
    return dataset.map(
        lambda row, index: {"prompt_ids": [1, 2], "chosen_ids": [10 + index, 3], "rejected_ids": [100 + index, 4, 5]},
        with_indices=True,
    )


def test_the_batch_contract():
    rows = PreferenceRows(tokenized_rows())
    view = TrainingTasks(rows, SAMPLING, seed=0)
    collator = ContextualCollator(TokenTargets(DataCollatorForPreference(pad_token_id=0)))
    tasks = [view[item] for item in range(4)]
    batch = collator(tasks)
    draws = [task.draw() for task in tasks]
    num_contexts = [len(context) for context, _ in draws]
    assert batch["input_ids"].shape == batch["completion_mask"].shape == (24, 5)
    assert batch["context_embeds"].shape == (4, max(1, *num_contexts), 2, 6)
    assert batch["context_mask"].sum(dim=1).tolist() == num_contexts
    assert batch["context_index"].tolist() == 2 * [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    targets = torch.tensor([index for _, target in draws for index in target])
    assert batch["input_ids"][:12, 2].equal(targets + 10)  # chosen rows first, in order
    assert batch["input_ids"][12:, 2].equal(targets + 100)
    for row, (context, _) in enumerate(draws):
        assert batch["context_embeds"][row, : len(context)].equal(
            rows.embeds(context) if len(context) else torch.empty(0, 2, 6)
        )
        assert not batch["context_embeds"][row, len(context) :].any()
    assert "conditions" not in batch


def test_a_batch_without_any_context_keeps_one_masked_pair():
    sampling = TaskSampling(0, 0, 3, context_in_target=False)
    view = TrainingTasks(PreferenceRows(embedded_rows()), sampling, seed=0)
    batch = ContextualCollator(EmbeddingTargets())([view[0], view[1]])
    assert batch["context_embeds"].shape == (2, 1, 2, 6) and not batch["context_mask"].any()


def test_embedded_targets_come_chosen_first():
    rows = PreferenceRows(embedded_rows())
    view = TrainingTasks(rows, SAMPLING, seed=0)
    batch = ContextualCollator(EmbeddingTargets())([view[0], view[1]])
    targets = [index for item in (0, 1) for index in view[item].draw()[1]]
    assert batch["option_embeds"].equal(torch.cat([rows.embeds(targets)[:, 0], rows.embeds(targets)[:, 1]]))
    assert batch["attention_mask"].equal(torch.ones(12, 1, dtype=torch.long))


def test_evaluation_batches_tell_user_and_number_of_contexts():
    rows = PreferenceRows(embedded_rows(num_users=3))
    view = EvaluationTasks(rows, [0, 2], num_targets=4, seed=0)
    batch = ContextualCollator(EmbeddingTargets())([view[item] for item in range(len(view))])
    assert batch["conditions"].tolist() == [[0, 0], [1, 0], [2, 0], [0, 2], [1, 2], [2, 2]]


def test_drawn_tasks_and_plain_pairs_are_collated():
    collator = ContextualCollator(EmbeddingTargets())
    rows = embedded_rows().to_list()
    batch = collator(
        [
            {"user_id": "a", "context": rows[:2], "target": rows[2:5]},
            {"user_id": "b", "context": [], "target": rows[5:6]},
        ]
    )
    assert batch["context_mask"].tolist() == [[True, True], [False, False]]
    assert batch["context_index"].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert batch["conditions"][:, 1].tolist() == [2, 0]
    assert collator(rows[:4])["option_embeds"].shape == (8, 6)


def test_options_are_numbered_where_the_model_knows_them():
    dataset = embedded_rows(num_users=3, pairs_per_user=6)
    dataset = dataset.add_column("chosen_option_id", [f"joke{index % 4}" for index in range(18)])
    dataset = dataset.add_column("rejected_option_id", ["joke1", None, "new"] * 6)
    sampling = TaskSampling(min_context=1, max_context=2, num_targets=3, context_in_target=False)
    collator = ContextualCollator(EmbeddingTargets(), option_ids=["joke0", "joke1", "joke2", "joke3"])
    rows = PreferenceRows(dataset)
    tasks = TrainingTasks(rows, sampling, seed=0)
    items = [tasks[0], tasks[1]]
    batch = collator(items)
    contexts, targets = zip(*(task.draw() for task in items), strict=True)
    pairs = [index for target in targets for index in target]
    number = {"joke0": 1, "joke1": 2, "joke2": 3, "joke3": 4}
    expected = [number.get(dataset[int(index)][column], 0) for column in ID_COLUMNS for index in pairs]
    assert batch["option_ids"].tolist() == expected and 0 in expected
    assert batch["context_option_ids"].shape == batch["context_embeds"].shape[:3]
    assert batch["context_option_ids"][0, 0, 0] == number[dataset[int(contexts[0][0])]["chosen_option_id"]]
    drawn = [{"user_id": "a", "context": [dataset[0]], "target": [dataset[1], dataset[2]]}]
    assert collator(drawn)["option_ids"].tolist() == [2, 3, 0, 0]


def test_columns_called_context_and_target_are_no_tasks():
    collator = ContextualCollator(EmbeddingTargets())
    rows = embedded_rows().to_list()[:3]
    expected = collator(rows)["option_embeds"]
    for context, target in (("a text", "another"), (["a"], ["b"]), (None, None)):
        batch = collator([{**row, "context": context, "target": target} for row in rows])
        assert batch["option_embeds"].equal(expected) and "conditions" not in batch


def test_streamed_users_are_told_apart_by_63_bits():
    """`plumless` and `buckeroo` have the same CRC-32; of 100,000 users two would with a chance of 69 %."""
    rows = embedded_rows().to_list()
    collator = ContextualCollator(EmbeddingTargets())
    users = ["plumless", "buckeroo", *map(str, range(2000)), 7, np.int64(8)]
    batch = collator([{"user_id": user, "context": [], "target": rows[:1], "task_number": 2**50} for user in users])
    conditions = batch["conditions"]
    assert conditions.dtype == torch.int64 and conditions[:, 0].unique().numel() == len(users)
    assert (conditions[:, 0] >= 0).all() and (conditions[:, 0] > 2**60).float().mean() > 0.8
    assert conditions[:, 2].unique().tolist() == [2**50]


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (None, "pair 1 in the context of user 'a' has no `chosen_embeds`"),
        ([1.0] * 5, "The embeddings of pair 1 in the context of user 'a' are of sizes 5 and 6, but must be of size 6"),
        ([[1.0] * 6], "of pair 1 in the context of user 'a' is .* but must be a list of numbers"),
        ("text", "of pair 1 in the context of user 'a' is 'text', but must be a list of numbers"),
        ([1e38] * 6, "of pair 1 in the context of user 'a' holds a value of size 1e.38"),
        ([None] * 6, "of pair 1 in the context of user 'a' holds NaN"),
        ("rejected", "of pair 1 in the context of user 'a' are the same. A tie says nothing"),
    ],
)
def test_bad_embeddings_of_streamed_tasks_are_named(embedding, message):
    rows = embedded_rows().to_list()
    rows[1]["chosen_embeds"] = rows[1]["rejected_embeds"] if embedding == "rejected" else embedding
    collator = ContextualCollator(EmbeddingTargets(), embed_size=6)
    with pytest.raises(ValueError, match=message):
        collator([{"user_id": "a", "context": rows[:2], "target": rows[2:4]}])
