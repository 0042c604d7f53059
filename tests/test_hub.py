"""Sharing, against a Hub on the loopback interface: what is pushed in one process is pulled in another."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from .hub import Fault, Hub
from .testing_utils import ROOT


TOKENS = {"ada-token": "ada", "bob-token": "bob", "your-token": "you"}
WITHOUT_NP_TRL = "import sys; sys.modules['np_trl'] = None\n"


@pytest.fixture
def hub():
    with Hub(TOKENS) as hub:
        yield hub


def run(code: str, hub: Hub, folder, token: str = "ada-token", cache: str = "cache") -> str:
    """Run code in a fresh interpreter that knows the test Hub and no other; return what it printed."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(folder / cache),
        "HF_TOKEN": token,
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT),
        "EXAMPLES": str(ROOT / "examples"),
    }
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


PUSH_THE_DEMO = """
import json, os, sys, time
from pathlib import Path
import torch
from huggingface_hub import HfApi
from transformers import AutoTokenizer
from trl import ModelConfig, TrlParser
from np_trl import NPDPOConfig, NPRewardConfig, NPRewardModel, NPRewardModelConfig, NPRewardTrainer, TextEmbedder
from np_trl.scripts import dpo

examples = Path(os.environ["EXAMPLES"])
HfApi().create_repo("ada/style_gemma")
commit = HfApi().upload_folder(repo_id="ada/style_gemma", folder_path=examples / "style_gemma").oid

# the recipe of the demo, for a few steps
parser = TrlParser((dpo.ScriptArguments, NPDPOConfig, ModelConfig))
script_args, training_args, model_args = parser.parse_args_and_config([
    "--config", str(examples / "configs" / "np_dpo_style.yaml"), "--model_name_or_path", "ada/style_gemma",
    "--output_dir", "policy", "--max_steps", "3", "--reward_steps", "0", "--num_train_users", "16", "--num_eval_users", "16",
    "--push_to_hub", "--hub_model_id", "ada/np_dpo_style", "--save_strategy", "steps", "--save_steps", "1",
])
torch.set_num_threads(1)
train_dataset, eval_dataset = script_args.draw(seed=0)
build = dpo.TrainerBuilder(training_args, model_args, embedded=False)
trainer = build(args=training_args, train_dataset=train_dataset, eval_dataset=eval_dataset)
trainer.create_model_card(dataset_name="style_population")
trainer.train()
torch.nn.init.normal_(trainer.model.get_base_model().model.film.modules_to_save["default"].weight, std=0.1)
trainer.save_metrics("eval", trainer.evaluate())

pairs = json.loads((examples / "users" / "formal_lists.json").read_text())["pairs"]
tokenizer, policy = trainer.processing_class, trainer.model.eval()
inputs = tokenizer("How do I fix the lamp?", return_tensors="pt")
with torch.no_grad():
    latents = policy.infer_user(pairs, tokenizer)
    expected = {
        "pairs": pairs,
        "latents": latents,
        "logits": policy(**inputs, latents=latents).logits,
        "plain": policy(**inputs).logits,
        "written": policy.generate(**inputs, latents=latents, max_new_tokens=24, do_sample=False),
    }

embedder = {"name_or_path": "ada/style_gemma", "revision": commit, "max_length": 128}
rows = train_dataset.select(range(160))
for side in ("chosen", "rejected"):
    embeds = TextEmbedder(**embedder).embed(rows[side])
    rows = rows.add_column(f"{side}_embeds", list(embeds.numpy()))
reward_trainer = NPRewardTrainer(
    NPRewardModel(NPRewardModelConfig(embed_size=80, embedder=embedder)),
    args=NPRewardConfig(
        "reward", max_steps=3, num_targets=8, max_context=8, per_device_train_batch_size=4, hub_model_id="ada/np_btl",
        report_to="none", use_cpu=True,
    ),
    train_dataset=rows,
)
reward_trainer.train()
options = [{"completion": pair["chosen"]} for pair in pairs]
reward = reward_trainer.model.eval()
expected |= {"options": options, "rewards": reward.score(options, reward.infer_user(pairs))}
torch.save(expected, "expected.pt")

start = time.perf_counter(), time.process_time()
trainer.push_to_hub()
trainer.save_merged("merged", "ada/np_dpo_style-merged")
seconds = time.perf_counter() - start[0], time.process_time() - start[1]
reward_trainer.push_to_hub()
reward.push_to_hub("ada/np_btl_direct")
print("seconds", *seconds)
"""

PULL_THE_DEMO = """
import time
start = time.perf_counter()
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
expected = torch.load("expected.pt")
name = "ada/np_dpo_style-merged"
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
inputs = tokenizer("How do I fix the lamp?", return_tensors="pt")
close = {"rtol": 0, "atol": 1e-5}
with torch.no_grad():
    latents = model.infer_user(expected["pairs"], tokenizer)
    torch.testing.assert_close(latents, expected["latents"], **close)
    logits = model(**inputs, latents=latents).logits
    torch.testing.assert_close(logits, expected["logits"], **close)
    assert (logits - expected["plain"]).abs().max() > 0.1  # it is steered
    written = model.generate(**inputs, latents=latents, max_new_tokens=24, do_sample=False)
assert torch.equal(written, expected["written"])
print("seconds", time.perf_counter() - start, time.process_time())
config = AutoConfig.from_pretrained(name, trust_remote_code=True)
assert config.model_type == "film_gemma" and config.reference_name_or_path == "ada/style_gemma"
assert len(config.reference_revision) == 40
assert type(AutoModel.from_pretrained(name, trust_remote_code=True)).__name__ == "FiLMGemmaModel"
for name in ("ada/np_btl", "ada/np_btl_direct"):
    reward = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    rewards = reward.score(expected["options"], reward.infer_user(expected["pairs"]))
    torch.testing.assert_close(rewards, expected["rewards"], **close)
model.push_to_hub("ada/shared_again")  # with its code
again = AutoModelForCausalLM.from_pretrained("ada/shared_again", trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(again(**inputs, latents=latents).logits, logits)
"""

PULL_THE_ADAPTER = """
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from np_trl import load_policy
from np_trl.models import FiLMGemmaForCausalLM
expected = torch.load("expected.pt")
policy = load_policy("ada/np_dpo_style").eval()
assert isinstance(policy.get_base_model(), FiLMGemmaForCausalLM)
assert policy.active_peft_config.base_model_name_or_path == "ada/style_gemma"
tokenizer = AutoTokenizer.from_pretrained("ada/np_dpo_style")
inputs = tokenizer("How do I fix the lamp?", return_tensors="pt")
with torch.no_grad():
    latents = policy.infer_user(expected["pairs"], tokenizer)
    torch.testing.assert_close(policy(**inputs, latents=latents).logits, expected["logits"], rtol=0, atol=1e-5)
policy.push_to_hub("ada/adapter_direct")
for name in ("ada/np_dpo_style", "ada/adapter_direct"):
    for plain in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        try:
            plain.from_pretrained(name)
        except Exception as error:
            assert "load it with np_trl.load_policy" in str(error), error
        else:
            raise AssertionError(f"{plain.__name__} took {name} for a plain model's adapter")
again = load_policy("ada/adapter_direct").eval()
with torch.no_grad():
    assert torch.equal(again(**inputs, latents=latents).logits, policy(**inputs, latents=latents).logits)
"""


def snippet(card: bytes) -> str:
    """The program in a model card."""
    return re.search(r"```python\n(.*?)```", card.decode(), re.S).group(1)


def test_the_demo_is_pushed_and_pulled_by_name(hub, tmp_path):
    pushed = run(PUSH_THE_DEMO, hub, tmp_path)
    pulled = run(WITHOUT_NP_TRL + PULL_THE_DEMO, hub, tmp_path, cache="another_machine")
    wall, cpu = (
        sum(float(re.search(r"^seconds (\S+) (\S+)", out, re.M)[part]) for out in (pushed, pulled)) for part in (1, 2)
    )
    print(f"round trip of the demo policy: {wall:.1f} s, {cpu:.1f} s of CPU")
    assert cpu < 15  # not the wall, which depends on what else runs

    for name, library in (("np_dpo_style-merged", WITHOUT_NP_TRL), ("np_btl", WITHOUT_NP_TRL), ("np_dpo_style", "")):
        files = hub.files(f"ada/{name}")
        assert not [path for path in files if path.endswith((".bin", ".pt"))]
        assert f'"ada/{name}"' in snippet(files["README.md"])
        run(library + snippet(files["README.md"]), hub, tmp_path, cache="another_machine")
    run(PULL_THE_ADAPTER, hub, tmp_path, cache="a_third_machine")

    adapter = json.loads(hub.files("ada/np_dpo_style")["adapter_config.json"])
    assert adapter["revision"] == hub.repositories["models", "ada/style_gemma"].branches["main"]
    card = hub.files("ada/np_dpo_style-merged")["README.md"].decode()
    assert "license: apache-2.0" in card and "base_model: ada/style_gemma" in card
    # as it was pushed in the course of training: an adapter that is whole
    in_training = list(hub.repositories["models", "ada/np_dpo_style"].commits.values())
    assert len(in_training) > 2
    for files in in_training[1:]:
        assert json.loads(files["adapter_config.json"])["film"] and "adapter_model.safetensors" in files


def test_the_readmes_programs_push_and_pull(hub, tmp_path):
    (tmp_path / "examples").mkdir()
    shutil.copytree(ROOT / "examples" / "style_gemma", tmp_path / "examples" / "style_gemma")
    readme = (ROOT / "README.md").read_text()
    train, share, pull = (
        re.search(rf"```python{kind}\n(.*?)```", readme, re.S).group(1) for kind in ("", " share", " pull")
    )
    run(train + share, hub, tmp_path, token="your-token")
    assert {("models", "you/readme"), ("models", "you/readme_merged")} == hub.repositories.keys()
    run(WITHOUT_NP_TRL + pull, hub, tmp_path, token="your-token", cache="another_machine")


REWARD_MODEL = """
import sys
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import http_backoff
from np_trl import NPRewardModel
from tests.testing_utils import tiny_reward_model

def tell(function, *args, **kwargs):
    try:
        print(function(*args, **kwargs), flush=True)
    except Exception as error:
        print("failed:", type(error).__name__, str(error).replace("\\n", " "), flush=True)

def push(repo, number):
    model = tiny_reward_model()
    torch.nn.init.constant_(model.head.shared.weight, number)
    model.push_to_hub(repo)
    return f"pushed {number}"

def pull(repo, **kwargs):
    return f"pulled {float(NPRewardModel.from_pretrained(repo, **kwargs).head.shared.weight[0, 0]):g}"
"""


def tellings(code: str, hub: Hub, folder, **kwargs) -> list[str]:
    """Run code that tells what became of pushes and pulls, and return that; libraries print too."""
    lines = run(code, hub, folder, **kwargs).splitlines()
    return [line for line in lines if line.startswith(("pushed", "pulled", "failed"))]


def test_who_may_not_is_told_so_and_nothing_is_made(hub, tmp_path):
    code = (
        REWARD_MODEL
        + """
tell(push, "ada/model", 1)
tell(pull, "ada/absent")
tell(pull, "ada/model", revision="absent")
HfApi().create_repo("ada/private", private=True)
tell(push, "ada/private", 2)
tell(HfApi().create_repo, "ada/model")
tell(push, "ada/model", 3)
HfApi().create_tag("ada/model", tag="v3")
tell(push, "ada/model", 4)
tell(pull, "ada/model", revision="v3")
tell(pull, "ada/model")
"""
    )
    lines = tellings(code, hub, tmp_path)
    assert [line for line in lines if not line.startswith("failed")] == [
        "pushed 1", "pushed 2", "pushed 3", "pushed 4", "pulled 3", "pulled 4"
    ]  # fmt: skip
    absent, no_revision, exists = [line for line in lines if line.startswith("failed")]
    assert "ada/absent is not" in absent and "absent is not a valid git identifier" in no_revision
    assert "409" in exists

    others = REWARD_MODEL + 'tell(push, "ada/model", 5)\ntell(push, "ada/new", 5)\ntell(pull, "ada/private")\n'
    forbidden, forbidden_too, hidden = tellings(others, hub, tmp_path, token="bob-token", cache="bob")
    assert "403" in forbidden and "403" in forbidden_too and "ada/private is not" in hidden
    nobody = REWARD_MODEL + 'tell(push, "ada/model", 6)\ntell(pull, "ada/private")\n'
    unknown, hidden = tellings(nobody, hub, tmp_path, token="wrong-token", cache="nobody")
    assert "401" in unknown and "401" in hidden
    assert len(hub.repositories["models", "ada/model"].commits) == 4 and ("models", "ada/new") not in hub.repositories


def test_a_connection_that_dies_leaves_nothing_half_written(hub, tmp_path):
    code = REWARD_MODEL + 'tell(push, "ada/model", NUMBER)\ntell(pull, "ada/model", force_download=True)\n'
    # while a large file goes up: the client tries again
    hub.faults += [Fault("PUT", "^/objects/", "die"), Fault("PUT", "^/objects/", 503)]
    assert tellings(code.replace("NUMBER", "1"), hub, tmp_path) == ["pushed 1", "pulled 1"]
    assert not hub.faults and sum(request.startswith("PUT") for request in hub.requests) == 3
    # before the commit: the large file is there, and the repository as it was
    hub.faults += [Fault("POST", "/commit/", "die")] * 10
    failed, pulled = tellings(code.replace("NUMBER", "2"), hub, tmp_path)
    assert failed.startswith("failed") and pulled == "pulled 1"
    hub.faults.clear()
    assert tellings(code.replace("NUMBER", "2"), hub, tmp_path) == ["pushed 2", "pulled 2"]
    # while it comes down: nothing is loaded of a file that is not whole
    hub.faults += [Fault("GET", "model.safetensors", "die")] * 20
    pull = REWARD_MODEL + 'tell(pull, "ada/model")\n'
    (failed,) = tellings(pull, hub, tmp_path, cache="new")
    assert (
        failed.startswith("failed") and "pickles" not in failed and ("ada/model" in failed or "disconnected" in failed)
    )
    hub.faults.clear()
    assert tellings(pull, hub, tmp_path, cache="new") == ["pulled 2"]


def test_the_example_pushes_adapter_and_merged_policy_and_nothing_else(hub, tmp_path):
    sizes = (
        "--num_train_users 16 --num_eval_users 16 --reward_steps 2 --max_steps 2 --baseline_steps 2 --num_threads 1"
    )
    script = ROOT / "examples" / "np_dpo.py"
    arguments = ["--config", str(ROOT / "examples" / "configs" / "np_dpo_style.yaml"), *sizes.split()]
    arguments += ["--output_dir", "out", "--push_to_hub", "--hub_model_id", "ada/policy"]
    run(
        f"import runpy, sys; sys.path.insert(0, {str(script.parent)!r}); sys.argv = {[str(script), *arguments]!r}\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')",
        hub,
        tmp_path,
    )
    assert {name for _, name in hub.repositories} == {"ada/policy", "ada/policy-merged"}
    policy, merged = hub.files("ada/policy"), hub.files("ada/policy-merged")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= policy.keys()
    assert {"model.safetensors", "modeling_film_gemma.py", "tokenizer.json", "README.md"} <= merged.keys()
    # what lies beside the policy stays here, and so do pickles
    assert not [path for path in (*policy, *merged) if "/" in path or path.endswith((".bin", ".pt", ".parquet"))]
    assert (tmp_path / "out" / "users.parquet").exists() and (tmp_path / "out" / "np_reward").exists()


DATASET = """
import os, runpy, sys
import numpy as np
from datasets import load_dataset
from np_trl.data.loading import load_preferences, save_splits
from tests.testing_utils import embedded_rows, style_rows
# what a working folder comes to hold
for name in ("ada.safetensors", ".env", "users.parquet", "log.txt", "train.py", "runs/events.out.tfevents.1", "state.pkl"):
    path = os.path.join("reward", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").write("SECRET")
splits = {"train": embedded_rows(num_users=8), "test": embedded_rows(num_users=6, seed=1)}
save_splits(splits, "data", repo_id="ada/preferences")
for split, rows in splits.items():
    pulled = load_preferences("ada/preferences", split)
    assert pulled.column_names == rows.column_names and pulled["user_id"] == rows["user_id"]
    for column in ("chosen_embeds", "rejected_embeds"):
        assert pulled.features[column] == rows.features[column]
        assert np.array_equal(pulled[column], rows[column])
script = os.path.join(os.environ["EXAMPLES"], "np_reward.py")
sys.argv = [
    script, "--dataset_name", "ada/preferences", "--output_dir", "reward", "--max_steps", "2", "--num_targets", "8",
    "--max_context", "4", "--eval_num_contexts", "0", "2", "--hidden_size", "16", "--report_to", "none", "--push_to_hub",
    "--hub_model_id", "ada/np_btl", "--save_strategy", "steps", "--save_steps", "1",
    "--hub_strategy", "checkpoint",
]
runpy.run_path(script, run_name="__main__")

style_rows(num_users=2).to_parquet("rows.parquet")
script = os.path.join(os.environ["EXAMPLES"], "embed_preferences.py")
sys.argv = [
    script, "--dataset_name", "rows.parquet", "--model_name_or_path", os.path.join(os.environ["EXAMPLES"], "style_gemma"),
    "--max_length", "128", "--output_file", "embeddings.parquet", "--repo_id", "ada/embeddings", "--private", "true",
]
runpy.run_path(script, run_name="__main__")
pushed, here = (load_preferences("rows.parquet", embeddings=name) for name in ("ada/embeddings", "embeddings.parquet"))
assert np.array_equal(pushed["chosen_embeds"], here["chosen_embeds"]) and len(pushed) == 24
"""


def test_preferences_are_pushed_and_trained_on_by_name(hub, tmp_path):
    run(DATASET, hub, tmp_path)
    assert hub.repositories["datasets", "ada/embeddings"].private
    assert {"data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "README.md"} <= set(
        hub.files("ada/preferences", "datasets")
    )
    pushes = [files for files in hub.repositories["models", "ada/np_btl"].commits.values() if files]
    assert len(pushes) > 1  # in the course of training, and at its end
    assert "last-checkpoint/optimizer.pt" in pushes[-1]  # which was asked for
    assert not [path for path in pushes[-1] if path.endswith("training_args.bin")]
    assert not [path for files in pushes for path, content in files.items() if b"SECRET" in content]
    for files in pushes:
        assert {"model.safetensors", "modeling_np_reward.py", "config.json"} <= files.keys()
    card = hub.files("ada/np_btl")["README.md"].decode()
    assert "datasets:\n- ada/preferences" in card and "6 users" in card
    assert "| accuracy |" in card and "Accuracy on unseen pairs, 2 choices" in card
