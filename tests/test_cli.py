"""The command line: what it prints, how it fails, and how quickly it helps."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from pipeline import cli, marks, registry, runs, tables
from pipeline.storage import open_bucket

PROJECT = Path(__file__).resolve().parents[1]

COMMANDS = {
    "ingest": {"source", "--name", "--max-dropped-fraction", "--marks", "--no-marks"},
    "datasets": {"--limit"},
    "copy": {"target"},
    "vocabulary": {"dataset_uri", "--min-count"},
    "encoder": {"spec", "--views", "--no-views", "--int8"},
    "plan": {"dataset_uri", "encoder_id", "--run"},
    "extract": {"shard"},
    "train": {"dataset_uri", "vocabulary_uri", "encoder_id", "--set"},
    "evaluate": {"version", "--beam", "--samples"},
    "compare": {"version"},
    "consider": {"version", "--policy", "--promote", "--keep", "--by", "--tolerance", "--floor", "--run"},
    "promote": {"version"},
    "rollback": set(),
    "prune": {"--keep", "--older-than", "--remove"},
    "caption": {"pictures", "--beam", "--samples", "--alternatives", "--json", "--model"},
    "status": {"--captions", "--under"},
    "demo-data": {"directory", "--images", "--seed"},
    "demo-inbox": {"--count"},
    "night list": {"run", "--archive", "--retry-failed", "--no-retry-failed"},
    "night plan-extraction": {"run"},
    "night plan-captions": {"run", "--date"},
    "night caption": {"shard"},
    "night publish": {"run"},
}
"""Every command with its arguments and options."""

HELP = """
import contextlib, io, json, sys
import typer
from pipeline.cli import app

def commands(command, path):
    children = getattr(command, "commands", None)
    if children is None:
        yield path
    for name, child in (children or {}).items():
        yield from commands(child, [*path, name])

texts, root = {}, typer.main.get_command(app)
for path in commands(root, []):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        root.main([*path, "--help"], standalone_mode=False)
    texts[" ".join(path)] = text.getvalue()
json.dump({"texts": texts, "modules": sorted(sys.modules)}, sys.stdout)
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Store and inbox in the environment, and no Java, which would take most of the time."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("CAPTION_STORE", (tmp_path / "store").as_uri())
    monkeypatch.setenv("CAPTION_INBOX", str(tmp_path / "inbox"))
    monkeypatch.setenv("CAPTION_SHARD_SIZE", "20")
    return tmp_path


def process(*arguments):
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=PROJECT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def command(environment, monkeypatch, capsys):
    """Run a command in this process: exit status, the last line of standard output, and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output, error = capsys.readouterr()
        return stop.value.code or 0, output.splitlines()[-1] if output else "", error

    return run


@pytest.fixture
def result(command):
    """Run a command that must succeed in this process; its result."""

    def run(*arguments):
        status, line, error = command(*arguments)
        assert status == 0, error
        return json.loads(line)

    return run


def test_a_process_prints_one_line_of_json(environment, toy_encoder):
    """The last line of standard output is the result; all else goes to standard error."""
    table = toy.draw(open_bucket(str(environment / "toy")))
    done = process("ingest", table)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["images"], report["captions"]) == ({"train": 16, "dev": 4, "test": 4}, 48)
    assert report["dataset"].startswith((environment / "store/datasets/captions").as_uri())
    assert "INFO" in done.stderr
    assert "Traceback" not in done.stderr

    done = process("encoder", str(toy_encoder))
    assert done.returncode == 0, done.stderr
    encoder_id = json.loads(done.stdout.splitlines()[-1])["encoder_id"]
    assert (environment / f"store/encoders/{encoder_id}/files.json").is_file()


def test_an_encoder_in_eight_bits(environment, result, toy_encoder):
    """Calibrated on a dataset, the encoder has an id of its own; an empty value asks for none."""
    dataset = result("ingest", toy.draw(open_bucket(str(environment / "toy"))))["dataset"]
    plain = result("encoder", str(toy_encoder), "--int8=")["encoder_id"]
    assert result("encoder", str(toy_encoder), f"--int8={dataset}")["encoder_id"] == f"{plain}-int8"


def test_a_retraining_and_a_night(environment, result, command, toy_encoder):
    """What each command prints is what the next one takes, from captioned pictures to captions and status."""
    table = toy.draw(open_bucket(str(environment / "toy")))
    store = open_bucket(os.environ["CAPTION_STORE"])
    dataset = result("ingest", table, "--name", "toy")["dataset"]
    words = result("vocabulary", dataset, "--min-count", "8")
    assert words["words"] == 14
    assert words["vocabulary"].endswith("/vocabulary-8.json")
    encoder_id = result("encoder", str(toy_encoder))["encoder_id"]
    shards = result("plan", dataset, encoder_id, "--run", "r1")
    assert len(shards) == 2
    assert sum(result("extract", shard)["images"] for shard in shards) == 24
    assert result("plan", dataset, encoder_id) == []
    recipe = [f"--set={name}={value}" for name, value in toy.RECIPE.model_dump().items()]
    model = result("train", dataset, words["vocabulary"], encoder_id, *recipe)
    assert model["epochs"] == toy.RECIPE.epochs
    metrics = result("evaluate", model["version"], "--beam", "2")
    assert metrics["version"] == model["version"]
    assert metrics["CIDEr"] > 3
    assert Path(metrics["report"].removeprefix("file://")).is_file()
    assert not result("consider", model["version"], "--policy", "never")["promoted"]
    assert not result("consider", model["version"], "--floor", "9.9")["promoted"]
    assert result("consider", model["version"], "--run", "r1")["promoted"]
    [record] = [record for record in runs.finished(registry.KIND, store) if record["run"] == "r1"]
    assert (record["extracted"], record["scores"]["CIDEr"]) == (24, metrics["CIDEr"])

    laid = result("demo-inbox", "--count", "3")
    assert laid == {"under": "toy/", "photographs": 3, "new": 3}
    assert result("demo-inbox", "--count", "3")["new"] == 0
    night = result("night", "list", "n1")
    assert (night["listed"], night["version"]) == (3, model["version"])
    # The inbox holds pictures of the dataset, but under other keys.
    for shard in result("night", "plan-extraction", "n1"):
        assert result("extract", shard)["failed"] == 0
    for shard in result("night", "plan-captions", "n1", "--date", "2026-01-02"):
        captioned = {"shard": shard, "images": 3, "captioned": 3, "failed": 0, "summary": "3 images"}
        assert result("night", "caption", shard) == captioned
    assert result("night", "publish", "n1")["captioned"] == 3
    [shard] = store.list(f"captions/model={model['version']}/date=2026-01-02/")
    for row in tables.read(shard.key, store).to_pylist():
        assert row["image_key"].removeprefix("toy/").partition("-")[0] in row["caption"].split()
    status, line, _ = command("status", "--captions", "3")
    assert (status, line) == (0, f"report:   {metrics['report']}")


def test_a_dataset_with_marks(environment, result, toy_encoder):
    """Pictures of both places are planned, extracted and counted; the dataset's own URI keeps its name."""
    plain = result("ingest", toy.draw(open_bucket(str(environment / "toy"))), "--name", "toy")
    store = open_bucket(os.environ["CAPTION_STORE"])
    marks.mark(
        toy.picture("red", 99), caption="a ball", wrong_caption="a dog", model_version="v", marked_by="a", store=store
    )
    assert result("ingest", plain["dataset"]) == plain
    report = result("ingest", plain["dataset"], "--marks")
    assert report["dataset"] == store.url(f"datasets/toy/{report['fingerprint']}/dataset.parquet")
    assert report["sources"] == {(environment / "toy").as_uri(): 24, store.url("marks"): 1}
    encoder_id = result("encoder", str(toy_encoder))["encoder_id"]
    shards = result("plan", report["dataset"], encoder_id, "--run", "r")
    done = [result("extract", shard) for shard in shards]
    assert (sum(each["images"] for each in done), sum(each["failed"] for each in done)) == (25, 0)
    assert result("plan", report["dataset"], encoder_id) == []
    assert runs.extracted("r", store)["extracted"] == 25


def test_promotion_and_rollback(environment, result, trained):
    """Both print the champion that there is afterwards."""
    store = open_bucket(os.environ["CAPTION_STORE"])
    toy.copy(trained.store, store, "models/")
    assert result("promote", trained.model.version) == {"champion": trained.model.version}
    other = trained.model.model_copy(update={"version": "v2"})
    store.put("models/v2/metadata.json", other.model_dump_json().encode())
    assert result("promote", "v2") == {"champion": "v2"}
    assert result("rollback") == {"champion": trained.model.version}


def test_pictures_are_captioned_on_demand(environment, command, trained):
    """Captions go to standard output and errors beside them; the status says whether any picture failed."""
    store = open_bucket(os.environ["CAPTION_STORE"])
    toy.copy(trained.store, store, "models/", "encoders/")
    registry.promote(trained.model.version, store)
    for colour in ("red", "blue"):
        (environment / f"{colour}.jpg").write_bytes(toy.picture(colour))
    red, blue, missing = (str(environment / f"{name}.jpg") for name in ("red", "blue", "missing"))

    status, line, error = command("caption", red, "--beam", "2")
    assert (status, error) == (0, "")
    assert line.startswith(f"{red}: ")
    assert "red" in line.removeprefix(red).split()
    status, line, error = command("caption", missing, red, "--alternatives", "1", "--model", trained.model.version)
    assert status == 1
    assert line.startswith("    ")
    assert error == f"error: {missing}: there is no such file\n"

    done = process("caption", missing, blue, red, "--json")
    assert done.returncode == 1
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["picture"] for record in records] == [missing, blue, red]
    assert records[0]["error"] == "there is no such file"
    assert [set(toy.COLOURS) & set(record["caption"].split()) for record in records[1:]] == [{"blue"}, {"red"}]


def test_an_error_is_one_line_and_status_2(environment):
    """What a person has to mend is said without a traceback, and nothing is printed as a result."""
    done = process("night", "list", "n1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No model has been promoted in file://")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest", "nowhere"], "not in a layout that can be read"),
        (["vocabulary", "file:///nowhere/dataset.parquet"], "no object file:///nowhere/dataset.parquet"),
        (["encoder", "vgg"], "No such encoder"),
        (["extract", "0123"], "plans/0123.parquet"),
        (["evaluate", "v9"], "no model 'v9'"),
        (["consider", "v9"], "models/v9/metrics.json"),
        (["promote", "v9"], "no model 'v9'"),
        (["rollback"], "no earlier champion"),
        (["demo-inbox"], "no model"),
        (["caption", "a.jpg"], "No model has been promoted"),
        (["caption", "a.jpg", "--model", "v9"], "no model 'v9'"),
        (["caption", "a.jpg", "--beam", "3", "--alternatives", "3"], "widen the beam"),
        (["caption"], "Missing argument"),
        (["night", "publish", "n9"], "runs/n9/listing.parquet"),
        (["consider", "v9", "--policy", "perhaps"], "perhaps"),
        (["night", "plan-captions", "n9", "--date", "tomorrow"], "tomorrow"),
        (["evaluate", "v9", "--beam", "0"], "--beam"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_status_2(command, arguments, message):
    """Whatever is wrong with what was given, the status says that a retry is in vain, and the error what it was."""
    status, line, error = command(*arguments)
    assert (status, line) == (2, "")
    assert message in error


def test_an_unexpected_error_is_not_status_2(environment, monkeypatch):
    """What may pass by itself, such as a full disk, keeps its own exception, so that it is tried again."""

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(sys, "argv", ["pipeline", "demo-data", str(environment / "drawn"), "--images", "50"])
    with pytest.raises(OSError, match="No space left on device"):
        cli.main()


def test_all_that_is_wrong_with_a_recipe_is_said(command):
    """An unknown field, a wrong kind and values out of bounds are reported together, with the fields there are."""
    wrong = ["unit=64", "units=4", "dropout=much", "learning_rate=2", "seed"]
    status, line, error = command("train", "d", "v", "e", *(f"--set={assignment}" for assignment in wrong))
    assert (status, line) == (2, "")
    for part in (
        "unit: Extra inputs",
        "units: Input should be greater than or equal to 8",
        "dropout: Input should be a valid number",
        "learning_rate: Input should be less than or equal to 1",
        "seed: Input should be a valid integer",
        "The fields are embedding, embedding_size, units,",
    ):
        assert part in error


def test_all_that_is_wrong_with_the_settings_is_said(command, monkeypatch):
    """Variables of the environment that make no sense are named, with status 2."""
    monkeypatch.setenv("CAPTION_SHARD_SIZE", "many")
    monkeypatch.setenv("CAPTION_MAX_FAILED_FRACTION", "5")
    status, line, error = command("status")
    assert (status, line) == (2, "")
    assert "CAPTION_SHARD_SIZE: Input should be a valid integer" in error
    assert "CAPTION_MAX_FAILED_FRACTION: Input should be less than or equal to 1" in error


@pytest.fixture(scope="module")
def helped():
    """The help of every command, and the modules that were loaded for it."""
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        cwd=PROJECT,
        env={**os.environ, "TERMINAL_WIDTH": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_help_lists_every_argument(helped):
    """There is help for every command, and it names all that the command takes."""
    assert helped["texts"].keys() == COMMANDS.keys()
    for name, parameters in COMMANDS.items():
        text = helped["texts"][name]
        words = {word.strip("{}*[],").lower() for word in text.split()}
        assert parameters <= words, name
        options = {word for word in words if word.startswith("--")}
        assert options == {parameter for parameter in parameters if parameter.startswith("--")} | {"--help"}, name


def test_help_loads_nothing_heavy(helped):
    """Asking for help starts no Keras and loads no table library."""
    loaded = {module.partition(".")[0] for module in helped["modules"]}
    assert "typer" in loaded
    assert not loaded & {"keras", "tensorflow", "jax", "numpy", "pandas", "pyarrow", "PIL", "boto3", "airflow"}


def test_the_help_of_a_process(environment):
    """`python -m pipeline --help` lists the commands and succeeds."""
    done = process("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert name.partition(" ")[0] in done.stdout
