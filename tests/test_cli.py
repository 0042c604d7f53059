"""The command `np-trl`: which command runs with which arguments."""

import ast
import re
import runpy
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from np_trl import NPDPOConfig
from np_trl.scripts import cli
from np_trl.scripts.command_parser import CommandParser
from np_trl.scripts.demo import STYLE_GEMMA

from .testing_utils import ROOT


CONFIGS = ROOT / "examples" / "configs"


def np_trl(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Run the command, which ends the program, and return its exit code and what it prints."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/np-trl", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [[], ["dpp"], ["dpp", "--help"]])
def test_without_a_command_that_exists_all_are_listed(arguments, monkeypatch, capsys):
    code, printed, errors = np_trl(monkeypatch, capsys, *arguments)
    assert (code, printed) == (2, "")
    assert all(f"\n  {name} " in errors for name in cli.COMMANDS)
    assert "no command 'dpp'" in errors.splitlines()[-1] if arguments else "no command is given" in errors


def test_an_unknown_option_is_an_error(monkeypatch, capsys):
    code, printed, errors = np_trl(monkeypatch, capsys, "--verbose")
    assert code == 2 and not printed and "unrecognized arguments: --verbose" in errors


def test_the_version_is_printed(monkeypatch, capsys):
    from np_trl import __version__

    assert np_trl(monkeypatch, capsys, "--version") == (0, f"np-trl {__version__}\n", "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_help_begins_with_what_the_command_does(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    code, printed, errors = np_trl(monkeypatch, capsys, name, "--help")
    usage, empty, first, *_ = printed.splitlines()
    assert (code, empty, errors) == (0, "", "") and usage.startswith(f"usage: np-trl {name} ")
    assert first.lower() == f"{cli.COMMANDS[name]}.".lower()


@pytest.mark.parametrize("name, recipe", [("dpo", "np_dpo_style"), ("reward", "np_reward_example_4_1")])
def test_training_without_arguments_is_the_demo(name, recipe, monkeypatch):
    script, seen = import_module(f"np_trl.scripts.{name}"), []
    monkeypatch.setattr(script, "main", lambda *arguments: seen.extend(arguments))
    monkeypatch.setattr(sys, "argv", [f"np-trl {name}"])
    script.run()
    script_args, training_args, model_args = seen
    assert training_args.output_dir == f"runs/{recipe}"
    if name == "dpo":
        assert script.TrainerBuilder(training_args, model_args, embedded=False).base == STYLE_GEMMA


def test_a_recipe_goes_by_its_name_and_a_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = CommandParser("dpo", NPDPOConfig)

    def read(config: str) -> str:
        args, _ = parser.parse_args_and_config(["--config", config], return_remaining_strings=True)
        return args.output_dir

    assert read("np_dpo_style_lora") == read(str(CONFIGS / "np_dpo_style_lora.yaml")) == "runs/np_dpo_style_lora"
    (tmp_path / "np_dpo_style_lora").write_text("output_dir: mine")
    assert read("np_dpo_style_lora") == "mine"
    with pytest.raises(FileNotFoundError, match="'np_dpo_stile'"):
        read("np_dpo_stile")


SCRIPTS = ("np_dpo", "np_reward", "evaluate_model", "generate", "embed_preferences", "export")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_commands_that_a_script_shows_are_understood(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # whose recipes they name
    shown = ast.get_docstring(ast.parse((ROOT / "examples" / f"{name}.py").read_text()))
    lines = "".join(re.findall(r"```sh\n(.*?)```", shown, re.S)).replace("\\\n", " ").splitlines()
    parsed = []
    for line in lines:
        script, arguments = re.fullmatch(r"(?:python|accelerate launch) (examples/\w+\.py) ?(.*)", line).groups()
        run = runpy.run_path(script)["run"]
        monkeypatch.setitem(run.__globals__, "main", lambda *arguments: parsed.append(arguments))
        here = ["--use_cpu", "true"] if Path(script).stem in ("np_dpo", "np_reward") else []  # no GPU for bf16
        monkeypatch.setattr(sys, "argv", [script, *shlex.split(arguments), *here])
        run()
    assert len(parsed) == len(lines) > 0


def test_the_readme_names_every_command_and_its_script():
    named = dict(re.findall(r"\| `np-trl (\w+)` \| `(examples/\w+\.py)` \|", (ROOT / "README.md").read_text()))
    assert list(named) == list(cli.COMMANDS)
    for command, script in named.items():
        assert f"from np_trl.scripts.{command} import" in (ROOT / script).read_text()
