"""A policy carries its tokenizer: loaded when it is needed, never saved, pickled or copied."""

import copy
import io
import json
import pickle

import pytest
import torch

from np_trl import QuestionPool, UserProfile, load_policy
from np_trl.models import FiLMGemmaForCausalLM, policy_tokenizer
from np_trl.models.policy_tokenizer import TokenizerSource

from .test_choice_reader import train_adapter
from .test_profile import MORE
from .test_text_context import PAIRS
from .testing_utils import tiny_base, tiny_policy, tiny_tokenizer


@pytest.fixture(scope="module", params=["merged", "adapter"])
def saved(request, tmp_path_factory):
    """Folder of a policy with its tokenizer."""
    folder = tmp_path_factory.mktemp("saved")
    policy = tiny_policy(folder / "base") if request.param == "merged" else train_adapter(folder)
    policy.save_pretrained(folder / "policy")
    tiny_tokenizer().save_pretrained(folder / "policy")
    return folder / "policy"


def test_a_loaded_policy_needs_no_tokenizer(saved, tmp_path):
    policy, tokenizer = load_policy(saved).eval(), tiny_tokenizer()
    assert torch.equal(policy.infer_user(PAIRS), policy.infer_user(PAIRS, tokenizer))
    user = UserProfile(policy, pairs=PAIRS)
    assert torch.equal(user.latents, UserProfile(policy, tokenizer, PAIRS).latents)
    user.save(tmp_path / "ada.safetensors")
    again = UserProfile.load(tmp_path / "ada.safetensors", policy)
    again.add(MORE[0])
    answers = [
        QuestionPool(MORE, policy, *given).logits(user.latents, torch.tensor([0])) for given in ([], [tokenizer])
    ]
    assert torch.equal(*answers)


def test_a_tokenizer_that_is_passed_or_set_wins(saved):
    policy, other = load_policy(saved).eval(), tiny_tokenizer()
    other.eos_token = other.pad_token
    own, others = policy.infer_user(PAIRS), policy.infer_user(PAIRS, other)
    assert not torch.equal(own, others)
    policy.set_tokenizer(other)
    assert policy.get_tokenizer() is other and torch.equal(policy.infer_user(PAIRS), others)


def test_it_is_loaded_once_and_only_when_it_is_needed(saved, monkeypatch):
    loads, load = [], policy_tokenizer.AutoTokenizer.from_pretrained

    def count(*args, **kwargs):
        loads.append(args)
        return load(*args, **kwargs)

    monkeypatch.setattr(policy_tokenizer.AutoTokenizer, "from_pretrained", count)
    policy = load_policy(saved).eval()
    policy.infer_user([])
    UserProfile(policy)
    assert not loads
    policy.infer_user(PAIRS)
    policy.infer_user(MORE)
    assert len(loads) == 1


def test_it_is_no_part_of_the_model(saved, tmp_path):
    policy = load_policy(saved).eval()
    policy.get_tokenizer()
    copied = copy.deepcopy(policy)
    assert (
        copied.get_tokenizer() is policy.get_tokenizer() and copied.state_dict().keys() == policy.state_dict().keys()
    )
    with io.BytesIO() as file:
        torch.save(policy, file)
        size, _ = file.tell(), file.seek(0)
        again = torch.load(file, weights_only=False)
    plain = load_policy(saved).eval()
    with io.BytesIO() as file:
        torch.save(plain, file)
        assert size == file.tell()  # the pickle of a policy whose tokenizer was never loaded
    torch.testing.assert_close(again.infer_user(PAIRS), policy.infer_user(PAIRS))
    policy.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert not any("token" in name for name in files - {"policy_tokenizer.py"})
    configs = [json.loads(path.read_text()) for path in tmp_path.glob("*config.json")]
    assert configs and not any("tokenizer" in key for config in configs for key in config)


def test_a_pickle_holds_no_secret():
    source = pickle.loads(pickle.dumps(TokenizerSource("a/b", revision="c", token="hf_secret", dtype="float32")))
    assert (source.path, source.kwargs) == ("a/b", {"revision": "c"})
    assert TokenizerSource("a/b", token="hf_secret").kwargs == {"token": "hf_secret"}


def test_a_policy_without_a_tokenizer_says_what_to_do(tmp_path):
    policy = tiny_policy(tmp_path / "base")
    policy.save_pretrained(tmp_path / "policy")
    bare = tiny_base(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).unlink()
    made = FiLMGemmaForCausalLM(policy.config).eval()
    for model, error in (
        (load_policy(tmp_path / "policy"), r"No tokenizer can be loaded from '.*policy'"),
        (FiLMGemmaForCausalLM.from_pretrained(bare), r"o tokenizer (can be loaded from|in) '.*bare'"),
        (made, "was not loaded from a folder or the Hub"),
    ):
        assert model.infer_user([]).isfinite().all()
        with pytest.raises(
            ValueError, match=error + r".*Pass the policy's tokenizer as `tokenizer`, or .*set_tokenizer"
        ):
            model.infer_user(PAIRS)
        assert model.infer_user(PAIRS, tiny_tokenizer()).isfinite().all()
