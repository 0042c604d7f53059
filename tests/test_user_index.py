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
