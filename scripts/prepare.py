"""Create what Airflow needs before it starts: its tables, the pool, the login and the buckets.

    python scripts/prepare.py

docker-compose.yaml runs it at each start. It keeps what exists already, and only sets the password again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline.settings import Settings, read_settings
from pipeline.storage.s3 import S3Bucket

PROFILES = {"cpu", "gpu"}
"""Profiles with a worker that serves the queue gpu."""


def main() -> None:
    """Prepare all of it, as the environment configures it."""
    if len(PROFILES.intersection(os.environ["COMPOSE_PROFILES"].split(","))) != 1:
        sys.exit(
            "COMPOSE_PROFILES must contain either cpu or gpu, so that one kind of worker serves the queue gpu. "
            f"Received: {os.environ['COMPOSE_PROFILES']!r}. Correct it in .env."
        )
    airflow = Path(sys.executable).with_name("airflow")
    pool = os.environ.get("CAPTION_POOL", "gpu")
    for arguments in (
        ["db", "migrate"],
        ["pools", "set", pool, "1", "the accelerator, or all CPU cores where there is none"],
    ):
        subprocess.run([airflow, *arguments], check=True)
    write_login(
        Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]), os.environ["AIRFLOW_ADMIN_PASSWORD"]
    )
    make_buckets(read_settings())


def write_login(file: Path, password: str) -> None:
    """Set the password of the user admin; only the owner can read the file."""
    temporary = file.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump({"admin": password}, stream)
    temporary.replace(file)


def make_buckets(settings: Settings) -> None:
    """Create the S3 buckets in the settings that do not exist yet."""
    for uri in (settings.store, settings.inbox, settings.dataset):
        if uri.startswith("s3://"):
            bucket = S3Bucket(uri)
            if bucket.name not in {owned["Name"] for owned in bucket.client.list_buckets()["Buckets"]}:
                bucket.client.create_bucket(Bucket=bucket.name)


if __name__ == "__main__":
    main()
