"""No replaced word is left, and the check for them finds each kind of use and nothing else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import check_words
from tests.support.paths import PROJECT

BAD = {
    "a function": ("pipeline/a.py", "def consider(): ...", "consider", "definition"),
    "a class": ("pipeline/a.py", "class Recipe: ...", "Recipe", "definition"),
    "a field": ("pipeline/a.py", "class A:\n    samples: int = 0", "samples", "field"),
    "a variable": ("tests/test_a.py", "recipes = []", "recipes", "name"),
    "an argument": ("dags/a.py", "def f(recipe): ...", "recipe", "argument"),
    "a keyword": ("benchmarks/a.py", "f(members=[])", "members", "keyword"),
    "an attribute": ("plugins/b/a.py", "a.may_look()", "may_look", "attribute"),
    "an import": ("scripts/a.py", "from pipeline import notices", "notices", "import"),
    "a module": ("pipeline/consensus.py", "", "consensus", "definition"),
    "a command": ("tests/test_a.py", "run('captioning', 'copy', target)", "copy", "command"),
    "a flag": ("pipeline/cli/a.py", "f('--samples')", "samples", "flag"),
    "a flag and its opposite": ("dags/a.py", "f('--marks/--no-marks')", "marks", "flag"),
    "a flag with a value": ("tests/a.py", "f(f'--views={a}')", "views", "flag"),
    "a key of a dictionary": ("pipeline/a.py", "A = {'people': 1}", "people", "key"),
    "a subscript": ("pipeline/a.py", "a['recipe']", "recipe", "key"),
    "a key that is asked for": ("plugins/a.py", "a.get('members')", "members", "key"),
    "a heading": ("README.md", "# Title\n\n## The recipe of a model", "recipe", "heading"),
    "a heading of a page": ("plugins/a.html", "<h1 class='x'>Marks</h1>", "marks", "heading"),
    "an expression of a template": ("pipeline/a.html.jinja", "{% for m in model.members %}", "members", "key"),
    "a field of a form": ("plugins/a.html", '<input name="marks">', "marks", "key"),
    "a property in JavaScript": ("plugins/a.js", "answer.members.length", "members", "key"),
    "a property of a literal": ("plugins/a.js", "f({marks: 1})", "marks", "key"),
}

GOOD = {
    "prose": ("docs/a.md", "# Title\n\nPeople consider the recipe.\n\n```sh\n# the recipe\n```"),
    "docstrings and comments": ("pipeline/a.py", '"""Consider the recipe."""\n# members\n'),
    "longer words": ("pipeline/a.py", "considered = recipes_of(a.team_members)"),
    "a loop": ("pipeline/a.py", "for each in a: f(each)"),
    "a variable with an ordinary name": ("pipeline/a.py", "finished = f(search, samples)"),
    "a copy": ("pipeline/a.py", "import copy\nb = copy.copy(a).copy()"),
    "a drawing": ("pipeline/data/synthetic.py", "draw = ImageDraw.Draw(image)\ndraw.line(a)"),
    "notes of Airflow": ("plugins/captioning/run_notes.py", "dag_run.note = a"),
    "a run's stage": ("pipeline/work/runs.py", "def shards(run, stage): ..."),
    "a title of a page": ("plugins/a.html", "<title>{{ a }}: models</title><p>the members</p>"),
    "text in JavaScript": ("plugins/a.js", "show('the marks of people')"),
    "a file of another kind": ("plugins/a.css", ".members { color: red }"),
}


def check(root: Path, file: str, text: str, **options: object) -> list[str]:
    """Check a tree of one file; the lines of the words found."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return check_words.check(root, **options)


@pytest.mark.parametrize(("file", "text", "word", "place"), BAD.values(), ids=BAD)
def test_a_replaced_word_is_found(tmp_path, file, text, word, place):
    """It is named with file, line and replacement."""
    [line] = check(tmp_path, file, text)
    assert re.fullmatch(rf"{file}:\d+: {word} -> .+ \({place}\)", line)


@pytest.mark.parametrize(("file", "text"), GOOD.values(), ids=GOOD)
def test_an_ordinary_use_is_not(tmp_path, file, text):
    """Prose, longer words and other senses pass."""
    assert check(tmp_path, file, text) == []


def test_the_line_is_that_of_the_word(tmp_path):
    """Each line is named once, whatever the number of its uses."""
    assert check(tmp_path, "pipeline/a.py", "x = 1\nrecipe = recipe + recipe\n\nf(\n    recipe=1,\n)") == [
        "pipeline/a.py:2: recipe -> config, TrainingConfig (name)",
        "pipeline/a.py:5: recipe -> config, TrainingConfig (keyword)",
    ]


def test_an_exception_that_nothing_needs_is_found(tmp_path):
    """An exception excuses one word in its files, and goes when they no longer use it."""
    excepted = [("pipeline/a.py", "recipe")]
    assert check(tmp_path, "pipeline/a.py", "recipe = 1", exceptions=excepted) == []
    assert check(tmp_path, "pipeline/a.py", "config = 1", exceptions=excepted) == [
        "pipeline/a.py: the exception for recipe is not needed any more"
    ]


def test_the_command(tmp_path):
    """It prints a line for each word and exits with 1, or prints nothing."""
    (tmp_path / "dags").mkdir()
    command = [sys.executable, PROJECT / "scripts" / "check_words.py", tmp_path]
    (tmp_path / "dags" / "a.py").write_text("recipe = 1")
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.startswith("dags/a.py:1: recipe -> config, TrainingConfig")


def test_no_replaced_word_is_left():
    """The project uses the terms of the field."""
    found = check_words.check(PROJECT)
    assert not found, "\n".join(found)
    assert [file for file, _ in check_words.EXCEPTIONS if not (PROJECT / file).exists()] == []
