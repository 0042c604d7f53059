"""The files of the demo, which are installed with the package: the base model and the recipes of `examples/`."""

from importlib.resources import files


STYLE_GEMMA = str(files("np_trl.style_gemma"))


def recipe(name: str) -> str:
    """The path of a recipe in `examples/configs`, given without its ending."""
    return str(files("np_trl.configs").joinpath(f"{name}.yaml"))
