"""Files that appear whole or not at all."""

import errno
import os
import threading
from pathlib import Path

import pytest

from np_trl.files import whole_file, whole_folder, write_whole


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    with pytest.raises(OSError, match="disk"), whole_file(path) as part:
        part.write_text("ne")
        raise OSError("disk full")
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.json"]
    write_whole(path, "new")
    assert path.read_text() == "new" and [file.name for file in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(IsADirectoryError, match="Name a file in it"):
        write_whole(tmp_path, "x")
    with pytest.raises(FileNotFoundError, match="there is no folder '.*absent'. Make it first"):
        write_whole(tmp_path / "absent" / "a.json", "x")
    with pytest.raises(OSError, match="No space left.*'.*a.json'"), whole_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` has it, which knows no path
    assert path.read_text() == "new"


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path, errors = tmp_path / "a.json", []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_whole(path, text * 1000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abc"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors and len(set(path.read_text())) == 1 and len(path.read_text()) == 1000
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_that_someone_left_is_not_written_through(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "a.json"
    victim.write_text("precious")
    for name in ("a.json.part", "a.json"):
        os.symlink(victim, tmp_path / name)
    write_whole(path, "mine")
    assert victim.read_text() == "precious" and path.read_text() == "mine"


@pytest.mark.parametrize("kind", ["new", "empty", "link", "dangling link", "."])
def test_a_folder_appears_when_it_is_complete(tmp_path, monkeypatch, kind):
    real, path = tmp_path / "real", tmp_path / "x" / "folder"
    path.parent.mkdir()
    if kind != "dangling link":
        real.mkdir()
    if kind == "empty":
        path.mkdir()
    elif kind.endswith("link"):
        os.symlink(real, path)
    elif kind == ".":
        monkeypatch.chdir(real)
        path = Path(".")
    with whole_folder(path) as folder:
        (folder / "a").write_text("a")
        assert not Path(path, "a").exists()
    assert Path(path, "a").read_text() == "a" and Path.cwd().exists()
    with pytest.raises(FileExistsError, match="There is something in"), whole_folder(path):
        pass


def test_a_folder_that_another_process_filled_meanwhile_stays(tmp_path):
    with (
        pytest.raises(FileExistsError, match="There is something in .*folder"),
        whole_folder(tmp_path / "folder") as part,
    ):
        (part / "a").write_text("ours")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a").write_text("theirs")
    assert (tmp_path / "folder" / "a").read_text() == "theirs" and len(list(tmp_path.iterdir())) == 1
