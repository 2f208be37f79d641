"""Credentials that tests hand to the pipeline, and a search for them in all that it leaves."""

import base64
import io
import json
import os
import sqlite3
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.faults import Answer, Pass, Proxy, Request

KEY, TOKEN, PASSWORD = "kWq7secretKeyZ4tD", "Vn3sessionTokenX8pL", "Rb5trackingPasswordJ2m"

TRACKING = f"http://tracker:{PASSWORD}@127.0.0.1:1/"
"""An MLflow server at which nobody listens."""

SECRETS = [
    secret.encode() for secret in (KEY, TOKEN, PASSWORD, base64.b64encode(f"tracker:{PASSWORD}".encode()).decode())
]

REFUSAL = (
    f"<Error><Code>SignatureDoesNotMatch</Code><Message>It does not match.</Message><Token-0>{TOKEN}</Token-0>"
    f"<StringToSign>{KEY}</StringToSign></Error>"
).encode()
"""The body of an S3 server's response that refuses credentials and repeats what it was sent, as some do."""


def refuse_credentials(server: Proxy) -> None:
    """Have an S3 server refuse all requests, and repeat in its responses what it was sent."""

    def refused(request: Request, _: Pass) -> Answer:
        return Answer(403, [("Content-Type", "application/xml")], b"" if request.method == "HEAD" else REFUSAL)

    for method in ("GET", "HEAD", "PUT"):
        for listings in (False, True):
            server.plan(refused, method, listings=listings)


def without_credentials() -> dict[str, str]:
    """This process's environment without AWS's variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def by_connection(endpoint: str) -> dict[str, str]:
    """The environment of a deployment whose credentials are in the connection aws_default."""
    connection = {
        "conn_type": "aws",
        "login": "an-access-key-id",
        "password": KEY,
        "extra": {"endpoint_url": endpoint, "region_name": "us-east-1", "aws_session_token": TOKEN},
    }
    return {"AIRFLOW_CONN_AWS_DEFAULT": json.dumps(connection)}


def by_environment(endpoint: str) -> dict[str, str]:
    """The environment of a deployment whose credentials are in the variables that boto3 reads."""
    return {
        "AWS_ACCESS_KEY_ID": "an-access-key-id",
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _unpacked(data: bytes) -> Iterator[bytes]:
    """All that some bytes hold: themselves, and what is packed in them."""
    yield data
    if data[:4] == b"PAR1":
        yield str(pq.read_table(io.BytesIO(data)).to_pydict()).encode()
        yield str(pq.read_schema(io.BytesIO(data)).metadata).encode()
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from map(archive.read, archive.namelist())
    if data[:1] == b"\x78":
        try:
            yield zlib.decompress(data)
        except zlib.error:
            return


def cells(file: Path) -> Iterator[bytes]:
    """Every value of every table of an SQLite file, as bytes."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        database.text_factory = bytes
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in database.execute(f'SELECT * FROM "{table.decode()}"'):  # noqa: S608 - of SQLite's own list
                yield from (value if isinstance(value, bytes) else str(value).encode() for value in row)


def files(folder: Path) -> list[bytes]:
    """The bytes of every file below a folder."""
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]


def search(values: Iterable[bytes], known: str, secrets: Iterable[bytes] = SECRETS) -> None:
    """Fail if one of the values contains a secret, or if none contains the known text."""
    everything = [part for value in values for part in _unpacked(value)]
    assert any(known.encode() in part for part in everything)
    for secret in secrets:
        found = [part for part in everything if secret in part]
        assert not found, found[0][:2000]
