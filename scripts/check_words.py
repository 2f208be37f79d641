"""Report words that this project has replaced by the field's standard terms; `make lint` runs it.

    python scripts/check_words.py [ROOT]

A replaced word must not come back as an identifier (Python), a command or flag of the command line, a heading
(Markdown, HTML) or a key (dictionaries, models, JavaScript, templates). Prose is free. Prints one line for each word
found, ``file:line: word -> replacement``, and then exits with status 1.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PYTHON = ("pipeline", "dags", "plugins", "scripts", "tests", "benchmarks")
"""Folders whose Python files, templates and scripts for browsers are checked."""

OWN = ("scripts/check_words.py", "tests/scripts/test_check_words.py")
"""The files that must write these words."""

PAGES = ("README.md", "docs", "benchmarks/README.md")
"""Markdown files, and folders of them, whose headings are checked."""

NAMES = frozenset({"definition", "field", "name", "argument", "attribute", "keyword", "import"})
"""Every place of an identifier: a function or class, a field of a class, a variable, and so on."""

API = frozenset({"definition", "field", "attribute", "import", "keyword"})
"""Identifiers that other code sees; a variable may have any name."""

EVERYWHERE = NAMES | {"flag", "heading", "key"}

COMMAND = frozenset({"command"})
"""A string that is nothing but the word: a command of the command line, or the id of a task."""


@dataclass(frozen=True)
class Word:
    """A replaced word: exactly these letters, as an identifier or in a text.

    Attributes:
        text: the word.
        replacement: what to write in its place.
        places: where it is replaced; other places may use it in its ordinary sense.
        files: prefixes of the paths where it is replaced.
    """

    text: str
    replacement: str
    places: frozenset[str] = EVERYWHERE
    files: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Use:
    """A word at some place."""

    file: str
    line: int
    place: str
    text: str


def words(
    texts: str, replacement: str, *, places: Iterable[str] = EVERYWHERE, files: Iterable[str] = ("",)
) -> list[Word]:
    """Words, divided by spaces, that have one replacement."""
    return [Word(text, replacement, frozenset(places), tuple(files)) for text in texts.split()]


NOT_AIRFLOW = ("benchmarks/", "pipeline/", "tests/features/", "tests/nightly/", "tests/work/")
"""Where a note can't be one of Airflow's."""

TRAINING = ("benchmarks/", "pipeline/features/", "pipeline/training/", "tests/training/")
"""Where examples are inputs of a training."""

OUTCOMES = ("pipeline/data/", "pipeline/nightly/", "pipeline/work/")
"""Where functions find the outcomes of images, records and data sets."""

WORDS = [
    *words("consider", "gate, run_gate, decide_promotion", places=EVERYWHERE | COMMAND),
    *words("publish", "reconcile (a night), register (an encoder)", places=EVERYWHERE | COMMAND),
    *words("announce", "emit_champion_event", places=EVERYWHERE | COMMAND),
    # Asking is ordinary English in fixtures and clients; as a task of a DAG it is replaced.
    *words("ask", "choose_approval", places={"definition", "command"}, files=["dags/"]),
    # A drawing has marks, which are variables; pytest gives marks to the cases of a test.
    *words("marks Mark Marks", "corrections, Correction", places=EVERYWHERE - {"name", "keyword"}),
    *words("members", "ensemble, ensemble_size"),
    # `for each in …` is a loop's variable.
    *words("each", "single_models", places=API | {"flag", "key"}),
    *words("views", "crops"),
    *words("several", "multi_crop", places=API | {"flag", "key"}),
    # Pictures and words are drawn; the functions of these two packages have other names.
    *words("draw", "sample_crop", places=API, files=["pipeline/features/"]),
    *words("draw", "generate", places={"definition"}, files=["pipeline/data/"]),
    *words("plans Plan", "shards, Shard"),
    *words("about", "spec (of a shard), metadata (of a table)"),
    # Airflow's runs have notes: dags/, plugins/ and their tests may speak of them.
    *words("note notes", "stats (of a shard), record (of a run)", files=NOT_AIRFLOW),
    *words("stage stages Stage", "phase (of a training), section (of a stopwatch)"),
    *words("Examples", "TrainingData"),
    # A report shows examples of captions; the inputs of a training are something else.
    *words("examples", "batches, data", files=TRAINING),
    *words("Captions", "EncodedCaptions", places=NAMES),
    *words("recipe recipes Recipe", "config, TrainingConfig"),
    *words("Search", "DecodingConfig", places=NAMES),
    # A gallery has a search, and a regular expression searches; a parameter of decoding does not.
    *words("search", "decoding", places={"argument", "field", "keyword", "key"}, files=["pipeline/", "tests/"]),
    # Sampling yields samples; a setting of decoding has the full name.
    *words("samples", "mbr_samples", places={"field", "flag"}),
    *words("samples", "mbr_samples", places={"key", "keyword"}, files=["pipeline/cli/", "dags/", "plugins/"]),
    *words("consensus", "mbr"),
    *words("rank spread", "rerank, stratified_uniforms", places={"definition"}, files=["pipeline/"]),
    *words("self_critical self_critical_epochs self_critical_learning_rate", "scst, scst_epochs, scst_learning_rate"),
    *words("Compiled", "CompiledNetwork, CompiledFunction"),
    # The split of a dataset keeps its name; features of one have another.
    *words("Split", "SplitFeatures", files=["pipeline/features/", "pipeline/training/", "pipeline/evaluation/"]),
    *words("split_features", "read_split"),
    *words("next_words", "decode_step"),
    *words("mean_loss", "train_epoch, evaluate_loss"),
    *words("Description Metadata", "ModelMetadata", places=NAMES),
    # People write and correct captions; their scores and columns are the human baseline.
    *words("people", "human", places=EVERYWHERE - {"heading", "name"}),
    # Ordinary English elsewhere; as functions of these packages they were four words for two things.
    *words("decided", "latest_outcome", places={"definition"}, files=OUTCOMES),
    *words("settled", "settled_images", places={"definition"}, files=OUTCOMES),
    *words("finished", "list_records", places={"definition"}, files=OUTCOMES),
    *words("newest", "list_datasets", places={"definition"}, files=OUTCOMES),
    *words("notices notice", "notifications"),
    # Files and arrays are copied; the command that copies the store is a backup.
    *words("copy", "backup", places={"definition"}, files=["pipeline/"]),
    *words("copy", "backup", places=COMMAND),
    *words("places", "dependencies", files=["plugins/", "tests/plugins/"]),
    *words("may_look", "can_view"),
    *words("from_here", "require_same_origin"),
    *words("Asked", "CaptionQuery", places=NAMES),
    *words("Said", "CorrectionForm", places=NAMES),
]

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("pipeline/data/lexicon.py", "people"): "a category of words",
    ("pipeline/nightly/", "stage"): "a stage of a run",
    ("pipeline/storage/layout.py", "stage"): "a stage of a run",
    ("pipeline/work/", "stage"): "a stage of a run",
}
"""Words that stay, by file or folder and word, each with its reason."""


class _Python(ast.NodeVisitor):
    """Finds the words of a Python file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Use] = []
        self._in_class = False

    def add(self, node: ast.AST, place: str, text: str) -> None:
        """Record a word."""
        self.found.append(Use(self.file, getattr(node, "lineno", 1), place, text))

    def visit(self, node: ast.AST) -> None:
        """Look at a node and at all in it."""
        in_class = self._in_class
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self.add(node, "definition", node.name)
                self._in_class = isinstance(node, ast.ClassDef)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                self.add(node, "field" if in_class else "name", name)
            case ast.Name():
                self.add(node, "name", node.id)
            case ast.arg():
                self.add(node, "argument", node.arg)
            case ast.Attribute():
                self.add(node, "attribute", node.attr)
            case ast.keyword(arg=str()):
                self.add(node.value, "keyword", str(node.arg))
            case ast.Import() | ast.ImportFrom():
                self._imports(node)
            case ast.Dict():
                self._keys(node.keys)
            case ast.Subscript():
                self._keys([node.slice])
            case ast.Call(func=ast.Attribute(attr="get" | "pop" | "setdefault"), args=[first, *_]):
                self._keys([first])
            case ast.Constant(value=str(text)):
                self._text(node, text)
            case ast.Lambda():
                self._in_class = False
        self.generic_visit(node)
        self._in_class = in_class

    def _imports(self, node: ast.Import | ast.ImportFrom) -> None:
        names = [part for each in node.names for part in each.name.split(".")]
        names += [each.asname for each in node.names if each.asname]
        if isinstance(node, ast.ImportFrom) and node.module:
            names += node.module.split(".")
        for name in dict.fromkeys(names):
            self.add(node, "import", name)

    def _keys(self, nodes: Iterable[ast.expr | None]) -> None:
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.add(node, "key", node.value)

    def _text(self, node: ast.AST, text: str) -> None:
        if re.fullmatch(r"[a-z][a-z_-]*", text):
            self.add(node, "command", text.replace("-", "_"))
        for flag in _flags(text) if text.startswith("--") and " " not in text else []:
            self.add(node, "flag", flag)


def _flags(text: str) -> list[str]:
    return [flag.replace("-", "_") for flag in re.findall(r"--(?:no-)?([a-z][a-z-]*)", text)]


def python_words(file: str, text: str) -> list[Use]:
    """Identifiers, keys, commands and flags of a Python file; the name of the file is one of them."""
    visitor = _Python(file)
    visitor.visit(ast.parse(text, file))
    return [Use(file, 1, "definition", Path(file).stem), *visitor.found]


def markdown_words(file: str, text: str) -> Iterator[Use]:
    """The words of headings."""
    fenced = False
    for line, content in enumerate(text.splitlines(), 1):
        fenced ^= content.startswith("```")
        if not fenced and content.startswith("#"):
            yield from _heading(file, line, content)


def html_words(file: str, text: str) -> Iterator[Use]:
    """The words of headings, and the names that expressions and forms use."""
    for found in re.finditer(r"<(h[1-6]|title|th|legend|summary)\b[^>]*>(.*?)</\1>", text, re.DOTALL):
        yield from _heading(file, _line(text, found.start()), re.sub(r"\{[{%].*?[%}]\}|<[^>]*>", " ", found[2]))
    for found in re.finditer(r"\{[{%](.*?)[%}]\}", text, re.DOTALL):
        for name in re.findall(r"[A-Za-z_]\w*", re.sub(r"\"[^\"]*\"|'[^']*'", "", found[1])):
            yield Use(file, _line(text, found.start()), "key", name)
    for found in re.finditer(r"\b(?:name|id)=\"([\w-]+)\"", text):
        yield Use(file, _line(text, found.start()), "key", found[1].replace("-", "_"))


def javascript_words(file: str, text: str) -> Iterator[Use]:
    """Properties, in whichever of their spellings."""
    for found in re.finditer(r"\.([A-Za-z_]\w*)|([A-Za-z_]\w*)['\"]?\s*:(?!:)|\[['\"](\w+)['\"]\]", text):
        yield Use(file, _line(text, found.start()), "key", found[1] or found[2] or found[3])


def _heading(file: str, line: int, text: str) -> Iterator[Use]:
    for word in re.findall(r"[A-Za-z]+(?:[-_][A-Za-z]+)*", text):
        yield Use(file, line, "heading", word.lower().replace("-", "_"))


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


READERS = {
    ".py": python_words,
    ".html": html_words,
    ".jinja": html_words,
    ".js": javascript_words,
    ".md": markdown_words,
}
"""How the words of a file are found, by its suffix."""


def uses(root: Path) -> Iterator[Use]:
    """Every identifier, key, command, flag and word of a heading in the checked files."""
    files = [path for folder in PYTHON for path in (root / folder).rglob("*") if path.suffix != ".md"]
    for page in PAGES:
        files += [root / page] if (root / page).is_file() else (root / page).rglob("*.md")
    for path in sorted(files):
        file = path.relative_to(root).as_posix()
        if path.suffix in READERS and path.is_file() and file not in OWN:
            yield from READERS[path.suffix](file, path.read_text())


def check(
    root: Path, *, replaced: Iterable[Word] = tuple(WORDS), exceptions: Iterable[tuple[str, str]] = tuple(EXCEPTIONS)
) -> list[str]:
    """A line for each replaced word that is used, and for each exception that nothing needs any more."""
    by_text: dict[str, list[Word]] = {}
    for word in replaced:
        by_text.setdefault(word.text, []).append(word)
    unneeded = {each for each in exceptions if (root / each[0]).exists()}
    lines: dict[str, str] = {}
    for use in uses(root):
        for word in by_text.get(use.text, []):
            if use.place in word.places and use.file.startswith(word.files):
                excused = {each for each in exceptions if each[1] == use.text and use.file.startswith(each[0])}
                unneeded -= excused
                if not excused:
                    line = f"{use.file}:{use.line}: {use.text} -> {word.replacement}"
                    lines.setdefault(line, f"{line} ({use.place})")
    wrong = [f"{file}: the exception for {text} is not needed any more" for file, text in sorted(unneeded)]
    return [*lines.values(), *wrong]


def main() -> int:
    """Print the words that are found; the exit status is 1 where there are some."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    found = check(root)
    for line in found:
        sys.stdout.write(f"{line}\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
