"""The demo: retrain and caption through Airflow, with no server. `make demo` sets the environment."""

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
# Of few captions: smaller steps, and more passes over them, than the defaults for tens of thousands.
DRAWN_RECIPE = {"batch_size": 64, "epochs": 30, "patience": 6}
LOG = Path(os.environ["AIRFLOW_HOME"], "demo.log")
CAPTIONS_SHOWN = 15


def main() -> None:
    """Prepare the data, run both DAGs, and show what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="photographs in the Flickr8k layout; by default some are drawn")
    parser.add_argument("--encoder", default="random", help="imagenet, random, or a .keras or .h5 file")
    options = parser.parse_args()
    # A file is found from where one typed its name; the tasks run elsewhere.
    encoder = str(Path(options.encoder).resolve()) if Path(options.encoder).is_file() else options.encoder
    LOG.unlink(missing_ok=True)
    if options.data:
        data = Path(options.data).resolve()
    else:
        data = DRAWN
        pipeline("demo-data", str(data))
    recipe = {} if options.data else DRAWN_RECIPE
    run_dag("retrain_captioner", {"dataset": str(data), "encoder": encoder, **recipe})
    inbox = pipeline("demo-inbox")
    run_dag("caption_new_images", {})
    subprocess.run(
        [*pipeline_command("status"), "--captions", str(CAPTIONS_SHOWN), "--under", inbox["under"]], check=True
    )


def run_dag(dag_id: str, conf: dict[str, str | int]) -> None:
    """Run a DAG in this process's place, as a scheduler would, and show what its tasks say of their progress."""
    say(f"\n{dag_id} {json.dumps(conf) if conf else ''}")
    command = [str(BIN / "airflow"), "dags", "test", dag_id, "--conf", json.dumps(conf)]
    environment = {**os.environ, "AIRFLOW__LOGGING__JSON_LOGS": "True"}
    with LOG.open("a") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
        )
        assert process.stdout is not None  # noqa: S101 - for type checkers
        for line in process.stdout:
            log.write(line)
            if text := progress(line):
                say(text)
        if process.wait() != 0:
            sys.exit(f"{dag_id} failed; its whole log is {LOG}")


def progress(line: str) -> str | None:
    """What a line of Airflow's log tells a person: a command that starts, its progress, its result, an error."""
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
    """The command line of a command of the pipeline."""
    return [sys.executable, "-m", "pipeline", *arguments]


def say(text: str) -> None:
    """Print at once, so that the order holds when the output is a file."""
    print(text, flush=True)  # noqa: T201 - it is a program for a terminal


if __name__ == "__main__":
    main()
