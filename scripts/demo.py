"""The demo: a retraining and a night in Airflow, without a server. `make demo` sets the environment."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from pipeline.settings import DATA

BIN = Path(sys.executable).parent
DRAWN = DATA / "demo"
DRAWN_TRAINING = {"batch_size": 64, "epochs": 30, "patience": 6}
"""Smaller batches and more epochs than the defaults, which are for tens of thousands of captions."""
LOG = Path(os.environ["AIRFLOW_HOME"], "demo.log")
CAPTIONS_SHOWN = 15


def main() -> None:
    """Prepare the data, run both DAGs, and show the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="photographs in the Flickr8k layout; by default, pictures are drawn")
    parser.add_argument("--encoder", default="random", help="imagenet, random, or a .keras or .h5 file")
    options = parser.parse_args()
    # The path is relative to this working directory; the tasks have another one.
    encoder = str(Path(options.encoder).resolve()) if Path(options.encoder).is_file() else options.encoder
    LOG.unlink(missing_ok=True)
    if options.data:
        data = Path(options.data).resolve()
    else:
        data = DRAWN
        pipeline("demo-data", str(data))
    training = {} if options.data else DRAWN_TRAINING
    run_dag("retrain_captioner", {"dataset": str(data), "encoder": encoder, **training})
    inbox = pipeline("demo-inbox")
    run_dag("caption_new_images", {})
    subprocess.run(
        [*pipeline_command("status"), "--captions", str(CAPTIONS_SHOWN), "--under", inbox["under"]], check=True
    )
    say("\nTo see these captions with their pictures, and to run both DAGs yourself, start Airflow:\n\n  make up")


def run_dag(dag_id: str, conf: dict[str, str | int]) -> None:
    """Run a DAG to its end in a child process, and show the progress of its tasks."""
    say(f"\n{dag_id} {json.dumps(conf) if conf else ''}")
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
            if text := progress(line):
                say(text)
    if process.returncode != 0:
        sys.exit(f"{dag_id} failed; the complete log is {LOG}")


def progress(line: str) -> str | None:
    """The readable form of a line of Airflow's log: a command, its progress, an error; None for other lines."""
    try:
        entry = json.loads(line)
        event = str(entry["event"])
    except (ValueError, TypeError, KeyError):
        return None
    if command := re.search(r"Running command: \[.*'-m', 'pipeline', (.*)\]", event):
        return f"  {' '.join(word.strip(chr(39)) for word in command[1].split(', '))[:100]}"
    if re.match(r"\d\d:\d\d:\d\d [A-Z]+ ", event):
        return f"    {event}"
    if entry.get("exception"):
        return f"    {entry['exception'][0]['exc_value']}"
    return f"    {event}" if entry.get("level") in ("error", "critical") else None


def pipeline(*arguments: str) -> dict[str, str]:
    """Run a command of the pipeline and return its result."""
    done = subprocess.run(pipeline_command(*arguments), stdout=subprocess.PIPE, encoding="utf-8", check=True)
    result: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return result


def pipeline_command(*arguments: str) -> list[str]:
    """A command of the pipeline as an argument list."""
    return [sys.executable, "-m", "pipeline", *arguments]


def say(text: str) -> None:
    """Print at once, so that the order holds when the output is a file."""
    print(text, flush=True)  # noqa: T201 - it is a program for a terminal


if __name__ == "__main__":
    main()
