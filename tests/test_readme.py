"""The README says what there is."""

import re
import subprocess
from pathlib import Path

from pipeline.settings import Settings

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text()


def test_every_setting_is_listed_with_its_default():
    """Each setting has a row in the README's table, with its default; and the table lists no other."""
    rows = dict(re.findall(r"^\| `CAPTION_(\w+)` \| (?:`([^`]+)` )?\|", README, re.MULTILINE))
    defaults = {name.upper(): field.default for name, field in Settings.model_fields.items()}
    assert rows.keys() == defaults.keys()
    for name, default in defaults.items():
        text = str(default).lower() if isinstance(default, bool) else str(default)
        assert re.fullmatch(re.escape(rows[name]).replace("…", ".*"), text), name


def test_every_target_has_a_line_of_help():
    """`make help` lists every target of the Makefile, and each `make …` of the README is one of them."""
    done = subprocess.run(["make", "help"], cwd=PROJECT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^  make ([\w-]+) +\S", done.stdout, re.MULTILINE)
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(targets)
    assert set(re.findall(r"make ([a-z-]+)\b(?=[` \n]| D)", README)) - {"it", "the"} <= set(listed)


def test_every_link_leads_somewhere():
    """Files that the README and the documents link to are there, pictures too."""
    for page in (PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
