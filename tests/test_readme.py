"""The README's programs run, and what it names exists."""

import os
import re
import shutil
import subprocess
import sys

from .testing_utils import ROOT


README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "examples" / "README.md").read_text()


def test_the_python_blocks_run_one_after_the_other(tmp_path):
    (tmp_path / "examples").mkdir()
    shutil.copytree(ROOT / "examples" / "style_gemma", tmp_path / "examples" / "style_gemma")
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 3
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path, env=environment, timeout=300)


def test_every_file_it_names_exists():
    for path in re.findall(r"(?:examples|np_trl|tests)/[\w./-]+\.\w+", README + RESULTS):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`([\w./-]+\.(?:py|yaml|json|png))`", RESULTS):
        assert path.startswith("examples/") or (ROOT / "examples" / path).exists(), path


def test_its_ratios_are_those_of_the_reports():
    script = ROOT / "examples" / "benchmarks" / "ratios.py"
    assert subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout in README


def test_the_commands_install_for_themselves():
    for kind in ("demo", "test"):
        command = re.search(rf"```sh {kind}\n(.*?)```", README, re.S).group(1)
        assert "python3 -m venv .venv" in command and "-c constraints.txt" in command
