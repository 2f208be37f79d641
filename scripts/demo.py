"""The demo: a retraining and a night in Airflow, without a server. `make demo` sets the environment."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioning.settings import read_settings
from pipeline.config import ENGLISH
from pipeline.errors import exit_on_error
from pipeline.settings import DATA

BIN = Path(sys.executable).parent
DRAWN = DATA / "demo"
DRAWN_TRAINING = {"batch_size": 64, "epochs": 30, "patience": 6}
"""Smaller batches and more epochs than the defaults, which are for tens of thousands of captions."""
LOG = Path(os.environ["AIRFLOW_HOME"], "demo.log")
CAPTIONS_SHOWN = 15
LINES_SHOWN = 10
"""Lines of the log that are shown where no task has failed."""


def main() -> None:
    """Prepare the data, run both DAGs, and show the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", default="", help="captioned photographs, as for `ingest`; by default, pictures are drawn"
    )
    parser.add_argument("--language", default="", help="language of the captions, such as de; by default en")
    parser.add_argument("--encoder", default="random", help="an encoder of docs/encoders.md, such as resnet50")
    options = parser.parse_args()
    with exit_on_error():
        settings = read_settings()
    # The path is relative to this working directory; the tasks have another one.
    encoder = str(Path(options.encoder).resolve()) if Path(options.encoder).is_file() else options.encoder
    LOG.unlink(missing_ok=True)
    if options.data:
        data = options.data if "://" in options.data else str(Path(options.data).expanduser().resolve())
    else:
        data = str(DRAWN)
        pipeline("demo-data", data, f"--language={options.language or ENGLISH}")
    training = {} if options.data else DRAWN_TRAINING
    run_dag(settings.retraining_dag, {"dataset": data, "language": options.language, "encoder": encoder, **training})
    inbox = pipeline("demo-inbox")
    run_dag(settings.night_dag, {})
    show_captions(str(inbox["under"]))
    if inbox["test"]:
        say(
            f"\nOf the {inbox['photographs']} photographs in the inbox, {inbox['test']} are of the test split, because "
            f"{data} holds too few without captions.\n"
            "Readers see a correction of these, but no training learns from it."
        )
    say("\nTo see these captions with their pictures, and to run both DAGs yourself, start Airflow:\n\n  make up")


def run_dag(dag_id: str, conf: dict[str, str | int]) -> None:
    """Run a DAG to its end in a child process, and show the progress of its tasks."""
    say(f"\n{dag_id} {json.dumps(conf) if conf else ''}")
    task, errors, last_lines = "", dict[str, str](), deque[str](maxlen=LINES_SHOWN)
    command = [str(BIN / "airflow"), "dags", "test", dag_id, "--conf", json.dumps(conf)]
    environment = {**os.environ, "AIRFLOW__LOGGING__JSON_LOGS": "True"}
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        ) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - for type checkers
        for line in process.stdout:
            log.write(line)
            entry = parse(line)
            if text := progress(entry):
                say(text)
            last_lines.append(entry.get("event", line.rstrip()))
            if started := re.match(r"\[DAG TEST\] starting task_id=(\S+) map_index=(-?\d+)", last_lines[-1]):
                task = started[1] + ("" if started[2] == "-1" else f"[{started[2]}]")
                errors.pop(task, None)  # of the try before
            elif entry.get("exception"):
                errors[task] = entry["exception"][0]["exc_value"]
    if process.returncode != 0:
        shown = [f"the task {task} failed: {error}" for task, error in errors.items()] or last_lines
        sys.exit("\n".join(["", *shown, f"{dag_id} failed; the complete log is {LOG}"]))


def show_captions(under: str) -> None:
    """Print the captions of the images whose keys begin with ``under``."""
    check(subprocess.run(pipeline_command("status", "--captions", str(CAPTIONS_SHOWN), "--under", under), check=False))


def check(command: "subprocess.CompletedProcess[Any]") -> None:
    """End the demo if a command has failed, which has printed why."""
    if command.returncode:
        sys.exit(f"the demo ends here: `{shlex.join(command.args)}` failed with exit status {command.returncode}")


def parse(line: str) -> dict[str, Any]:
    """An entry of Airflow's log; empty for another line."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) and isinstance(entry.get("event"), str) else {}


def progress(entry: Mapping[str, Any]) -> str | None:
    """The readable form of an entry of Airflow's log: a command, its progress, an error; None for others."""
    event = entry.get("event", "")
    if command := re.search(r"Running command: \[.*'-m', 'pipeline', (.*)\]", event):
        return f"  {' '.join(word.strip(chr(39)) for word in command[1].split(', '))}"
    if re.match(r"\d\d:\d\d:\d\d [A-Z]+ ", event):
        return f"    {event}"
    if entry.get("exception"):
        return f"    {entry['exception'][0]['exc_value']}"
    return f"    {event}" if entry.get("level") in ("error", "critical") else None


def pipeline(*arguments: str) -> dict[str, str | int]:
    """Run a command of the pipeline and return its result."""
    done = subprocess.run(pipeline_command(*arguments), stdout=subprocess.PIPE, encoding="utf-8", check=False)
    check(done)
    result: dict[str, str | int] = json.loads(done.stdout.splitlines()[-1])
    return result


def pipeline_command(*arguments: str) -> list[str]:
    """A command of the pipeline as an argument list."""
    return [sys.executable, "-m", "pipeline", *arguments]


def say(text: str) -> None:
    """Print at once, so that the order holds when the output is a file."""
    print(text, flush=True)  # noqa: T201 - it is a program for a terminal


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
