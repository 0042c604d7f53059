"""Streams of tasks: shared out among processes and workers, and refused where a pair is not finite."""

import copy

import pytest
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from np_trl.data.task_stream import TaskStream

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
