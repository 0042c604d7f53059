"""A model is loaded whole, from safetensors, by code that knows it, or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from np_trl import NPRewardModel, load_policy
from np_trl.models import FiLMGemmaConfig, FiLMGemmaForCausalLM
from np_trl.models.checkpoint_format import FORMAT_VERSION

from .test_remote_code import run_without_np_trl
from .testing_utils import CONTEXT_CONFIG, tiny_base, tiny_policy, tiny_reward_model


LOADERS = {
    "policy": [FiLMGemmaForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained, AutoModel.from_pretrained, load_policy],
    "reward": [NPRewardModel.from_pretrained, AutoModel.from_pretrained],
}  # fmt: skip


@pytest.fixture(params=LOADERS)
def saved(request, tmp_path) -> tuple[Path, list]:
    """A saved policy or reward model, and all ways to load it."""
    model = tiny_policy(tmp_path / "base") if request.param == "policy" else tiny_reward_model()
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", LOADERS[request.param]


def edit_config(folder: Path, remove: str | None = None, **fields) -> None:
    """Set fields of a saved configuration, or remove one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    config.pop(remove, None)
    path.write_text(json.dumps(config))


def edit_weights(folder: Path, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def assert_refused(saved, error: type[Exception], message: str) -> None:
    folder, loaders = saved
    for load in loaders:
        with pytest.raises(error, match=message):
            load(str(folder))


def test_pickles_are_refused(saved):
    folder, _ = saved
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_refused(saved, OSError, "has no `model.safetensors`.*pickles, which can run code")
    for load in saved[1][:2]:
        with pytest.raises(ValueError, match="`use_safetensors=False`, but weights are read from safetensors alone"):
            load(str(folder), use_safetensors=False)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, kept):
    file = saved[0] / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert_refused(saved, OSError, "are not whole .*force_download=True")


def test_weights_that_are_absent_are_named(saved):
    edit_weights(
        saved[0], lambda weights: [weights.pop(name) for name in list(weights) if "context_encoder.pair" in name]
    )
    assert_refused(saved, ValueError, "lack 4 that .* has: .*context_encoder.pair_encoder.*would be random")


@pytest.mark.parametrize("remove", [None, "architectures"])
def test_a_policy_without_film_is_no_plain_base(tmp_path, remove):
    tiny_policy(tmp_path / "base").save_pretrained(tmp_path / "model")
    edit_weights(tmp_path / "model", lambda weights: [weights.pop(name) for name in list(weights) if "film" in name])
    edit_config(tmp_path / "model", remove=remove)
    assert_refused((tmp_path / "model", LOADERS["policy"]), ValueError, "lack 2 that .* has: .*film.bias")


def test_a_missing_shard_is_not_taken_for_a_pickle(tmp_path):
    tiny_policy(tmp_path / "base").save_pretrained(tmp_path / "model", max_shard_size="50KB")
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert isinstance(load_policy(str(tmp_path / "model")), FiLMGemmaForCausalLM)
    shards[0].unlink()
    with pytest.raises(Exception, match=shards[0].name) as raised:
        load_policy(str(tmp_path / "model"))
    assert "pickles" not in str(raised.value)


@pytest.mark.parametrize("name", ["film_gemma", "np_reward"])
def test_what_is_saved_is_of_this_codes_format(tmp_path, monkeypatch, name):
    module = f"np_trl.models.configuration_{'film' if name == 'film_gemma' else name}"
    config = AutoConfig.for_model(name)
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(f"{module}.FORMAT_VERSION", FORMAT_VERSION + 1)
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == FORMAT_VERSION + 1


def test_weights_that_the_code_does_not_know_are_named(saved):
    def add(weights):
        (name, *_) = (name for name in weights if name.endswith("context_encoder.empty_set"))
        weights[name.replace("empty_set", "second_set")] = torch.zeros(3)

    edit_weights(saved[0], add)
    assert_refused(saved, ValueError, "hold 1 that .* does not know: .*second_set.*would be lost")


def test_a_plain_base_must_be_whole(tmp_path):
    base = Path(tiny_base(tmp_path))
    edit_weights(base, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match="lack 1 that FiLMGemmaForCausalLM has: .*layers.1.mlp.up_proj"):
        FiLMGemmaForCausalLM.from_pretrained(base, context_config=CONTEXT_CONFIG)


def test_a_newer_model_is_refused(saved):
    edit_config(saved[0], format_version=FORMAT_VERSION + 1)
    assert_refused(
        saved, Exception, f"`format_version={FORMAT_VERSION + 1}`, and this code reads up to {FORMAT_VERSION}"
    )


@pytest.mark.parametrize("field", ["film_site", "context_layer", "option_pooling", "context_source", "context_config"])
def test_a_policys_config_must_say_what_its_film_is(tmp_path, field):
    tiny_policy(tmp_path / "base").save_pretrained(tmp_path / "model")
    edit_config(tmp_path / "model", remove=field)
    assert_refused((tmp_path / "model", LOADERS["policy"]), ValueError, rf"of a 'film_gemma' has no \['{field}'\]")


def test_the_config_of_another_decoder_is_refused(tmp_path):
    for architecture in ("llama", "qwen2"):
        base = tiny_base(tmp_path / architecture, architecture)
        with pytest.raises(
            ValueError, match=f"of a '{architecture}', but FiLMGemmaConfig takes a 'film_gemma' or a 'gemma'"
        ):
            FiLMGemmaForCausalLM.from_pretrained(base)
    tiny_policy(tmp_path / "policy", "qwen2").save_pretrained(tmp_path / "qwen2_policy")
    with pytest.raises(ValueError, match="of a 'film_qwen2'"):
        FiLMGemmaConfig.from_pretrained(tmp_path / "qwen2_policy")


def test_an_unsupported_decoder_gets_the_list_of_those_that_are(tmp_path):
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"of type 'gpt2', which has no FiLM version. Supported: \['gemma', 'gemma2', 'gemma3_text'"
    ):
        load_policy(str(tmp_path))


def test_shared_code_refuses_too(tmp_path):
    model = tiny_policy(tmp_path / "base")
    for name in ("truncated", "newer", "plain"):
        model.save_pretrained(tmp_path / name)
    file = tmp_path / "truncated" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    edit_config(tmp_path / "newer", format_version=FORMAT_VERSION + 1)
    edit_config(tmp_path / "plain", remove="context_config")
    run_without_np_trl(
        """
from transformers import AutoModelForCausalLM
for name, message in (
    ("truncated", "are not whole"), ("newer", "this code reads up to"), ("plain", "its FiLM and context encoder are unknown")
):
    try:
        AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
    except Exception as error:
        assert message in str(error), error
    else:
        raise AssertionError(name)
""",
        tmp_path,
    )


NAMES = [
    "weights.bin", "../other/model.safetensors", "/other/model.safetensors", "a/b.safetensors", "a\\b.safetensors", 5
]  # fmt: skip


def test_an_index_names_nothing_but_safetensors_beside_it(saved):
    folder, _ = saved
    weights = load_file(folder / "model.safetensors")
    shutil.move(folder / "model.safetensors", folder / "b.safetensors")
    torch.save(weights, folder / "weights.bin")
    for name in NAMES:
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert_refused(saved, ValueError, "are to be read from .*may name `.safetensors` files beside it alone")


def test_files_that_say_nothing_are_refused_by_name(saved):
    folder, (load, *_) = saved
    config = (folder / "config.json").read_text()
    for content in ("", "[]", "[" * 100_000):
        (folder / "config.json").write_text(content)
        with pytest.raises((OSError, ValueError), match="config.json"):
            load(str(folder))
    (folder / "config.json").write_text(config)
    shutil.move(folder / "model.safetensors", folder / "model-1.safetensors")
    for content in ("", "[]", '{"metadata": {}}', '{"weight_map": [1]}', "[" * 100_000):
        (folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises((OSError, ValueError), match="model.safetensors.index.json|are to be read from"):
            load(str(folder))


def test_sizes_that_the_weights_do_not_have_are_refused_before_they_are_made(saved):
    folder, loaders = saved
    context = json.loads((folder / "config.json").read_text())["context_config"]
    edit_config(folder, context_config={**context, "latent_size": 10**9})
    assert_refused(saved, ValueError, "have other shapes than its configuration says")
    edit_config(folder, context_config={**context, "latent_size": "x"})
    with pytest.raises(ValueError, match="The configuration of .* is wrong: .*latent_size"):
        loaders[0](str(folder))


def test_weights_that_are_not_finite_are_refused(saved):
    def spoil(weights):
        (name,) = (name for name in weights if name.endswith("context_encoder.empty_set"))
        weights[name][3] = torch.inf

    edit_weights(saved[0], spoil)
    assert_refused(saved, ValueError, "empty_set' of .* has NaN or infinite values")


class Stopped(Exception):
    """What stops a process."""


@pytest.mark.parametrize("shards", ["one", "several"])
@pytest.mark.parametrize("new", ["other weights", "another model"])
def test_a_save_that_is_stopped_leaves_a_whole_model_or_none(tmp_path, monkeypatch, shards, new):
    replace, size = Path.replace, {"one": "1GB", "several": "8KB"}[shards]

    def value(model) -> float:
        return float(model.head.shared.weight.flatten()[0])

    def model(value: float, **kwargs) -> NPRewardModel:
        model = tiny_reward_model(**kwargs)
        for weight in model.parameters():
            torch.nn.init.constant_(weight, value)
        return model

    other = {"context_config": {**CONTEXT_CONFIG, "pooling": "mean"}} if new == "another model" else {}
    outcomes = []
    for last in range(60):  # it stops at each of the moves in turn
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        model(1.0).save_pretrained(tmp_path / "model", max_shard_size=size)
        moves = iter(range(last))

        def move(path, target, moves=moves):
            if next(moves, None) is None:
                raise Stopped
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", move)
            try:
                model(2.0, **other).save_pretrained(tmp_path / "model", max_shard_size=size)
            except Stopped:
                pass
            else:
                break
        try:
            loaded = NPRewardModel.from_pretrained(tmp_path / "model")
        except OSError as error:
            assert "config.json" in str(error)
            outcomes.append(None)
        else:
            assert len({float(value) for weight in loaded.parameters() for value in weight.flatten()}) == 1
            assert (value(loaded) == 2.0) <= (loaded.config.context_config.pooling == ("mean" if other else "sum"))
            outcomes.append(value(loaded))
    assert value(NPRewardModel.from_pretrained(tmp_path / "model")) == 2.0
    if shards == "one" and not other:
        assert None not in outcomes  # what is trained and saved again and again can be loaded at any moment
    assert len(outcomes) > (1 if shards == "one" else 3)


def test_a_model_takes_the_place_of_all_that_was_there(tmp_path):
    first, second = tiny_reward_model(), tiny_reward_model()
    torch.nn.init.constant_(second.head.shared.weight, 3.0)
    for sizes in (
        ("1GB", "2KB"),
        ("2KB", "1GB"),
        ("2KB", "4KB"),
    ):  # of one file after several, transformers loads the one
        first.save_pretrained(tmp_path, max_shard_size=sizes[0])
        second.save_pretrained(tmp_path, max_shard_size=sizes[1])
        assert bool((NPRewardModel.from_pretrained(tmp_path).head.shared.weight == 3.0).all()), sizes
        index = tmp_path / "model.safetensors.index.json"
        named = json.loads(index.read_text())["weight_map"].values() if index.exists() else ["model.safetensors"]
        assert {file.name for file in tmp_path.glob("*.safetensors")} == set(named)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter, and whoever loads it would get that"):
        second.save_pretrained(tmp_path)
