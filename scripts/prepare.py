"""What has to be there before the parts of Airflow start: tables, the pool, the login and the buckets.

    python scripts/prepare.py

docker-compose.yaml runs it at each start. What is there already stays as it is; only the password is set anew.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline.s3_bucket import S3Bucket
from pipeline.settings import Settings, read_settings

PROFILES = {"cpu", "gpu"}
"""Of each a worker serves the queue gpu."""


def main() -> None:
    """Prepare all of it, by what the environment says."""
    if len(PROFILES.intersection(os.environ["COMPOSE_PROFILES"].split(","))) != 1:
        sys.exit(
            "COMPOSE_PROFILES must hold one of cpu and gpu, or no worker or a wrong one serves the queue gpu. "
            f"Received: {os.environ['COMPOSE_PROFILES']!r}. Correct it in .env."
        )
    airflow = Path(sys.executable).with_name("airflow")
    for arguments in (
        ["db", "migrate"],
        ["pools", "set", "gpu", "1", "the accelerator, or all cores where there is none"],
    ):
        subprocess.run([airflow, *arguments], check=True)
    write_login(
        Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]), os.environ["AIRFLOW_ADMIN_PASSWORD"]
    )
    make_buckets(read_settings())


def write_login(file: Path, password: str) -> None:
    """Let the user admin log in with the password; the file is its owner's alone."""
    temporary = file.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump({"admin": password}, stream)
    temporary.replace(file)


def make_buckets(settings: Settings) -> None:
    """Make the buckets that the settings name and that are not there."""
    for uri in (settings.store, settings.inbox, settings.dataset):
        if uri.startswith("s3://"):
            bucket = S3Bucket(uri)
            if bucket.name not in {owned["Name"] for owned in bucket.client.list_buckets()["Buckets"]}:
                bucket.client.create_bucket(Bucket=bucket.name)


if __name__ == "__main__":
    main()
