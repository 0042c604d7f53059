"""Files of a user's choices."""

import json
import runpy

import numpy as np
import pytest
import torch

from np_trl import UserProfile
from np_trl.scripts import generate
from np_trl.users import read_pairs
from np_trl.users.user_file import name_users, write_pairs

from .test_profile import KINDS, MORE, build
from .test_text_context import PAIRS, as_conversation
from .testing_utils import ROOT, tiny_reward_model


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_is_the_same_from_either_kind_of_file(tmp_path, kind):
    model, tokenizer = build(kind, tmp_path / "model")
    for pairs in ([*PAIRS, *MORE], []):
        user = UserProfile(model, tokenizer, pairs)
        user.save(tmp_path / "ada.safetensors")
        UserProfile.to_json(tmp_path / "ada.json", pairs)
        assert read_pairs(tmp_path / "ada.json") == pairs
        again = UserProfile.from_json(tmp_path / "ada.json", model, tokenizer)
        assert again.keys == user.keys and torch.equal(again.latents, user.latents)
        for name in ("ada.json", "ada.safetensors"):
            read = UserProfile.from_file(tmp_path / name, model, tokenizer)
            assert read.keys == user.keys and torch.equal(read.latents, user.latents)


def test_what_a_model_reads_of_a_pair_is_written_and_nothing_else(tmp_path):
    path, model = tmp_path / "ada.json", tiny_reward_model(option_ids=["a", "b"]).eval()
    torch.nn.init.normal_(model.option_vectors.weight)
    read = {"chosen": "größer", "rejected": "small", "chosen_option_id": "a", "rejected_option_id": "b"}
    embeds = {"chosen_embeds": torch.randn(6), "rejected_embeds": np.random.default_rng(0).normal(size=6)}
    pairs = [{**read, **embeds, "user_id": 7, "tools": None}]
    UserProfile.to_json(path, pairs)
    assert "größer" in path.read_text(encoding="utf-8")
    assert read_pairs(path)[0].keys() == read.keys() | embeds.keys()
    assert torch.equal(UserProfile.from_json(path, model).latents, UserProfile(model, pairs=pairs).latents)
    template = {"tools": [{"type": "function"}], "chat_template_kwargs": {"greeting": "hello"}}
    conversation = {**as_conversation(PAIRS[0]), **template}
    write_pairs(path, [conversation])
    assert read_pairs(path) == [conversation]


@pytest.mark.parametrize(
    "pair, error",
    [
        ({"prompt": "a", "chosen": "b"}, r"Pair 1 for '.*ada.json' has no \['rejected'\]"),
        ({**PAIRS[0], "rejected": PAIRS[0]["chosen"]}, "are the same"),
        ({"chosen_embeds": [1.0], "rejected_embeds": [0.0]}, r"has no \['chosen', 'rejected'\]"),
        ({**PAIRS[0], "chosen_option_id": object()}, "Pair 1 for .* cannot be written as JSON"),
        ({**PAIRS[0], "chosen_embeds": [float("nan")]}, "Pair 1 for .* cannot be written as JSON"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path, pair, error):
    path = tmp_path / "ada.json"
    write_pairs(path, PAIRS)
    with pytest.raises(ValueError, match=error):
        write_pairs(path, [PAIRS[1], pair])
    assert read_pairs(path) == PAIRS and [file.name for file in tmp_path.iterdir()] == ["ada.json"]


def test_the_scripts_take_choices_and_profiles(tmp_path, capsys):
    policy, tokenizer = build("policy", tmp_path / "base")
    torch.nn.init.normal_(policy.model.film.weight, std=3)  # so that a user is read off a few tokens
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    reward_model, _ = build("reward", tmp_path / "bert")
    reward_model.save_pretrained(tmp_path / "reward")
    score = runpy.run_path(str(ROOT / "examples" / "score.py"), run_name="score")
    write_pairs(tmp_path / "ada.json", PAIRS)
    for script, model in (("generate", policy), ("score", reward_model)):
        UserProfile(model, tokenizer, PAIRS).save(tmp_path / "ada.safetensors")
        printed = []
        for user in (tmp_path / "ada.json", tmp_path / "ada.safetensors", None):
            user = None if user is None else str(user)
            if script == "generate":
                generate.main(generate.ScriptArguments(str(tmp_path / "policy"), user, max_new_tokens=8))
            else:
                options = {"prompt": "How do I fix the bike?", "completions": [" take it slow", " ask a buddy"]}
                score["main"](score["ScriptArguments"](str(tmp_path / "reward"), **options, user=user))
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1] != printed[2], script


def test_prompts_are_messages_where_the_choices_are(tmp_path):
    write_pairs(tmp_path / "texts.json", PAIRS)
    write_pairs(tmp_path / "messages.json", map(as_conversation, PAIRS))
    write_pairs(tmp_path / "none.json", [])
    users = {"texts.json": False, "messages.json": True, "none.json": False, "ada.safetensors": False}
    for name, expected in users.items():
        assert generate.chose_between_messages(str(tmp_path / name)) is expected
    assert generate.chose_between_messages(None) is False
