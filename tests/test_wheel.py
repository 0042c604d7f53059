"""The wheel: what is in it, and its commands in a place that has no checkout."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from .testing_utils import ROOT


CHOICES = [{"prompt": "How do I fix the bike?", "chosen": " take it slow", "rejected": " ask a buddy"}]
SMALL = "--num_train_users 16 --num_eval_users 16 --reward_steps 1 --max_steps 2 --baselines base".split()
SMALL += "--per_device_train_batch_size 4 --eval_num_targets 4 --eval_num_contexts 0 2 --num_threads 1".split()


def run(*command, cwd: Path) -> str:
    """Run a command in a process group of its own, of which nothing is left, and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(map(str, command), cwd=cwd, env=environment, start_new_session=True, **pipes) as process:
        try:
            printed, errors = process.communicate(timeout=300)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-3000:]
    return printed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of a copy of what it is built of."""
    if find_spec("setuptools") is None:
        pytest.skip("A wheel is built with setuptools, which is not installed.")
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("np_trl", "model_cards", "examples", "tests"):
        shutil.copytree(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", source / "dist", source, cwd=source)
    (path,) = (source / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory) -> Path:
    """The folder of the commands of an environment that has the wheel, and the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    variables = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", vars=variables))
    # a folder that a .pth names has no .pth files of its own, so that the checkout stays unknown
    (packages / "packages.pth").write_text("\n".join({sysconfig.get_path(name) for name in ("purelib", "platlib")}))
    python = Path(sysconfig.get_path("scripts", vars=variables), "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--force-reinstall"]
    run(*pip, wheel, cwd=folder)
    where = run(python, "-c", "import np_trl.configs; print(np_trl.configs.__file__)", cwd=folder).strip()
    assert Path(where).is_relative_to(folder)
    return python.parent


def test_the_wheel_has_the_demo_and_no_tests(wheel):
    assert wheel.stat().st_size < 3e6
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in names if "__pycache__" in name or "test" in Path(name).name]
    assert {name.split("/")[0].split("-")[0] for name in names} == {"np_trl"}
    assert {"np_trl/py.typed", "np_trl/model_cards/model_card.md.jinja"} <= names
    for folder, ending in (("np_trl", "py"), ("examples/configs", "yaml"), ("examples/style_gemma", "json")):
        for path in (ROOT / folder).rglob(f"*.{ending}"):
            installed = path.relative_to(ROOT).as_posix().replace("examples/", "np_trl/")
            assert installed in names, installed
    assert "np_trl/style_gemma/model.safetensors" in names


def test_the_commands_of_the_wheel_run_without_a_checkout(commands, tmp_path):
    def np_trl(*arguments) -> str:
        return run(commands / "np-trl", *arguments, cwd=tmp_path)

    version = (ROOT / "np_trl" / "__init__.py").read_text().split('__version__ = "')[1].split('"')[0]
    assert np_trl("--version") == f"np-trl {version}\n"
    assert "to a user who chose" in np_trl("dpo", "--config", "np_dpo_style_lora", *SMALL)
    policy = Path("runs", "np_dpo_style_lora")  # gates, which are exported
    users = policy / "users.parquet"
    contexts = "--num_contexts 0 2 --num_draws 1 --num_targets 4 --output_dir evaluation".split()
    np_trl("evaluate", "--model_name_or_path", policy, "--dataset_name", users, *contexts)
    assert "eval_nc2_accuracy" in json.loads((tmp_path / "evaluation" / "eval_results.json").read_text())
    (tmp_path / "ada.json").write_text(json.dumps({"pairs": CHOICES}))
    written = np_trl("generate", "--model_name_or_path", policy, "--user", "ada.json", "--max_new_tokens", 4)
    assert "\nHow do I tune the radio?\n" in written
    np_trl("export", "--model_name_or_path", policy, "--users", "ada.json", "--output_dir", "adapters")
    adapter = json.loads((tmp_path / "adapters" / "ada" / "adapter_config.json").read_text())
    base = Path(adapter["base_model_name_or_path"])
    assert base == commands.parent.joinpath(*base.parts[-5:]) and base.name == "style_gemma"  # of the wheel
    table = "--max_length 128 --output_file embeddings.parquet".split()
    np_trl("embed", "--model_name_or_path", base, "--dataset_name", users, *table)
    shutil.copy(tmp_path / users, tmp_path / "others.parquet")
    files = f"--dataset_name {users} --eval_dataset_name others.parquet --embeddings embeddings.parquet".split()
    sizes = "--max_steps 2 --num_targets 4 --max_context 4 --eval_num_contexts 0 2 --eval_num_targets 4".split()
    np_trl("reward", *files, *sizes, "--report_to", "none", "--output_dir", "reward")
    assert "eval_nc2_accuracy" in json.loads((tmp_path / "reward" / "eval_results.json").read_text())
