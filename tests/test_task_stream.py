"""Streams of tasks: shared out among processes and workers, and refused where a pair is not finite."""

import copy

import pytest
import torch
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from np_trl.data.embedding_columns import EMBED_COLUMNS
from np_trl.data.task_stream import TaskStream, check_tasks, stream_embeddings

from .testing_utils import embedded_rows, reward_config, task_rows


NUM_PROCESSES = 2


def users_of_process(stream, rank: int, num_workers: int, batch_size: int = 2) -> list[list[int]]:
    loader = DataLoader(
        TaskStream(stream), batch_size=batch_size, num_workers=num_workers, collate_fn=lambda tasks: tasks
    )
    PartialState(cpu=True)
    shared = prepare_data_loader(
        loader, num_processes=NUM_PROCESSES, process_index=rank, dispatch_batches=False, put_on_device=False
    )
    return [[task["user_id"] for task in batch] for batch in shared]


@pytest.mark.parametrize("num_files", [1, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_and_workers_share_a_stream_without_repeats(num_files, num_workers):
    """Fails when accelerate deals streams out otherwise."""
    stream = task_rows(embedded_rows(num_users=16, pairs_per_user=4), num_files=num_files)
    batches = [users_of_process(stream, rank, num_workers) for rank in range(NUM_PROCESSES)]
    assert len(batches[0]) == len(batches[1]) == 4
    users = [user for process in batches for batch in process for user in batch]
    assert sorted(users) == list(range(16))


@pytest.mark.parametrize("num_files", [1, 3])
def test_processes_have_equally_many_batches_of_a_stream_that_is_not_even(num_files):
    stream = task_rows(embedded_rows(num_users=13, pairs_per_user=4), num_files=num_files)
    batches = [users_of_process(stream, rank, num_workers=0) for rank in range(NUM_PROCESSES)]
    assert len(batches[0]) == len(batches[1]) == 4
    assert {user for process in batches for batch in process for user in batch} == set(range(13))


def test_a_shuffled_stream_is_shuffled_anew_every_epoch():
    stream = task_rows(embedded_rows(num_users=16, pairs_per_user=4)).shuffle(seed=0, buffer_size=16)
    epochs = []
    for epoch in range(2):
        shuffled = TaskStream(copy.deepcopy(stream))
        shuffled.set_epoch(epoch)
        epochs.append([task["user_id"] for task in shuffled])
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])


def test_batches_of_tasks_are_not_cut_by_one_process(tmp_path):
    with pytest.raises(ValueError, match="'dispatch_batches': True.*Leave `dispatch_batches` out"):
        reward_config(tmp_path, accelerator_config={"dispatch_batches": True})
    assert reward_config(tmp_path).accelerator_config.dispatch_batches is False


PAIR = {"prompt": "How?", "chosen": "a", "rejected": "b"}


def stream(*tasks: dict) -> IterableDataset:
    return Dataset.from_list(list(tasks)).to_iterable_dataset()


def checked(*tasks: dict, name: str = "eval", **kwargs) -> list[dict]:
    return list(check_tasks(stream(*tasks), name, **kwargs))


@pytest.mark.parametrize("user", [None, float("nan"), "", " \t"])
def test_a_streamed_task_says_whose_it_is(user):
    with pytest.raises(
        ValueError, match="`user_id` of a task of the train dataset is .*, which does not say whose it is"
    ):
        checked({"user_id": user, "context": [], "target": [PAIR]}, name="train")


def test_plain_rows_are_no_stream_of_tasks():
    with pytest.raises(
        ValueError, match=r"have no \['context', 'target'\], only .*Group the pairs of each user so, or load them"
    ):
        checked({"user_id": "a", **PAIR})
    with pytest.raises(
        ValueError, match="the target of user 'a' in the eval dataset is 'b', but must be a list of pairs"
    ):
        checked({"user_id": "a", "context": [PAIR], "target": "b"})
    with pytest.raises(ValueError, match="The target of user 'a' in the eval dataset is empty"):
        checked({"user_id": "a", "context": [PAIR], "target": []})


def test_streamed_pairs_are_checked_as_rows_are():
    tie = {**PAIR, "rejected": "a"}
    with pytest.raises(ValueError, match="of pair 1 in the context of user 'a' in the train dataset are the same"):
        checked({"user_id": "a", "context": [PAIR, tie], "target": [PAIR]}, name="train")
    with pytest.raises(ValueError, match=r"pair 0 in the target of user 'a' in the train dataset has no \['chosen'\]"):
        checked({"user_id": "a", "context": [], "target": [{"rejected": "b"}]}, name="train", required=("chosen",))


def test_streamed_targets_that_the_context_shows_are_left_out_of_an_evaluation(caplog):
    mirrored, other = {**PAIR, "chosen": "b", "rejected": "a"}, {**PAIR, "prompt": "Why?"}
    tasks = [
        {"user_id": "a", "context": [PAIR], "target": [mirrored, other, PAIR]},
        {"user_id": "b", "context": [PAIR], "target": [mirrored]},
    ]
    (task,) = checked(*tasks)
    assert task["target"] == [other] and task["context"] == [PAIR]
    assert (
        "Left out 2 of 3 targets of user 'a'" in caplog.text and "Left out 1 of 1 targets of user 'b'" in caplog.text
    )
    assert len(checked(*tasks, name="train")) == 2  # where contexts may be a part of the targets
    rows = embedded_rows().select_columns(list(EMBED_COLUMNS)).to_list()
    mirrored = dict(zip(EMBED_COLUMNS, (rows[0][EMBED_COLUMNS[1]], rows[0][EMBED_COLUMNS[0]]), strict=True))
    rounded = {name: [value + 1e-5 for value in rows[1][name]] for name in EMBED_COLUMNS}
    (task,) = checked({"user_id": 1, "context": rows[:2], "target": [mirrored, rounded, rows[3]]})
    assert task["target"] == [rows[3]]


def test_what_a_trainer_computes_is_not_taken_from_a_stream():
    old = {**PAIR, "ref_chosen_logps": -1.0, "ref_rejected_logps": -50.0, "prompt_ids": [1], "messages": []}
    (task,) = checked({"user_id": "a", "context": [], "target": [old]})
    assert task["target"] == [PAIR]


def test_the_embeddings_of_the_first_tasks_are_read_and_the_stream_begins_again():
    rows = embedded_rows(num_users=6, pairs_per_user=4)
    tasks = task_rows(rows)
    found = torch.cat(list(stream_embeddings(tasks, max_pairs=10)))
    assert found.shape == (2 * 12, 6)  # of three users
    expected = [row[column] for row in rows.select(range(12)) for column in EMBED_COLUMNS]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert [task["user_id"] for task in tasks] == list(range(6))
    assert list(stream_embeddings(stream({"user_id": 1, "context": [], "target": [PAIR]}), max_pairs=10)) == []
