"""The architecture: who may import whom. And what an import costs."""

import ast
import subprocess
import sys

import pytest

from .testing_utils import ROOT


PACKAGE = ROOT / "np_trl"
ALLOWED = {
    "models": {"models"},
    "data": {"data"},
    "metrics": {"metrics"},
    "trainer": {"trainer", "models", "data", "metrics"},
    "users": {"users", "models", "data"},
}
THIRD_PARTY = {
    "models": {"torch", "transformers", "huggingface_hub"},
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
            assert len(parts) > 1 and parts[1] in ALLOWED[room], f"{path}: imports {module}"
        elif room in THIRD_PARTY and parts[0] not in sys.stdlib_module_names:
            assert parts[0] in THIRD_PARTY[room], f"{path}: imports {module}"


def test_the_shelf_runs_nothing_foreign():
    forbidden = {"exec", "eval", "compile", "__import__", "system", "popen"}
    for path in PACKAGE.glob("models/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                is_model_eval = isinstance(node.func, ast.Attribute) and name == "eval"
                assert name not in forbidden or is_model_eval, f"{path}: calls {name}"
        assert not {"os", "subprocess", "pickle", "socket", "urllib"} & {m.split(".")[0] for _, m in imports(path)}


def test_importing_the_package_is_lazy_and_fast():
    code = (
        "import sys, time; start = time.perf_counter(); import np_trl; seconds = time.perf_counter() - start\n"
        "assert seconds < 0.3, seconds\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)\n"
        "assert 'NPDPOTrainer' in dir(np_trl)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_public_name_exists():
    import np_trl

    for name in np_trl.__all__:
        assert getattr(np_trl, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'NPPPOTrainer'"):
        np_trl.__getattr__("NPPPOTrainer")
