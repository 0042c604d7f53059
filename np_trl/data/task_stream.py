"""Streams of tasks that are drawn already: checked, and shared out among processes."""

import json
import logging
import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from torch.utils.data import get_worker_info

from np_trl.data.contextual_collator import pair_places, stack_embeds
from np_trl.data.embedding_columns import EMBED_COLUMNS
from np_trl.data.pair_codes import is_same_pair
from np_trl.data.validation import FOREIGN_COLUMNS
from np_trl.models.texts import SIDES, canonical, check_pair


logger = logging.getLogger(__name__)

# of one dataloader worker
MAX_TASKS = 2**40
TASK_KEYS = ("user_id", "context", "target")


class TaskStream(torch.utils.data.IterableDataset):
    """
    A stream of tasks for one process or for several.

    Accelerate deals the items of a plain stream to the processes in turns, and completes the last batch of each dataloader
    worker from its beginning: every process has the same number of batches, and beside these tasks each comes once a pass. The
    streams of `datasets` it would deal file by file, and the processes whose files hold less would leave the others waiting.

    Tasks are numbered (`task_number`), so that repeated ones can be found. Their order depends on the number of workers.

    Args:
        dataset ([`~datasets.IterableDataset`]):
            Rows with `user_id`, `context` and `target` (lists of pairs). Dataloader workers share its files among them.
    """

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Shuffle again, where the stream is shuffled: [`~datasets.IterableDataset.set_epoch`]."""
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first = 0 if worker is None else worker.id * MAX_TASKS
        for number, task in enumerate(self.dataset, start=first):
            yield {**task, "task_number": number}


def check_tasks(dataset: IterableDataset, name: str, required: tuple[str, ...] = ()) -> IterableDataset:
    """
    Check the tasks of a stream as they come.

    Args:
        dataset ([`~datasets.IterableDataset`]):
            Rows with `user_id`, `context` and `target` (lists of pairs).
        name (`str`):
            What to call the stream in an error. Of all but `"train"`, targets that are in the context of their task too, in
            either order, are left out, and so are tasks without another target, with a logged warning.
        required (`tuple[str, ...]`, *optional*):
            Keys that every target must have.

    Returns:
        [`~datasets.IterableDataset`]: the tasks, without what a trainer computes itself of a pair. Its iteration raises a
        `ValueError` at a row that is no task, at an unknown user, and at a pair that is not well.
    """
    return dataset.map(_check_batch, fn_kwargs={"name": name, "required": required}, batched=True, batch_size=16)


def stream_embeddings(dataset: IterableDataset, max_pairs: int) -> Iterator[torch.Tensor]:
    """
    Read the embeddings of the first tasks of a stream, in a pass of its own.

    Args:
        dataset ([`~datasets.IterableDataset`]):
            Tasks. Pairs without embeddings, such as the targets of a policy, are passed over.
        max_pairs (`int`):
            After how many pairs to stop.

    Yields:
        `torch.Tensor` of shape `(N, E)`: those of the options of one task.
    """
    num_pairs = 0
    for task in dataset:
        pairs, places = [], []
        for part in ("context", "target"):
            for pair, place in zip(task[part], pair_places([task], part), strict=True):
                if _is_embedded(pair):
                    pairs.append(pair)
                    places.append(place)
        if pairs:
            yield stack_embeds(pairs, places).flatten(0, 1)
        num_pairs += len(pairs)
        if num_pairs >= max_pairs:
            break


def _check_batch(batch: dict[str, list], name: str, required: tuple[str, ...]) -> dict[str, list]:
    missing = [key for key in TASK_KEYS if key not in batch]
    if missing:
        raise ValueError(
            f"The rows of the streamed {name} dataset have no {missing}, only {list(batch)}. Each row of a stream is a task: "
            "`user_id`, and the lists of pairs `context` and `target`. Group the pairs of each user so, or load them without "
            "`streaming=True`: tasks are drawn of the rows of a plain dataset."
        )
    tasks = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    tasks = [_check_task(task, name, required) for task in tasks]
    if name != "train":
        tasks = [_without_shown(task, name) for task in tasks]
        tasks = [task for task in tasks if task["target"]]
    return {key: [task[key] for task in tasks] for key in batch}


def _check_task(task: dict[str, Any], name: str, required: tuple[str, ...]) -> dict[str, Any]:
    user, parts = task["user_id"], {}
    is_number = isinstance(user, Real) and math.isfinite(user)
    if not is_number and not (isinstance(user, str) and user.strip()):
        raise ValueError(
            f"`user_id` of a task of the {name} dataset is {user!r}, which does not say whose it is. Give text or a number, or "
            "leave the task out."
        )
    for part in ("context", "target"):
        pairs = [] if task[part] is None else task[part]
        where = f"the {part} of user {user!r} in the {name} dataset"
        if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
            raise ValueError(f"{where} is {str(pairs)[:60]!r}, but must be a list of pairs.")
        for index, pair in enumerate(pairs):
            texts = {key: value for key, value in pair.items() if value is not None or key in required}
            check_pair(texts, f"pair {index} in {where}", required=required if part == "target" else ())
        parts[part] = [{key: value for key, value in pair.items() if key not in FOREIGN_COLUMNS} for pair in pairs]
    if not parts["target"]:
        raise ValueError(f"The target of user {user!r} in the {name} dataset is empty. Leave the task out.")
    return {**task, **parts}


def _without_shown(task: dict[str, Any], name: str) -> dict[str, Any]:
    """Leave out the targets that the context shows, in either order."""
    shown = {_text_key(pair) for pair in task["context"]} - {None}
    is_shown = np.array([_text_key(pair) in shown for pair in task["target"]]) | _is_shown_embedded(task)
    targets = [pair for pair, is_known in zip(task["target"], is_shown, strict=True) if not is_known]
    if len(targets) < len(task["target"]):
        logger.warning(
            "Left out %d of %d targets of user %r in the %s dataset, which are in its context too.",
            len(task["target"]) - len(targets), len(task["target"]), task["user_id"], name,
        )  # fmt: skip
    return {**task, "target": targets}


def _text_key(pair: dict[str, Any]) -> tuple | None:
    """What a pair is known by where it has texts, in either order."""
    if any(pair.get(side) is None for side in SIDES):
        return None
    options = sorted(json.dumps(canonical(pair[side])) for side in SIDES)
    return *(json.dumps(canonical(pair.get(key))) for key in ("prompt", "tools", "chat_template_kwargs")), *options


def _is_shown_embedded(task: dict[str, Any]) -> np.ndarray:
    """Whether each target has, but for rounding, the embeddings of a context pair, in either order."""
    embeds, numbers = [], []
    for part in ("context", "target"):
        numbers.append([index for index, pair in enumerate(task[part]) if _is_embedded(pair)])
        places = pair_places([task], part)
        pairs = [task[part][index] for index in numbers[-1]]
        embeds.append(stack_embeds(pairs, [places[index] for index in numbers[-1]]).double().numpy())
    is_shown = np.zeros(len(task["target"]), dtype=bool)
    contexts, targets = embeds
    if len(contexts) and len(targets) and contexts.shape[2] == targets.shape[2]:
        is_shown[numbers[1]] = is_same_pair(targets[:, None], contexts).any(axis=1)
    return is_shown


def _is_embedded(pair: dict[str, Any]) -> bool:
    return all(pair.get(column) is not None for column in EMBED_COLUMNS)
