"""Export: a user's ordinary model and ordinary adapter say what the policy says for that user."""

import json
import runpy
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import TrlParser

from np_trl import NPDPOTrainer, UserProfile, load_policy
from np_trl.models.configuration_film import FILM_FIELDS
from np_trl.trainer.policy import create_policy
from np_trl.users import export_adapter, export_model

from .test_lora_gate import gated_policy
from .testing_utils import (
    BASES,
    CONTEXT_CONFIG,
    ROOT,
    dpo_config,
    style_rows,
    tiny_base,
    tiny_policy,
    tiny_tokenizer,
)


EXAMPLES = ROOT / "examples"
WITH_OUTPUT_BIAS = ["gemma", "gemma2", "gemma3_text", "llama", "qwen3"]
LATENTS = torch.randn(3, CONTEXT_CONFIG["latent_size"], generator=torch.Generator().manual_seed(1))
USERS = list(LATENTS.split(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, NPDPOTrainer]:
    """Policies of both sites whose users can be exported, after training."""
    return {site: train(tmp_path_factory.mktemp(site), site) for site in ("attention", "lora")}


def train(path, film_site: str) -> NPDPOTrainer:
    trainer = NPDPOTrainer(
        tiny_base(path / "base"),
        args=dpo_config(
            path / "out",
            max_steps=12,
            learning_rate=2e-2,
            np_learning_rate=1e-1,
            film_kwargs={"context_config": CONTEXT_CONFIG, "film_site": film_site},
        ),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(
            r=4, target_modules=["q_proj", "o_proj", "down_proj"], layers_to_transform=[1, 2], use_rslora=True
        ),
    )
    trainer.train()
    trainer.save_model(path / "adapter")
    trainer.processing_class.save_pretrained(path / "adapter")
    trainer.model.eval()
    return trainer


@torch.no_grad()
def log_probs(model, latents: torch.Tensor | None = None) -> torch.Tensor:
    """The log-probability of every token of prompts with their completions, after padding."""
    rows = style_rows(2, 2)
    texts = [row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")]
    tokens = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    users = {} if latents is None else {"latents": latents.expand(len(texts), -1)}
    logits = model(**tokens, **users).logits[:, :-1]
    scores = logits.log_softmax(dim=-1).gather(2, tokens["input_ids"][:, 1:, None]).squeeze(2)
    return scores * tokens["attention_mask"][:, 1:]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("film_site", ["attention", "lora"])
def test_exported_models_say_what_a_trained_policy_says_for_their_users(trained, tmp_path, film_site):
    policy = trained[film_site].model
    weights = {name: weight.clone() for name, weight in policy.state_dict().items()}
    expected = [log_probs(policy, user) for user in USERS]
    assert (expected[0] - expected[1]).abs().max() > 1e-2 < (expected[0] - log_probs(policy)).abs().max()
    for index, user in enumerate(USERS):
        export_model(policy, user, tmp_path / str(index), tiny_tokenizer())
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / str(index))
        assert type(plain) is BASES["gemma"]
        assert_same(log_probs(plain), expected[index])
    after = policy.state_dict()  # which was not touched
    assert after.keys() == weights.keys() and all(torch.equal(after[name], weights[name]) for name in weights)
    assert torch.equal(log_probs(policy, USERS[0]), expected[0])


def test_a_user_of_film_above_the_trunk_is_exported_too(tmp_path):
    policy = tiny_policy(tmp_path / "base", film_site="attention", film_layers="above_trunk", context_layer=1)
    export_model(policy, USERS[0], tmp_path / "ada")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "ada")
    assert_same(log_probs(plain), log_probs(policy, USERS[0]))
    assert (log_probs(plain) - log_probs(policy)).abs().max() > 1e-2


def test_exported_adapters_say_what_a_trained_policy_says_for_their_users(trained, tmp_path):
    policy, names = trained["lora"].model, ["ada", "bob", "cleo"]
    export_adapter(policy, dict(zip(names, USERS, strict=True)), tmp_path)
    base = policy.peft_config["default"].base_model_name_or_path
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "ada", adapter_name="ada")
    for name in names[1:]:
        model.load_adapter(tmp_path / name, adapter_name=name)
    for name, user in zip(names, USERS, strict=True):
        model.set_adapter(name)
        assert_same(log_probs(model), log_probs(policy, user))
    with open(tmp_path / "bob" / "adapter_config.json") as file:
        config = json.load(file)
    assert config["peft_type"] == "LORA" and config["modules_to_save"] is None and "film" not in config
    with safe_open(tmp_path / "bob" / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_A." in name or ".lora_B." in name for name in file.keys())
        assert len(file.keys()) == 2 * 2 * 3


ALONE = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, model, adapter, tokens, expected = sys.argv[1:]
tokens, expected = torch.load(tokens), torch.load(expected)
with torch.no_grad():
    user = AutoModelForCausalLM.from_pretrained(model)
    torch.testing.assert_close(user(tokens).logits.log_softmax(-1), expected, rtol=0, atol=1e-5)
    user = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    torch.testing.assert_close(user(tokens).logits.log_softmax(-1), expected, rtol=0, atol=1e-5)
assert not [name for name in sys.modules if name.startswith("np_trl")]
"""


def test_what_was_exported_needs_no_code_of_ours(trained, tmp_path):
    policy, tokens = trained["lora"].model, torch.arange(3, 17).view(2, 7)
    export_model(policy, USERS[0], tmp_path / "model")
    export_adapter(policy, USERS[0], tmp_path / "adapter")
    with torch.no_grad():
        expected = policy(tokens, latents=USERS[0].expand(2, -1)).logits.log_softmax(-1)
    torch.save(tokens, tmp_path / "tokens")
    torch.save(expected, tmp_path / "expected")
    paths = [policy.peft_config["default"].base_model_name_or_path]
    paths += [str(tmp_path / name) for name in ("model", "adapter", "tokens", "expected")]
    result = subprocess.run([sys.executable, "-c", ALONE, *paths], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("architecture", WITH_OUTPUT_BIAS)
@pytest.mark.parametrize("attention_bias", [False, True])
def test_attention_site_is_folded_into_every_decoder_with_an_output_bias(tmp_path, architecture, attention_bias):
    base = tiny_base(tmp_path, architecture, attention_bias=attention_bias, tie_word_embeddings=False)
    policy = create_policy(base, {"film_site": "attention", "context_config": CONTEXT_CONFIG}).eval()
    torch.manual_seed(1)
    for name, weight in policy.named_parameters():
        if "film" in name or name.endswith("_proj.bias"):
            torch.nn.init.normal_(weight, std=0.2)
    export_model(policy, USERS[0], tmp_path / "user")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "user")
    assert type(plain) is BASES[architecture] and plain.config.attention_bias
    assert_same(log_probs(plain), log_probs(policy, USERS[0]))


@pytest.mark.parametrize("architecture", BASES)
def test_gated_lora_is_merged_into_every_decoder(tmp_path, architecture):
    policy = gated_policy(tmp_path / "base", architecture)
    export_model(policy, USERS[0], tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(plain) is BASES[architecture]
    assert_same(log_probs(plain), log_probs(policy, USERS[0]))
    export_adapter(policy, USERS[0], tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert_same(log_probs(PeftModel.from_pretrained(base, tmp_path / "adapter")), log_probs(policy, USERS[0]))


def test_a_checkpoint_is_the_plain_decoders_own(trained, tmp_path):
    for site, trainer in trained.items():
        export_model(trainer.model, USERS[0], tmp_path / site, tiny_tokenizer())
        config = json.loads((tmp_path / site / "config.json").read_text())
        assert config["model_type"] == "gemma" and config["architectures"] == ["GemmaForCausalLM"]
        assert not {*FILM_FIELDS, "auto_map", "format_version"} & config.keys()
        with safe_open(tmp_path / site / "model.safetensors", "pt") as file:
            plain = AutoModelForCausalLM.from_pretrained(tmp_path / site)
            assert set(file.keys()) == {name for name, _ in plain.named_parameters()}  # so the head is tied
        assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
        assert not list(tmp_path.glob("*/*.py"))


def test_a_user_is_a_profile_or_a_latent_and_a_policy_may_have_no_adapter(tmp_path):
    policy, tokenizer = tiny_policy(tmp_path / "base", film_site="attention"), tiny_tokenizer()
    user = UserProfile(policy, tokenizer)
    user.add(*style_rows(1, 3))
    export_model(policy, user, tmp_path / "user")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "user")
    assert_same(log_probs(plain), log_probs(policy, user.latents))


def test_the_adapter_of_other_modules_goes_with_the_user(tmp_path):
    """Of LoRA outside the decoder layers and of further `modules_to_save`, which are the same for all users."""
    fields = {"target_modules": ["q_proj", "embed_tokens"], "layers_to_transform": None}
    policy = gated_policy(tmp_path / "base", **fields)
    export_adapter(policy, USERS[0], tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert_same(log_probs(model), log_probs(policy, USERS[0]))
    assert "lora_embedding_A" in str(model.state_dict().keys())


def test_what_cannot_be_exported_is_named(tmp_path):
    block = tiny_policy(tmp_path / "block")
    with pytest.raises(ValueError, match='which no weight of a plain model does. Train with `film_site="lora"` or'):
        export_model(block, USERS[0], tmp_path / "user")
    for site in ("block", "attention"):
        policy = tiny_policy(tmp_path / "base", film_site=site)
        with pytest.raises(
            ValueError, match=f"With `film_site='{site}'` a user shifts activations.*`export_model` takes"
        ):
            export_adapter(policy, USERS[0], tmp_path / "user")
    for architecture in sorted(BASES.keys() - set(WITH_OUTPUT_BIAS)):
        policy = tiny_policy(tmp_path / architecture, architecture, film_site="attention")
        with pytest.raises(
            ValueError, match="needs a bias there, and the architecture of FiLM.* has none. Train with"
        ):
            export_model(policy, USERS[0], tmp_path / "user")
    gated = gated_policy(tmp_path / "gated")
    with pytest.raises(ValueError, match=r"has latents of 3 users. Export one at a time: `latents\[:1\]`"):
        export_model(gated, LATENTS, tmp_path / "user")
    for name in ("", ".", "..", "a/b", "/a"):
        with pytest.raises(ValueError, match=f"The name '{name}' of a user cannot be that of a folder"):
            export_adapter(gated, {"ada": USERS[0], name: USERS[1]}, tmp_path / "user")
    gated.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(
        ValueError, match="are quantised, and what a user changes would be rounded away. Load it without"
    ):
        export_model(gated, USERS[0], tmp_path / "user")
    del gated.config.quantization_config
    plain = gated.unload()
    for export in (export_model, export_adapter):
        with pytest.raises(ValueError, match="This policy has no LoRA adapter that a user gates"):
            export(plain, USERS[0], tmp_path / "user")
    assert not (tmp_path / "user").exists()


class FullDisk:
    """A tokenizer that cannot be saved."""

    init_kwargs = {}

    def save_pretrained(self, path):
        raise OSError("No space left on device")


def test_what_is_written_is_whole_or_absent(trained, tmp_path):
    policy = trained["lora"].model
    with pytest.raises(OSError, match="No space left"):
        export_model(policy, USERS[0], tmp_path / "user", FullDisk())
    assert list(tmp_path.iterdir()) == []
    export_model(policy, USERS[0], tmp_path / "user")
    export_adapter(policy, {"ada": USERS[0]}, tmp_path / "adapters")
    for export, user, path in (
        (export_model, USERS[1], "user"), (export_adapter, {"bob": USERS[1], "ada": USERS[1]}, "adapters"),
    ):  # fmt: skip
        before = {file: file.read_bytes() for file in tmp_path.glob("*/*") if file.is_file()}
        with pytest.raises(FileExistsError, match="There is something in .* Name another folder, or remove it"):
            export(policy, user, tmp_path / path)
        assert before == {file: file.read_bytes() for file in before}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "user"]
    export_adapter(policy, {"cleo": USERS[2]}, tmp_path / "adapters")  # a further one


def test_the_example_exports_choices_and_profiles(trained, tmp_path, capsys):
    script = runpy.run_path(str(EXAMPLES / "export.py"), run_name="export")
    folder = trained["lora"].args.output_dir.removesuffix("out") + "adapter"
    policy, tokenizer = load_policy(folder).eval(), tiny_tokenizer()
    pairs = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in style_rows(2, 3)]
    (tmp_path / "ada.json").write_text(json.dumps({"pairs": pairs[:3]}))
    bob = UserProfile(policy, tokenizer)
    bob.add(*pairs[3:])
    bob.save(tmp_path / "bob.safetensors")
    options = [
        "--model_name_or_path",
        folder,
        "--users",
        str(tmp_path / "ada.json"),
        str(tmp_path / "bob.safetensors"),
    ]
    for form in ("adapter", "model"):
        arguments = [*options, "--form", form, "--output_dir", str(tmp_path / form)]
        script["main"](*TrlParser(script["ScriptArguments"]).parse_args_and_config(arguments))
        assert f"ada: {tmp_path / form / 'ada'}" in capsys.readouterr().out
    for name, latents in {"ada": policy.infer_user(pairs[:3], tokenizer), "bob": bob.latents}.items():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / name)
        assert_same(log_probs(plain), log_probs(policy, latents))
        base = AutoModelForCausalLM.from_pretrained(policy.peft_config["default"].base_model_name_or_path)
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter" / name)
        assert_same(log_probs(adapted), log_probs(policy, latents))
    with pytest.raises(ValueError, match="`form='gguf'` is unknown"):
        script["ScriptArguments"](folder, ["ada.json"], "out", "gguf")
