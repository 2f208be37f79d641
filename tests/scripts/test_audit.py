"""The audit of the locks: what is found fails, what can't be asked does not."""

import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts import audit
from tests.support.paths import PROJECT

LOCKS = sorted(PROJECT.glob("requirements*.txt"))


class Index(ThreadingHTTPServer):
    """An index of advisories: of the release that all know, and of those that are put into ``vulnerable``.

    Attributes:
        vulnerable: (name, version) to the id of an advisory.
        asked: every (name, version) so far.
        status: of its answers, for all but the known release.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        name, version = audit.VULNERABLE.split("==")
        self.vulnerable, self.asked, self.status = {(name, version): "PYSEC-0"}, [], 200
        self.known = (name, version)
        self.url = f"http://127.0.0.1:{self.server_port}/v1/query"


class Answer(BaseHTTPRequestHandler):
    """One answer, in OSV's form."""

    def do_POST(self):
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        release = (query["package"]["name"], query["version"])
        self.server.asked.append(release)
        body = {}
        if release in self.server.vulnerable:
            package = {"name": release[0], "ecosystem": "PyPI"}
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.1"}]}]
            body = {"vulns": [{"id": self.server.vulnerable[release], "summary": "s"}]}
            body["vulns"][0]["affected"] = [{"package": package, "ranges": ranges}]
        data = json.dumps(body).encode()
        self.send_response(200 if release == self.server.known else self.server.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def index():
    """A running index."""
    server = Index()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pinned(lock):
    """The (name, version) of each package in a lock that is for this machine whatever its Python is."""
    return set(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", lock.read_text(), re.MULTILINE))


def test_every_lock_is_audited(index, capfd, monkeypatch):
    """All packages of all locks are looked up in their own versions; with nothing found the exit status is 0."""
    assert len(LOCKS) == 6
    monkeypatch.chdir(PROJECT)
    assert audit.main([*(lock.name for lock in LOCKS), "--url", index.url]) == 0
    assert set().union(*map(pinned, LOCKS)) <= set(index.asked)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [f"{lock.name}: No known vulnerabilities found" for lock in LOCKS]


def test_make_lint_audits_every_lock():
    """The target names each lock."""
    [line] = [line for line in (PROJECT / "Makefile").read_text().splitlines() if "scripts/audit.py" in line]
    assert sorted(re.findall(r"\S+\.txt", line)) == [lock.name for lock in LOCKS]


@pytest.fixture
def lock(tmp_path):
    """The path of a small lock."""
    path = tmp_path / "lock.txt"
    path.write_text(f"idna==3.1 \\\n    --hash=sha256:{'0' * 64}\n")
    return str(path)


def test_a_known_vulnerability_fails(index, lock, capfd):
    """The exit status is 1, and a table says of what package it is, which advisory, and what mends it."""
    index.vulnerable["idna", "3.1"] = "PYSEC-2024-60"
    assert audit.main([lock, "--url", index.url]) == 1
    assert re.search(r"^idna +3\.1 +PYSEC-2024-60 +999\.1", capfd.readouterr().out, re.MULTILINE)


def test_an_ignored_one_does_not_fail(index, lock, monkeypatch):
    """An advisory that is listed with a reason is passed over, and no other of the same package."""
    index.vulnerable["idna", "3.1"] = "PYSEC-2024-60"
    monkeypatch.setitem(audit.IGNORED, "PYSEC-2024-60", "no host names are encoded here")
    assert audit.main([lock, "--url", index.url]) == 0
    index.vulnerable["idna", "3.1"] = "PYSEC-2024-61"
    assert audit.main([lock, "--url", index.url]) == 1


def test_each_ignored_one_has_its_reason():
    """None is ignored without a word."""
    assert all(audit.IGNORED.values())


@pytest.mark.parametrize("kind", ["closed", "silent", "ignorant", "failing"])
def test_an_index_that_cannot_be_asked_is_one_line(kind, index, lock, capfd, monkeypatch):
    """Where nobody listens, or answers, or knows of any advisory, one line says so, and that is no failure."""
    monkeypatch.setattr(audit, "TIMEOUT", 3 if kind == "silent" else 60)
    index.known, index.vulnerable = None, {}
    index.status = 500 if kind == "failing" else 200
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if kind == "silent":
            other.listen()
        url = index.url if kind in ("ignorant", "failing") else f"http://127.0.0.1:{other.getsockname()[1]}/v1/query"
        assert audit.main([lock, "--url", url]) == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"audit: no package was checked for known vulnerabilities: {url} is unreachable\n")


def test_an_audit_that_breaks_off_fails(index, lock):
    """An index that can be asked and then fails leaves packages unlooked at: that is no success."""
    index.status = 500
    assert audit.main([lock, "--url", index.url]) != 0


def test_a_lock_without_hashes_fails(index, tmp_path):
    """What is no lock is not passed over."""
    (tmp_path / "lock.txt").write_text("idna==3.1\n")
    assert audit.main([str(tmp_path / "lock.txt"), "--url", index.url]) != 0
