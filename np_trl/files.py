"""Files and folders that appear whole or not at all, whatever stops the process that writes them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """
    A file to write to, which replaces `path` when it is complete and on the disk, and is gone if it never is.

    Args:
        path (`str` or `Path`):
            The file, in a folder that exists. Writers of the same path do not disturb each other: the last one stays.

    Yields:
        `Path`: a new file in the same folder.

    Raises:
        `IsADirectoryError`: if `path` is a folder.
        `FileNotFoundError`: if its folder does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{str(path)!r} cannot be written: there is no folder {str(path.parent)!r}. Make it first."
        )
    with _named(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".np_trl_") as folder:
        part = Path(folder, "part")
        yield part
        _sync(part)
        os.replace(part, path)
    _sync(path.parent)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """
    A folder to write to, which gets its name when all in it is complete and on the disk, and is gone if it never is.

    Args:
        path (`str` or `Path`):
            A folder that is new or empty. Folders above it are made.

    Yields:
        `Path`: a new folder beside it.

    Raises:
        `FileExistsError`: if there is something in the folder, or another process has filled it meanwhile.
    """
    path = Path(os.path.realpath(path))
    _check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".np_trl_") as parent:
        folder = Path(parent, "part")
        folder.mkdir()
        yield folder
        sync_folder(folder)
        is_here = path == Path.cwd()
        _check_free(path)
        os.replace(folder, path)
        if is_here:  # the folder that the process stood in is gone
            os.chdir(path)
    _sync(path.parent)


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file: [`whole_file`]."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def sync_folder(folder: str | Path) -> None:
    """Wait until all that is in a folder is on the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have errors of the system, such as of a full disk, name what was to be written, where they name nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(
            error.errno, f"{error.strerror}. It was not written; what was there is there still", str(path)
        ) from error


def _check_free(path: Path) -> None:
    if path.is_file() or path.exists() and any(path.iterdir()):
        raise FileExistsError(f"There is something in {str(path)!r}. Name another folder, or remove it.")


def _sync(path: Path) -> None:
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
