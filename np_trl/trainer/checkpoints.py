"""
Checkpoints with a seal: a list of their files, and the run that they belong to.

A checkpoint is opened before anything of it is written, which leaves a note of the run. It is sealed when all of it is on the
disk: the seal lists every file with size and hash, names the run, and has a hash of its own.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import xxhash
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from np_trl.files import sync_folder, write_whole


SEAL = "checkpoint_files.json"
_NOTE = f"{SEAL}.part"  # of the run, until there is a seal

# names of the files that a run may be resumed from: one that is not listed makes a checkpoint doubtful
_STATE_FILES = (".bin", ".distcp", ".index.json", ".pt", ".pth", ".safetensors")


def open_checkpoint(folder: str, run: dict | None) -> None:
    """
    Begin to write a checkpoint. The files that the seal of a former one lists, or the state that one which was never finished
    left, are removed, so that none of them is taken for one of the new checkpoint.

    Args:
        folder (`str`):
            The checkpoint. It is made if need be.
        run (`dict` or `None`):
            What to say of the run.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    former = _read_seal(folder)
    stale = list(former["files"]) if former else []
    if is_unfinished(folder):
        stale = [name for name in _files(folder) if name.endswith((*_STATE_FILES, ".json"))]
    for part in Path(folder).glob(".np_trl_*"):  # left behind by a process that was stopped: nobody else writes here
        shutil.rmtree(part, ignore_errors=True)
    for name in (SEAL, *stale):
        path = Path(folder, name)
        with suppress(OSError, ValueError):  # a file that is absent, or a name that no file can have
            shutil.rmtree(path) if name == SEAL and path.is_dir() else path.unlink()
    write_whole(Path(folder, _NOTE), json.dumps(run))


def seal_checkpoint(folder: str, run: dict | None = None) -> bool:
    """
    Write the seal of a checkpoint. It appears at once, and only when all else is on the disk.

    Args:
        folder (`str`):
            A checkpoint that was opened; or, without `run`, one whose content is to be sealed again.
        run (`dict`, *optional*):
            What was said of the run when it was opened. What the checkpoint says of it, if not given.

    Returns:
        `bool`: whether it was sealed. It is not where another run has opened it since: files of both may be in it, so that the
        other one does not seal it either.
    """
    note = Path(folder, _NOTE)
    if run is None:
        run = read_run(folder)
    elif not note.exists() or _read_json(note) != run:
        note.unlink(missing_ok=True)
        return False
    sync_folder(folder)
    files = {name: _describe(Path(folder, name)) for name in _files(folder)}
    write_whole(Path(folder, SEAL), json.dumps({"files": files, "run": run, "xxh3": _hash(files, run)}, indent=2))
    note.unlink(missing_ok=True)
    return True


def is_sealed(folder: str) -> bool:
    """Whether a checkpoint has a seal, whole or damaged: it has none if it was not written to its end."""
    return os.path.lexists(Path(folder, SEAL))


def is_unfinished(folder: str) -> bool:
    """Whether a checkpoint was opened and never sealed."""
    return Path(folder, _NOTE).exists() and not is_sealed(folder)


def read_run(folder: str) -> dict | None:
    """What a checkpoint, finished or not, says of its run; `None` if it says nothing, or cannot be read."""
    seal = _read_seal(folder) if is_sealed(folder) else {"run": _read_json(Path(folder, _NOTE))}
    run = seal["run"] if seal else None
    is_run = isinstance(run, dict) and isinstance(run.get("id"), str) and isinstance(run.get("facts"), dict)
    return run if is_run else None


def damaged_files(folder: str) -> list[str]:
    """
    Compare a checkpoint with its seal.

    Args:
        folder (`str`):
            A sealed checkpoint.

    Returns:
        `list[str]`: the files that are absent, not as they were, or not listed and yet of a kind that would be loaded; and the
        seal itself if it cannot be read, or lists no state of a run.
    """
    seal = _read_seal(folder)
    if seal is None:
        return [SEAL]
    files = seal["files"]
    damaged = [name for name, description in files.items() if not _is_unchanged(Path(folder, name), description)]
    damaged += [name for name in _files(folder) if name.endswith(_STATE_FILES) and name not in files]
    if TRAINER_STATE_NAME not in files or not any(name.endswith(_STATE_FILES) for name in files):
        damaged.append(SEAL)
    return damaged


def whole_checkpoints(output_dir: str) -> Iterator[str]:
    """
    Find the checkpoints that are whole.

    Args:
        output_dir (`str`):
            Where runs save.

    Yields:
        `str`: folders, the newest first: those of the latest start of training, and of them the latest step.
    """
    for folder in reversed(_sorted_checkpoints(output_dir)):
        if is_sealed(folder) and not damaged_files(folder):
            yield folder


def last_whole_checkpoint(output_dir: str) -> str | None:
    """The first of [`whole_checkpoints`]; `None` if there is none."""
    return next(whole_checkpoints(output_dir), None)


def last_start(output_dir: str) -> int:
    """How often training was started in a folder, by its checkpoints."""
    return max((_start(read_run(folder)) for folder in _sorted_checkpoints(output_dir)), default=0)


def remove_old_checkpoints(output_dir: str, newest: str, best: str | None, limit: int | None) -> None:
    """
    Delete the oldest checkpoints of a run, and those that it did not finish. Clocks have no say in it.

    Args:
        output_dir (`str`):
            Where runs save. Checkpoints of other runs, and those that say nothing of their run, stay.
        newest (`str`):
            The checkpoint that was just sealed, which stays.
        best (`str` or `None`):
            The best one, which stays too.
        limit (`int` or `None`):
            How many to keep. All, if it is `None` or not positive.
    """
    run = read_run(newest)
    if limit is None or limit <= 0 or run is None:
        return
    own = [folder for folder in _sorted_checkpoints(output_dir) if (read_run(folder) or {}).get("id") == run["id"]]
    kept = {Path(path).resolve() for path in (newest, best) if path is not None}
    old = [folder for folder in own if Path(folder).resolve() not in kept]
    finished = [folder for folder in old if is_sealed(folder)]
    num_kept = max(limit - (len(own) - len(old)), 0)
    for folder in old:
        if folder not in finished or folder in finished[: len(finished) - num_kept]:
            shutil.rmtree(folder, ignore_errors=True)


def _sorted_checkpoints(output_dir: str) -> list[str]:
    """Folders that are named like checkpoints, the oldest first: by the start of training, then by the step."""
    found = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        name = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(0|[1-9][0-9]{{0,17}})", folder.name)
        if name is not None and folder.is_dir():
            found.append((_start(read_run(folder)), int(name[1]), str(folder)))
    return [folder for _, _, folder in sorted(found)]


def _start(run: dict | None) -> int:
    start = (run or {}).get("start")
    return start if type(start) is int else 0


def _read_seal(folder: str) -> dict | None:
    """The `files` and the `run` of a seal; `None` if it is absent or damaged."""
    seal = _read_json(Path(folder, SEAL))
    if not isinstance(seal, dict):
        return None
    if seal.keys() != {"files", "run", "xxh3"}:  # np_trl 0.1.0 listed the files and nothing else
        seal = {"files": seal, "run": None}
    elif seal["xxh3"] != _hash(seal["files"], seal["run"]):
        return None
    files = seal["files"]
    return seal if isinstance(files, dict) and all(_is_inside(folder, name) for name in files) else None


def _read_json(path: Path):
    """What a file says; `None` if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _hash(files: dict, run: dict | None) -> str:
    return xxhash.xxh3_64(json.dumps([files, run], sort_keys=True).encode()).hexdigest()


def _is_inside(folder: str, name: str) -> bool:
    try:
        return Path(folder, name).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError):  # a name that no file can have
        return False


def _files(folder: str) -> list[str]:
    """What a seal lists: all but itself, and texts about the checkpoint, which may change later."""
    names = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if not name.name.startswith(SEAL) and name.suffix != ".md")


def _is_unchanged(path: Path, description: dict) -> bool:
    try:
        same_size = isinstance(description, dict) and path.stat().st_size == description.get("bytes")
        return same_size and _describe(path) == description
    except (OSError, ValueError):
        return False


def _describe(path: Path) -> dict[str, int | str]:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(2**24):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "xxh3": digest.hexdigest()}
