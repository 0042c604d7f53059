"""Files of a user's choices."""

import json

import pytest

from np_trl.users import read_pairs
from np_trl.users.user_file import name_users

from .test_text_context import PAIRS
from .testing_utils import ROOT


def test_the_files_of_the_examples_are_read():
    for path in (ROOT / "examples" / "users").glob("*.json"):
        assert len(read_pairs(path)) == 10


@pytest.mark.parametrize("content, pairs", [({"pairs": PAIRS}, PAIRS), ({"pairs": None}, []), ({"pairs": []}, [])])
def test_pairs_may_be_none(tmp_path, content, pairs):
    (tmp_path / "user.json").write_text(json.dumps(content))
    assert read_pairs(tmp_path / "user.json") == pairs


@pytest.mark.parametrize(
    "content, error",
    [
        (json.dumps(PAIRS), "holds a list, but must be an object with `pairs`"),
        ("{}", r"holds the keys \[\], but must be an object with `pairs`"),
        ('{"pairs": {}}', "`pairs` .* is a dict, but must be a list"),
        ('{"pairs": [null]}', "Pair 0 in .* is 'None'"),
        ('{"pairs": [', "holds no pairs: it cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (json.dumps({"pairs": [{**PAIRS[0], "chosen": 5}]}), "`chosen` of Pair 0 in .* must be text"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, error):
    path = tmp_path / "user.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=error) as raised:
        read_pairs(path)
    assert str(path) in str(raised.value)


def test_an_error_shows_little_of_what_a_user_wrote(tmp_path):
    path = tmp_path / "user.json"
    path.write_text(json.dumps({"secret " * 100: 1}))
    with pytest.raises(ValueError, match="holds the keys") as raised:
        read_pairs(path)
    assert str(raised.value).count("secret") < 10
    with pytest.raises(FileNotFoundError, match="There is no file '.*absent.json' with the choices"):
        read_pairs(tmp_path / "absent.json")


def test_no_two_users_get_one_name():
    assert list(name_users(["a/ada.json", "b/bob.safetensors"])) == ["ada", "bob"]
    with pytest.raises(ValueError, match="'a/ada.json' and 'b/ada.safetensors' would both be the user 'ada'"):
        name_users(["a/ada.json", "b/ada.safetensors"])
