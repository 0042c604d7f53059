"""The architecture: who may import whom. And what an import costs."""

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import is_dataclass
from importlib import import_module
from importlib.resources import files

import pytest

from np_trl.scripts.cli import COMMANDS

from .testing_utils import ROOT


PACKAGE = ROOT / "np_trl"
ALLOWED = {
    "models": {"models"},
    "data": {"data", "files"},
    "populations": {"populations", "data"},
    "metrics": {"metrics", "files"},
    "trainer": {"trainer", "models", "data", "metrics", "files", "weight_identity"},
    "users": {"users", "models", "data", "files", "weight_identity"},
    "evaluation": {"evaluation", "trainer", "users", "models", "data", "populations", "metrics", "files"},
    "scripts": {"scripts", "evaluation", "trainer", "users", "models", "data", "populations", "metrics", "files"},
}
WORDS = "np_trl.models.texts"  # of preference pairs: the one file of models/ that data/ imports
THIRD_PARTY = {
    "models": {"torch", "transformers"},
    "data": {"datasets", "numpy", "pyarrow", "torch"},
    "metrics": {"datasets", "evaluate", "numpy", "torch", "transformers"},
}


def imports(path) -> list[tuple[int, str]]:
    """(level, module) of every import of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_arrows_run_one_way(path):
    room = path.parent.name
    for level, module in imports(path):
        parts = module.split(".")
        if level:
            assert room == "models" and level == 1 and len(parts) == 1, f"{path}: from {'.' * level}{module}"
        elif parts[0] == "np_trl":
            assert room != "models", f"{path}: the remote-code shelf imports np_trl"
            if room == "data" and module == WORDS:
                continue
            assert len(parts) > 1 and parts[1] in ALLOWED[room], f"{path}: imports {module}"
        elif room in THIRD_PARTY and parts[0] not in sys.stdlib_module_names:
            assert parts[0] in THIRD_PARTY[room], f"{path}: imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.py")), ids=lambda path: path.name)
def test_examples_import_names_that_exist(path):
    """In benchmarks too, which no test runs."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "np_trl":
            module = import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{path}: imports {missing} from {node.module}"


def test_the_words_of_pairs_and_the_files_import_the_standard_library_alone():
    for path in (PACKAGE / "models" / "texts.py", PACKAGE / "files.py"):
        assert {module.split(".")[0] for _, module in imports(path)} <= set(sys.stdlib_module_names), path


SHELF = sorted((PACKAGE / "models").glob("*.py"))
HARMLESS = {
    "collections.abc", "contextlib", "dataclasses", "functools", "hashlib", "itertools", "json", "pathlib", "re", "tempfile", "threading",
    "typing",
}  # fmt: skip
FORBIDDEN_NAMES = {
    "exec", "eval", "compile", "__import__", "import_module", "open", "globals", "setattr",
    "system", "popen", "subprocess", "pickle", "socket", "urlopen", "requests", "httpx",
    "load_state_dict_from_url", "hf_hub_download", "snapshot_download", "cached_file",
}  # fmt: skip


@pytest.mark.parametrize("path", SHELF, ids=lambda path: path.name)
def test_shared_code_imports_torch_transformers_and_its_siblings_alone(path):
    siblings = {file.stem for file in SHELF}
    for level, module in imports(path):
        if level:
            assert module in siblings, f"{path}: imports .{module}"
        else:
            assert module.split(".")[0] in {"torch", "transformers"} or module in HARMLESS, f"{path}: imports {module}"


@pytest.mark.parametrize("path", SHELF, ids=lambda path: path.name)
def test_shared_code_runs_no_other_code_and_uses_no_network(path):
    assert not forbidden_names(path.read_text()), path


def forbidden_names(code: str) -> set[str]:
    """What code names that it should not. `model.eval()` is not Python's `eval`; `torch.load` unpickles."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            found |= {node.id} & FORBIDDEN_NAMES
        elif isinstance(node, ast.Attribute) and node.attr != "eval":
            is_torch_load = node.attr == "load" and getattr(node.value, "id", None) == "torch"
            found |= {node.attr} & FORBIDDEN_NAMES | ({"torch.load"} if is_torch_load else set())
        elif isinstance(node, ast.alias):
            found |= set(node.name.split(".")) & FORBIDDEN_NAMES
    return found


@pytest.mark.parametrize(
    "code, name",
    [
        ("eval('1')", "eval"),
        ("import os\nos.system('ls')", "system"),
        ("import pickle", "pickle"),
        ("from urllib.request import urlopen", "urlopen"),
        ("torch.load('weights.pt')", "torch.load"),
        ("__builtins__.exec('1')", "exec"),
    ],
)
def test_forbidden_names_are_found(code, name):
    assert forbidden_names(code) == {name}
    assert not forbidden_names("model.eval()")


def test_importing_the_package_imports_no_other():
    code = (
        "import sys; before = set(sys.modules); import np_trl; after = set(sys.modules) - before\n"
        "assert {name for name in after if name.partition('.')[0] not in sys.stdlib_module_names} == {'np_trl'}, after\n"
        "assert 'NPDPOTrainer' in dir(np_trl)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_public_name_exists():
    import np_trl

    for name in np_trl.__all__:
        assert getattr(np_trl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'NPPPOTrainer'"):
        np_trl.__getattr__("NPPPOTrainer")


def test_the_public_names_are_few_and_documented():
    import np_trl

    names = set(np_trl.__all__) - {"__version__"}
    table = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert names == {name for cell in table for name in re.findall(r"`(\w+)`", cell)} and len(names) <= 24


def test_what_the_readme_imports_from_the_root_is_public():
    import np_trl

    readme = (ROOT / "README.md").read_text()
    shown = ", ".join(re.findall(r"^from np_trl import (.*)$", readme, re.M)).split(", ")
    shown += re.findall(r"\bnp_trl\.(\w+)`", readme)
    assert {"NPDPOTrainer", "load_policy", "simulate_users"} <= set(shown) <= set(np_trl.__all__)


def test_the_names_of_a_decoder_follow_from_its_line():
    from np_trl import models

    for policy in models.POLICIES.values():
        for model_class in (policy, policy.config_class, policy.model_class):
            assert getattr(models, model_class.__name__) is model_class
    assert len(models.__all__) == len(set(models.__all__)) == 6 + 3 * len(models.POLICIES)


def test_every_package_is_installed():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    assert listed == {
        "np_trl",
        "np_trl.configs",
        "np_trl.everyday_answers",
        "np_trl.model_cards",
        "np_trl.style_gemma",
        *(f"np_trl.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")),
    }
    assert files("np_trl.model_cards").joinpath("model_card.md.jinja").is_file()


def test_files_and_functions_are_short():
    """A stranger reads a file in minutes and a function on a screen."""
    for path in PACKAGE.rglob("*.py"):
        code = path.read_text()
        assert code.count("\n") <= 330, f"{path} has {code.count(chr(10))} lines"
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                length = node.end_lineno - first.lineno + 1 + (node.body[0].lineno - node.lineno)
                assert length <= 50, f"{path}: `{node.name}` has {length} lines without its docstring"


EXAMPLES = ROOT / "examples"
FOLDERS = sorted({EXAMPLES, *(path.parent for path in EXAMPLES.glob("*/*.py"))})


def modules(folder) -> set[str]:
    return {path.stem for path in folder.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("folder", [ROOT / "tests", *FOLDERS], ids=lambda folder: folder.name)
def test_the_modules_of_a_folder_of_examples_are_its_own(folder):
    others = {"examples"}.union(*map(modules, FOLDERS)) - (modules(folder) if folder in FOLDERS else set())
    paths = folder.rglob("*.py") if folder.name == "tests" else folder.glob("*.py")
    for path in paths:
        named = {module.split(".")[0] for level, module in imports(path) if level == 0}
        assert not named & others, f"{path} imports {named & others}"


THIN = {"dpo": "np_dpo", "reward": "np_reward", "evaluate": "evaluate_model", "embed": "embed_preferences"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_module_and_a_thin_script(command):
    module = import_module(f"np_trl.scripts.{command}")
    assert is_dataclass(module.ScriptArguments) and callable(module.main) and callable(module.run)
    docstring, imported, names, guard = ast.parse((EXAMPLES / f"{THIN.get(command, command)}.py").read_text()).body
    assert ast.unparse(imported) == f"from np_trl.scripts.{command} import ScriptArguments, main, run"
    assert ast.unparse(names) == "__all__ = ['ScriptArguments', 'main', 'run']"
    assert ast.unparse(guard) == "if __name__ == '__main__':\n    run()"
    assert "python examples/" in docstring.value.value or "accelerate launch examples/" in docstring.value.value
