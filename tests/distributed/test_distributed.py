"""The same numbers in one process and in several, whole or resumed, and models that are whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from np_trl import NPRewardModel, load_policy

from ..testing_utils import ROOT, tiny_base


HERE = Path(__file__).parent
CASES = ["reward", "full", "lora", "lora_precomputed"]
MODES = {"ddp": None, "zero2": HERE / "zero2.json", "zero3": HERE / "zero3.json"}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), "CI": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(*command) -> str:
    # DeepSpeed is for accelerators, so the arguments say CPU and the environment does not
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"} | ENVIRONMENT
    result = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def train(launcher: list[str], folder: Path, cases: list[str], deepspeed: Path | None = None) -> dict:
    folder.mkdir()
    run(*launcher, HERE / "train.py", folder, ",".join(cases), *([] if deepspeed is None else [deepspeed]))
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("distributed")
    tiny_base(folder / "base")
    return folder, train([sys.executable], folder / "one", CASES)


def shapes(folder: Path) -> dict[str, torch.Size]:
    (file,) = folder.glob("*.safetensors")
    return {name: weight.shape for name, weight in load_file(file).items()}


def base_weights(folder: Path) -> dict[str, str]:
    """What a saved adapter says of the base it belongs to."""
    hashes = json.loads((folder / "adapter_config.json").read_text())["film"]["base_weights"]
    assert None not in hashes.values()
    return hashes


@torch.no_grad()
def outputs(folder: Path) -> torch.Tensor:
    """What a saved model says to fixed users: log-odds of choices, or log-probs of tokens."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 4, dtype=torch.bool)
    if (folder / "tokenizer.json").exists():
        tokens = torch.randint(3, 500, (2, 7), generator=generator)
        context = torch.randn(2, 4, 2, 32, generator=generator)
        policy = load_policy(str(folder)).eval()
        return policy(tokens, context_embeds=context, context_mask=mask).logits.log_softmax(dim=-1)
    model = NPRewardModel.from_pretrained(folder).eval()
    options, context = torch.randn(8, 6, generator=generator), torch.randn(2, 4, 2, 6, generator=generator)
    users = {"context_embeds": context, "context_mask": mask, "context_index": torch.arange(2).repeat(4)}
    return model.choice_logits(model(options, **users))


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_compute_what_one_does(one_process, mode):
    if mode != "ddp":
        pytest.importorskip("deepspeed")
    folder, expected = one_process
    actual = train(TORCHRUN, folder / mode, CASES, MODES[mode])
    stage = int(mode[-1]) if mode != "ddp" else 0
    for case in CASES:
        assert (actual[case]["processes"], actual[case]["zero_stage"]) == (2, stage)
        assert actual[case]["losses"] == pytest.approx(expected[case]["losses"], abs=1e-5)
        metrics = dict(expected[case]["metrics"])
        # the last batch of a process is filled up with others' users, whom only TRL's own figures count
        metrics.pop("eval_loss")
        assert {key: actual[case]["metrics"][key] for key in metrics} == pytest.approx(metrics, abs=1e-5)
        saved, whole = shapes(folder / mode / case), shapes(folder / "one" / case)
        saved.pop("lm_head.weight", None)  # tied, and saved twice by ZeRO
        assert saved == whole
        if case.startswith("lora"):
            assert base_weights(folder / mode / case) == base_weights(folder / "one" / case)
        torch.testing.assert_close(outputs(folder / mode / case), outputs(folder / "one" / case), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["one", "ddp", "zero2"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path, mode):
    if mode == "zero2":
        pytest.importorskip("deepspeed")
    tiny_base(tmp_path / "base")
    launcher = [sys.executable] if mode == "one" else TORCHRUN
    cases = ["resumed_reward", "resumed_full", "resumed_lora"]
    results = train(launcher, tmp_path / mode, cases, MODES.get(mode))
    for case in cases:
        losses = results[case]["losses"]
        assert len(losses) == 4
        for step, resumed in results[case]["resumed"].items():
            assert resumed == losses, (case, step)  # the checkpoint holds the losses before it


def test_two_processes_see_streams_and_draws_of_latents_as_one_does(tmp_path):
    cases = ["streamed", "gaussian"]
    one, two = (
        train(launcher, tmp_path / name, cases) for name, launcher in (("one", [sys.executable]), ("two", TORCHRUN))
    )
    assert two["streamed"]["losses"] == pytest.approx(one["streamed"]["losses"], abs=1e-5)
    for case in cases:
        assert (one[case]["processes"], two[case]["processes"]) == (1, 2)
        for results in (one, two):
            assert results[case]["metrics"]["eval_nc2_users"] == 7
            del results[case]["metrics"]["eval_loss"]  # TRL's, which counts the tasks that fill the last batch up
        assert two[case]["metrics"] == pytest.approx(one[case]["metrics"], abs=1e-5)


def test_models_can_be_sharded_over_processes(tmp_path):
    printed = run(*TORCHRUN, HERE / "shard.py", tmp_path)
    assert printed.count("policy: ") == printed.count("reward: ") == 2


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_takes_its_configs(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16" and config.num_machines == 1
    kind = {"deepspeed": "DEEPSPEED", "fsdp2": "FSDP", "multi": "MULTI_GPU", "single": "NO"}[path.stem.split("_")[0]]
    assert config.distributed_type == kind
