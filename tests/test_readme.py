"""The README and the documents agree with the settings, the command line, the Makefile and the files."""

import re
import shlex
import subprocess

import pytest
import typer
from typer.core import TyperGroup

from pipeline.cli import app
from tests.support.paths import PROJECT
from tests.support.variables import DEFAULTS

README = (PROJECT / "README.md").read_text()
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").glob("*.md"))]

COMMANDS = re.compile(
    r"(?:^ *|`|-- |worker |CAPTION_STORE=\S+ )captioning ((?!--help|…)[^`#>\n]+(?:\n--[^`\n]+)?)", re.MULTILINE
)
"""Commands in code, which may be wrapped before an option."""

PLACEHOLDERS = {
    "SHARD": "0123456789abcdef",
    "DATASET_ID": "flickr8k/0123456789abcdef",
    **dict.fromkeys(["keys.txt", "portrait.jpg"], __file__),
}
"""Words in commands that stand for names of a kind that is checked, with such a name, or for files that must exist."""


def test_every_named_setting_exists():
    """The documents name settings that there are, apart from the variables of the tests."""
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # it names former settings
            continue
        named = set(re.findall(r"\bCAPTION_[A-Z0-9_]*[A-Z0-9]", page.read_text()))
        assert {name for name in named if not name.startswith("CAPTION_TEST")} <= DEFAULTS.keys(), page.name


def test_defaults_in_the_readme_are_right():
    """Where the README has a row for a setting in a table, it shows the default."""
    for name, default in re.findall(r"^\| `(CAPTION_\w+)` \| (?:`([^`]+)` )?\|", README, re.MULTILINE):
        assert re.fullmatch(re.escape(default).replace("…", ".*"), DEFAULTS[name]), name


def test_every_target_has_a_line_of_help():
    """`make help` lists every target of the Makefile, and each `make …` of the README is one of them."""
    done = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^  make ([\w-]+) +\S", done.stdout, re.MULTILINE)
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(targets)
    assert set(re.findall(r"make ([a-z-]+)\b(?=[` \n]| D)", README)) - {"it", "the"} <= set(listed)


def anchors(page):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere():
    """Files that the README and the documents link to are there, pictures too, and the headings of pages."""
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text()):
            linked = page.parent / target if target else page
            assert linked.exists(), (page.name, target)
            assert not anchor or anchor in anchors(linked), (page.name, target, anchor)


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            shlex.join(shlex.split(text))
            for page in PAGES
            if page.name != "cli.md"  # it shows how commands are used, with placeholders
            for text in COMMANDS.findall(page.read_text())
        }
    ),
)
def test_every_command_is_right(command):
    """The command line takes every command in the documents."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command) if word != "…"]
    entry, arguments = typer.main.get_command(app), words
    while isinstance(entry, TyperGroup):
        name, *arguments = arguments
        assert name in entry.commands
        entry = entry.commands[name]
    if arguments:
        entry.make_context(entry.name, arguments)


TIERS = re.compile(r"pytest\.mark\.(airflow|browser|kills|photographs|cluster|by_hand)\b")


def test_every_named_test_is_run_by_the_named_target():
    """The documents name tests that there are, by a path if a name is not enough, with the target that runs a tier."""
    tests = {path.relative_to(PROJECT).as_posix(): path for path in (PROJECT / "tests").rglob("test_*.py")}
    for page in PAGES:
        for line in page.read_text().splitlines():
            for name in re.findall(r"(?:tests/[\w/]+/)?\btest_\w+\.py", line):
                found = [path for path in tests if f"/{path}".endswith(f"/{name}")]
                assert len(found) == 1, (page.name, name, found)
                targets = {f"make test-{tier}" for tier in TIERS.findall(tests[found[0]].read_text())}
                assert not targets or any(target in line for target in (*targets, "make pictures")), (page.name, line)


def test_every_selection_of_tests_selects_some():
    """Each `pytest FILE -k NAME` of the documents names a file that has such tests."""
    selections = [found for page in PAGES for found in re.findall(r"-m pytest (\S+) -k (\w+)", page.read_text())]
    assert selections
    for file, name in selections:
        assert re.search(rf"^def test_\w*{name}", (PROJECT / file).read_text(), re.MULTILINE), (file, name)


def test_programs_are_run_in_the_environment():
    """Code in the documents that runs a module of this project does so with the Python of .venv."""
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # it names former commands
            continue
        for command in re.findall(r"\S*python -m (?:benchmarks|pipeline|scripts|tests)\b", page.read_text()):
            assert ".venv/bin/python" in command, (page.name, command)


README_LINES = 150
"""Maximum number of lines of the README. Whatever does not fit belongs on a page in docs/."""


def test_the_readme_is_short():
    """It has at most ``README_LINES`` lines, and its prose is wrapped."""
    lines = README.splitlines()
    assert len(lines) <= README_LINES
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL).splitlines()
    assert [line for line in prose if len(line) > 130 and not line.startswith("|")] == []
