"""The index of a dataset's users: right, and found again beside the dataset."""

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk

from np_trl.data import PreferenceRows
from np_trl.data.user_index import UserIndex

from .testing_utils import embedded_rows


USERS = ["b", "a", "b", "c", "a", "b"]


def assert_is_index_of(index: UserIndex, users: list) -> None:
    assert index.users.to_pylist() == list(dict.fromkeys(users))
    for number, user in enumerate(index.users.to_pylist()):
        rows = index.order[index.offsets[number] : index.offsets[number + 1]]
        assert rows.tolist() == [row for row, other in enumerate(users) if other == user]


@pytest.mark.parametrize("users", [USERS, [3, 1, 3, 2, 1, 3]])
def test_it_holds_the_rows_of_every_user_in_order(users):
    assert_is_index_of(UserIndex.of(Dataset.from_dict({"user_id": users})), users)


def test_it_is_built_once_and_found_again(tmp_path, monkeypatch):
    Dataset.from_dict({"user_id": USERS, "text": ["x"] * 6}).save_to_disk(tmp_path)
    assert_is_index_of(UserIndex.of(load_from_disk(tmp_path)), USERS)
    assert len(list(tmp_path.glob("user-index-*"))) == 1
    monkeypatch.setattr(UserIndex, "build", None)  # not again
    again = UserIndex.of(load_from_disk(tmp_path))
    assert_is_index_of(again, USERS)
    assert again.order.base is not None and again.order.dtype == np.int32  # a part of a mapped file


def test_other_rows_have_another_index(tmp_path):
    Dataset.from_dict({"user_id": USERS}).save_to_disk(tmp_path)
    dataset = load_from_disk(tmp_path)
    UserIndex.of(dataset)
    assert_is_index_of(UserIndex.of(dataset.select([5, 3, 0])), ["b", "c", "b"])
    more = concatenate_datasets([dataset, Dataset.from_dict({"user_id": ["d", "a"]})])
    assert_is_index_of(UserIndex.of(more), [*USERS, "d", "a"])
    assert_is_index_of(UserIndex.of(dataset), USERS)


def test_a_half_written_index_is_not_taken_for_one(tmp_path, monkeypatch):
    Dataset.from_dict({"user_id": USERS}).save_to_disk(tmp_path)
    full_disk = np.save

    def save(path, array):
        full_disk(path, array)
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", save)
    before = sorted(tmp_path.iterdir())
    assert_is_index_of(UserIndex.of(load_from_disk(tmp_path)), USERS)  # in memory then
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    assert_is_index_of(UserIndex.of(load_from_disk(tmp_path)), USERS)
    assert len(list(tmp_path.glob("user-index-*"))) == 1


def test_pairs_on_disk_are_read_as_those_in_memory(tmp_path):
    dataset = embedded_rows(num_users=5)
    dataset.save_to_disk(tmp_path)
    rows, mapped = PreferenceRows(dataset), PreferenceRows(load_from_disk(tmp_path))
    assert rows.user_ids == mapped.user_ids and (rows.counts == mapped.counts).all()
    for user in range(5):
        assert (rows.of_user(user) == mapped.of_user(user)).all()
        assert (rows.embeds(rows.of_user(user)) == mapped.embeds(mapped.of_user(user))).all()


def tear(file):
    file.write_bytes(file.read_bytes()[:-3])


def zero(file):
    file.write_bytes(bytes(file.stat().st_size))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [tear, zero, flip, lambda file: file.unlink()])
@pytest.mark.parametrize("name", ["order.npy", "offsets.npy", "users.arrow", "seal.json"])
def test_a_damaged_index_is_made_again(tmp_path, damage, name, caplog):
    Dataset.from_dict({"user_id": USERS}).save_to_disk(tmp_path)
    UserIndex.of(load_from_disk(tmp_path))
    (folder,) = tmp_path.glob("user-index-*")
    damage(folder / name)
    assert not UserIndex.is_whole(folder)
    assert_is_index_of(UserIndex.of(load_from_disk(tmp_path)), USERS)
    assert UserIndex.is_whole(folder) and "is damaged and made again" in caplog.text


def test_what_others_put_into_the_folder_of_an_index_stays(tmp_path):
    Dataset.from_dict({"user_id": USERS}).save_to_disk(tmp_path)
    UserIndex.of(load_from_disk(tmp_path))
    (folder,) = tmp_path.glob("user-index-*")
    (folder / "seal.json").unlink()
    (folder / "notes.txt").write_text("mine")
    assert_is_index_of(UserIndex.of(load_from_disk(tmp_path)), USERS)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_file_with_other_users_gets_another_index_whatever_it_is_called(tmp_path):
    """A fingerprint says how a dataset was made, not what is in its file."""
    Dataset.from_dict({"user_id": USERS}).save_to_disk(tmp_path)
    before = load_from_disk(tmp_path)
    UserIndex.of(before)
    Dataset.from_dict({"user_id": USERS[::-1]}).save_to_disk(tmp_path / "others")
    (file,) = (tmp_path / "others").glob("*.arrow")
    file.replace(next(tmp_path.glob("*.arrow")))
    again = load_from_disk(tmp_path)
    assert again._fingerprint == before._fingerprint
    assert_is_index_of(UserIndex.of(again), USERS[::-1])
