"""The order of the packages, the layout of the store, and the independence of tests hold in the source itself."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import EXTRAS
from pipeline.storage import layout
from tests.support.paths import PROJECT

LAYERS = (
    ("pipeline", "errors", "config", "settings", "logs", "progress", "timing", "pipes"),
    ("storage",),
    ("work",),
    ("data",),
    ("metrics",),
    ("features",),
    ("captioner",),
    ("evaluation",),
    ("training",),
    ("nightly",),
    ("serving",),
    ("ops",),
    ("export",),
    ("cli",),
    ("__main__",),
)
"""Packages and top-level modules of ``pipeline``. Each may import from its own layer and from those above it here."""

HEAVY = ("evaluation", "metrics", "training", "nightly", "serving", "ops", "export")
"""Packages of ``pipeline`` that the champion's version can be read without."""

CHAMPION_MODULES = 16
"""Modules of ``pipeline``, at most, that reading the champion's version loads."""

STORE_PREFIXES = {
    value
    for name, value in vars(layout).items()
    if name.isupper() and isinstance(value, str) and re.fullmatch("[a-z]+/", value)
} - {layout.CORRECTION_PICTURES}
"""The folders at the top of the store."""

NO_KEYS = {
    ("dags/caption_new_images.py", "captions/"): "a page of the gallery",
    ("dags/retrain_captioner.py", "captions/models"): "a page of the gallery",
    ("dags/retrain_captioner.py", "captions/compare"): "a page of the gallery",
    ("dags/retrain_captioner.py", "captions/image"): "a page of the gallery",
    ("plugins/captioning/plugin.py", "captions/"): "the address of the gallery",
}
"""Texts that begin like a key of the store and are none: by file and how they begin, with the reason."""


@dataclass(frozen=True)
class Import:
    """An import somewhere in a file: the module, and for ``from module import name`` the name as well."""

    file: Path
    line: int
    module: str
    name: str | None
    for_types: bool

    def __str__(self) -> str:
        text = f"import {self.module}" if self.name is None else f"from {self.module} import {self.name}"
        return f"{self.file}:{self.line}: {text}"


class _Imports(ast.NodeVisitor):
    """Finds all imports, in functions and under ``if TYPE_CHECKING`` too."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: list[Import] = []
        self._for_types = False

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(self.file, node.lineno, each.name, None, self._for_types) for each in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = "." * node.level + (node.module or "")
        self.found += [Import(self.file, node.lineno, module, each.name, self._for_types) for each in node.names]

    def visit_If(self, node: ast.If) -> None:
        outside, self._for_types = self._for_types, self._for_types or "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body:
            self.visit(child)
        self._for_types = outside
        for child in node.orelse:
            self.visit(child)


def imports(folder: str, root: Path = PROJECT) -> list[Import]:
    """All imports in the Python files of a folder; paths are relative to the root."""
    found = []
    for path in sorted((root / folder).rglob("*.py")):
        visitor = _Imports(path.relative_to(root))
        visitor.visit(ast.parse(path.read_text(), str(path)))
        found += visitor.found
    return found


def module_of(file: Path) -> str:
    """The name of the module in a file."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def target(found: Import, modules: set[str]) -> str | None:
    """The module of ours that an import loads, for itself and not only because it contains another."""
    if found.name is not None and f"{found.module}.{found.name}" in modules:
        return f"{found.module}.{found.name}"
    return found.module if found.module in modules else None


def our_modules(root: Path = PROJECT) -> set[str]:
    """All modules of ``pipeline``."""
    return {module_of(path.relative_to(root)) for path in (root / "pipeline").rglob("*.py")}


def layer_of(module: str) -> int:
    """The place of a module's package in ``LAYERS``."""
    package = module.removeprefix("pipeline.").partition(".")[0]
    for place, layer in enumerate(LAYERS):
        if package in layer:
            return place
    raise AssertionError(f"{module}: {package} has no place in LAYERS yet; add it where its imports allow")


def climbing_imports(root: Path) -> list[str]:
    """Imports from a later layer, and relative ones."""
    modules = our_modules(root)
    wrong = []
    for found in imports("pipeline", root):
        if found.module.startswith("."):
            wrong.append(f"{found}: relative; name the module in full")
        elif (imported := target(found, modules)) and layer_of(imported) > layer_of(module_of(found.file)):
            wrong.append(f"{found}: {imported} is in a later layer")
    return wrong


def cycles(root: Path) -> list[str]:
    """The cycles of imports between modules, each once; imports for types alone don't count."""
    modules = our_modules(root)
    edges: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports("pipeline", root):
        importer = module_of(found.file)
        if not found.for_types and (imported := target(found, modules)) and imported != importer:
            edges[importer].add(imported)
    done: set[str] = set()
    circles = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            circles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for imported in sorted(edges[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in sorted(modules):
        visit(module, ())
    return circles


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each string and each constant part of an f-string, but for docstrings."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def literal_keys(root: Path) -> dict[tuple[str, str], int]:
    """Texts outside the layout that begin with a folder of the store, by file and text, with the line."""
    found = {}
    for folder in ("pipeline", "plugins", "dags", "scripts"):
        for path in sorted((root / folder).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            if file != "pipeline/storage/layout.py":
                for line, text in texts(ast.parse(path.read_text(), str(path))):
                    if text.startswith(tuple(STORE_PREFIXES)):
                        found[file, text] = line
    return found


def dependent_tests(root: Path) -> list[str]:
    """Imports of a test module or a ``conftest``, and those of ``benchmarks`` outside its own tests."""
    wrong = []
    for found in imports("tests", root):
        parts = [*found.module.split("."), found.name or ""]
        if any(part.startswith("test_") or part == "conftest" for part in parts[:-1]) or (
            parts[0] == "tests" and parts[-1].startswith("test_")
        ):
            wrong.append(f"{found}: move what is shared to tests/support")
        elif parts[0] == "benchmarks" and found.file.parts[:2] != ("tests", "benchmarks"):
            wrong.append(f"{found}: only tests/benchmarks may import the benchmarks")
    return wrong


def tree(root: Path, **files: str) -> Path:
    """Write files, whose paths have ``__`` for slashes, and return their root."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def assert_none(wrong: Iterable[str]) -> None:
    """Fail with all that is wrong, one a line."""
    text = "\n".join(wrong)
    assert not text, f"\n{text}"


def test_each_package_imports_only_those_below_it():
    """The table of packages holds against the real imports, in functions and for types too."""
    assert_none(climbing_imports(PROJECT))


def test_every_layer_exists():
    """The table names no package that is gone."""
    packages = {"pipeline"} | {module.split(".")[1] for module in our_modules() if "." in module}
    assert packages == {name for layer in LAYERS for name in layer}


def test_an_import_that_climbs_is_found(tmp_path):
    """Wherever it is, the error names file, line and import."""
    root = tree(
        tmp_path,
        pipeline__storage__s3="def f():\n    from pipeline.work import runs\n",
        pipeline__work__runs="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pipeline.cli.night\n",
        pipeline__cli__night="from pipeline.work import runs\nfrom .storage import s3\n",
    )
    assert climbing_imports(root) == [
        "pipeline/cli/night.py:2: from .storage import s3: relative; name the module in full",
        "pipeline/storage/s3.py:2: from pipeline.work import runs: pipeline.work.runs is in a later layer",
        "pipeline/work/runs.py:3: import pipeline.cli.night: pipeline.cli.night is in a later layer",
    ]


def test_no_modules_import_each_other():
    """There is no cycle, not even of imports inside functions."""
    assert_none(cycles(PROJECT))


def test_a_cycle_is_found(tmp_path):
    """Also one of three modules, through a function; imports for types make none."""
    root = tree(
        tmp_path,
        pipeline__work__a="from pipeline.work.b import x\n",
        pipeline__work__b="def f():\n    from pipeline.work import c\n",
        pipeline__work__c="import pipeline.work.a\n",
        pipeline__work__d="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline.work import e\n",
        pipeline__work__e="from pipeline.work import d\n",
    )
    assert cycles(root) == ["pipeline.work.a -> pipeline.work.b -> pipeline.work.c -> pipeline.work.a"]


def test_the_pipeline_knows_nothing_of_airflow():
    """It imports neither Airflow nor what belongs to it, nor anything else of this repository."""
    foreign = {"airflow", "benchmarks", "captioning", "dags", "plugins", "scripts", "tests"}
    foreign |= {path.stem for path in (PROJECT / "dags").glob("*.py")}
    assert_none(str(found) for found in imports("pipeline") if found.module.partition(".")[0] in foreign)


def test_the_extra_of_every_optional_package_is_known():
    """The error of a missing package can name the extra, for all that the pipeline, or Keras for it, imports."""
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = {found.module.partition(".")[0] for found in imports("pipeline")} | {"tensorflow"}
    optional = {
        re.match("[a-z]+", requirement)[0]: extra
        for extra in ("inference", "training", "iceberg")
        for requirement in extras[extra]
    }
    assert {package: extra for package, extra in optional.items() if package in imported} == EXTRAS


def test_the_layout_alone_holds_keys_of_the_store():
    """No other module has a literal of a key; the listed exceptions are none, and still there."""
    found = literal_keys(PROJECT)
    excused = {
        (file, text): start
        for file, text in found
        for start in NO_KEYS
        if file == start[0] and text.startswith(start[1])
    }
    assert_none(
        f"{file}:{line}: {text!r} belongs in pipeline/storage/layout.py"
        for (file, text), line in found.items()
        if (file, text) not in excused
    )
    assert set(excused.values()) == NO_KEYS.keys(), "an exception is not needed any more"
    assert len(STORE_PREFIXES) >= 10


def test_a_literal_key_is_found(tmp_path):
    """In a string and in an f-string; a docstring may show a key."""
    code = '"""models/x: where models are."""\nKEY = "models/champion.json"\nOTHER = f"runs/{KEY}", "my models"\n'
    assert literal_keys(tree(tmp_path, dags__night=code)) == {
        ("dags/night.py", "models/champion.json"): 2,
        ("dags/night.py", "runs/"): 3,
    }


def test_no_test_depends_on_another():
    """Test modules share only what is in ``tests/support`` and in fixtures."""
    assert_none(dependent_tests(PROJECT))


def test_a_dependent_test_is_found(tmp_path):
    """However it is imported."""
    root = tree(
        tmp_path,
        tests__test_a="from test_b import x\nfrom tests.data import test_c\nimport conftest\nimport benchmarks.night\n",
        tests__benchmarks__test_d="from benchmarks import night\nfrom tests.support import toy\n",
    )
    assert [text.partition(": ")[0] for text in dependent_tests(root)] == [
        f"tests/test_a.py:{line}" for line in range(1, 5)
    ]


@pytest.fixture(scope="module")
def loaded():
    """The modules that a fresh interpreter has loaded when it can read the champion's version."""
    code = "import json, sys; from pipeline.captioner.registry import read_champion; print(json.dumps([*sys.modules]))"
    child = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, check=True)
    return json.loads(child.stdout)


def test_reading_the_champion_loads_little(loaded):
    """The API server and the command line read it, and must not pay for scores, training or a report."""
    ours = [name for name in loaded if name.partition(".")[0] == "pipeline"]
    assert [name for name in ours if name.split(".")[1:2] and name.split(".")[1] in HEAVY] == []
    assert len(ours) <= CHAMPION_MODULES, ours
    assert {"airflow", "jinja2", "keras", "openvino", "pandas", "tensorflow"} & set(loaded) == set()
