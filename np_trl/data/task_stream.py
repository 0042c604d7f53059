"""Streams of tasks that are drawn already, shared out among processes."""

from collections.abc import Iterator
from typing import Any

import torch
from datasets import IterableDataset
from torch.utils.data import get_worker_info


# of one dataloader worker
MAX_TASKS = 2**40


class TaskStream(torch.utils.data.IterableDataset):
    """
    A stream of tasks for one process or for several.

    Accelerate deals the items of a plain stream to the processes in turns, and completes the last batch of each dataloader
    worker from its beginning: every process has the same number of batches, and beside these tasks each comes once a pass. The
    streams of `datasets` it would deal file by file, and the processes whose files hold less would leave the others waiting.

    Tasks are numbered, so that those that come twice can be told: `task_number`. Their order depends on the number of workers.

    Args:
        dataset ([`~datasets.IterableDataset`]):
            Rows with `user_id`, `context` and `target` (lists of pairs). Dataloader workers share its files among them.
    """

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew, where the stream is shuffled: [`~datasets.IterableDataset.set_epoch`]."""
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first = 0 if worker is None else worker.id * MAX_TASKS
        for number, task in enumerate(self.dataset, start=first):
            yield {**task, "task_number": number}
