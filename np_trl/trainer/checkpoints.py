"""Checkpoints that say whether they are whole: a list of their files, with sizes and hashes, that is written last."""

import json
import os
from pathlib import Path

import xxhash
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


SEAL = "checkpoint_files.json"


def seal_checkpoint(folder: str) -> None:
    """
    Write the list of a checkpoint's files. It appears at once, and only when all else is there.

    Args:
        folder (`str`):
            The checkpoint.
    """
    part = Path(folder, f"{SEAL}.part")
    part.write_text(json.dumps({name: _describe(Path(folder, name)) for name in _files(folder)}, indent=2))
    os.replace(part, Path(folder, SEAL))


def is_sealed(folder: str) -> bool:
    """Whether a checkpoint has a list of its files: it has none if it was not written to its end."""
    return Path(folder, SEAL).exists()


def damaged_files(folder: str) -> list[str]:
    """
    Compare a checkpoint with its list.

    Args:
        folder (`str`):
            A sealed checkpoint.

    Returns:
        `list[str]`: the files that are absent or not as they were.
    """
    expected = json.loads(Path(folder, SEAL).read_text())
    return [
        name
        for name, description in expected.items()
        if not Path(folder, name).exists() or _describe(Path(folder, name)) != description
    ]


def last_whole_checkpoint(output_dir: str) -> str | None:
    """
    Find the newest checkpoint that is whole.

    Args:
        output_dir (`str`):
            Where a run saves.

    Returns:
        `str` or `None`: its folder; `None` if there is none.
    """
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {int(folder.name.split("-")[-1]): folder for folder in folders if folder.name.split("-")[-1].isdigit()}
    for step in sorted(steps, reverse=True):
        if is_sealed(steps[step]) and not damaged_files(steps[step]):
            return str(steps[step])
    return None


def _files(folder: str) -> list[str]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(SEAL))
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _describe(path: Path) -> dict[str, int | str]:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(2**24):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "xxh3": digest.hexdigest()}
