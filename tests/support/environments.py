"""Virtual environments whose packages are links to those of the tests, so that one is made in a second."""

import itertools
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import PROJECT


def make_environment(folder: Path, *extras: str) -> Path:
    """Make an environment with the base packages, those of extras, and all that these require; without ours.

    Returns:
        Its Python.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    required = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    for name in _closure(itertools.chain(*required)):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            link = packages(folder / "bin" / "python") / top
            # Packages that share a namespace share its folder.
            if not link.exists() and not top.endswith(".pth"):
                link.symlink_to(installed.locate_file(top))
    return folder / "bin" / "python"


def packages(python: Path) -> Path:
    """The folder of the packages of an environment's Python."""
    [folder] = python.parents[1].glob("lib/python*/site-packages")
    return folder


def _closure(required: Iterable[str]) -> set[str]:
    """The names of the packages that satisfy requirements, and those of their own."""
    waiting = [(Requirement(each), "") for each in required]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, context = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": context}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(Requirement(each), extra) for each in distribution(name).requires or ()]
    return {name for name, _ in seen}
