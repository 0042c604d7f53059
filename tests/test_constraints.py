"""The pins: every package that the product and its extras bring is named with the version that is tested."""

import re
from importlib.metadata import distribution

from packaging.requirements import Requirement

from .testing_utils import ROOT


EXTRAS = ("app", "deepspeed", "figures", "test")  # what the tests are run with


def required(name: str, extras: tuple[str, ...], found: dict[str, str]) -> dict[str, str]:
    """The versions of what is installed of the requirements of a package, and of theirs."""
    for requirement in map(Requirement, distribution(name).requires or ()):
        asked = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")
        )
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        # what drives an accelerator comes with torch's build for it
        if (
            asked
            and (key, *sorted(requirement.extras)) not in found
            and not key.startswith(("nvidia-", "cuda-", "triton"))
        ):
            found[key, *sorted(requirement.extras)] = distribution(key).version.split("+")[0]
            required(key, tuple(requirement.extras), found)
    return found


def read_pins() -> dict[str, str]:
    """The version of every package of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_package_has_a_pin_and_is_the_one_that_is_pinned():
    pins = read_pins()
    versions = {key[0]: version for key, version in required("np_trl", EXTRAS, {}).items()}
    assert versions == {name: pins.get(name) for name in versions} and len(versions) > 100
    assert "ruff" in pins


def test_versions_that_are_unsafe_are_too_old():
    floors = dict(re.findall(r"^    ([\w-]+)>=([\d.]+)$", (ROOT / "setup.cfg").read_text(), re.M))
    as_numbers = {name: tuple(map(int, version.split("."))) for name, version in floors.items()}
    assert as_numbers["jinja2"] >= (3, 1, 6)  # older ones leave their sandbox
    assert as_numbers["pyarrow"] >= (14, 0, 1)  # older ones run code of files
    requirements = re.search(r"install_requires =\n((?:    .+\n)+)", (ROOT / "setup.cfg").read_text())[1].split()
    assert all(">=" in requirement for requirement in requirements)


def test_the_package_says_up_to_which_versions_it_is_tested():
    (tested,) = re.findall(r"^# tested up to (.+)\ninstall_requires =", (ROOT / "setup.cfg").read_text(), re.M)
    versions = dict(part.split(" ") for part in tested.split(", "))
    pins = read_pins()
    assert versions == {name: pins[name] for name in ("trl", "transformers", "peft")}
