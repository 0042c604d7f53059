"""The files of the demo, which are installed with the package: the base model and the recipes of `examples/`."""

from importlib.resources import files
from pathlib import Path


STYLE_GEMMA = str(files("np_trl.style_gemma"))


def find_config(name: str) -> str:
    """The file that `--config` names: a path, or a recipe in `examples/configs` without its ending."""
    recipe = Path(str(files("np_trl.configs")), f"{name}.yaml")
    return str(recipe) if recipe.is_file() and not Path(name).exists() else name
