"""Check the packages in lock files for known vulnerabilities with pip-audit; `make lint` does so for all locks.

    python scripts/audit.py requirements.txt …

The advisories come from https://osv.dev. If it is unreachable, a message says so, and the exit status is 0.

It looks up the name and the version of each Python package in the locks, those for other platforms among them, and sees
nothing else:

* neither the base image, with Python itself and the packages of Debian, nor the images of other servers in
  docker-compose.yaml, nor Airflow's Helm chart;
* no libraries that a wheel brings along, such as those of JPEG, OpenSSL or CUDA, unless their wheel has an advisory;
* neither JavaScript, in the pages of Airflow, MLflow and the gallery, nor the Java programs of the COCO metrics;
* neither the weights of networks, nor data, nor the code of this project and its settings;
* no vulnerability that has no advisory there yet, and none that ``IGNORED`` names.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

OSV = "https://api.osv.dev/v1/query"

VULNERABLE = "jinja2==2.4.1"
"""A release with advisories. A server without these, such as a proxy that answers everything, has no advisories."""

TIMEOUT = 10
"""Seconds in which the server has to return these advisories."""

IGNORED: dict[str, str] = {}
"""Advisories that do not affect this project, or have no fix yet, by id, each with the reason."""


def main(arguments: list[str] | None = None) -> int:
    """Print the known vulnerabilities of the packages in the locks; the exit status is 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locks", nargs="+", help="requirements files with hashes")
    parser.add_argument("--url", default=OSV, help="address of a server with the OSV API")
    options = parser.parse_args(arguments)
    if not has_advisories(options.url):
        sys.stderr.write(f"audit: no package was checked for known vulnerabilities: {options.url} is unreachable\n")
        return 0
    ignored = [word for advisory in IGNORED for word in ("--ignore-vuln", advisory)]
    failed = False
    for lock in options.locks:  # one by one, because locks may hold different versions of a package
        sys.stderr.write(f"{lock}: ")
        sys.stderr.flush()
        failed |= subprocess.run(pip_audit(options.url, *ignored, "--requirement", lock), check=False).returncode != 0
    return int(failed)


def has_advisories(url: str) -> bool:
    """Whether the server returns the advisories of a release that has some."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder, "lock.txt")
        lock.write_text(VULNERABLE)
        command = pip_audit(url, "--no-deps", "--format", "json", "--requirement", str(lock))
        try:
            answer = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
            return bool(json.loads(answer.stdout)["dependencies"][0]["vulns"])
        except (subprocess.TimeoutExpired, ValueError):
            return False


def pip_audit(url: str, *options: str) -> list[str]:
    """The command that checks pinned packages, without resolving dependencies through a package index."""
    service = ("--vulnerability-service", "osv", "--osv-url", url)
    return [sys.executable, "-m", "pip_audit", *service, "--disable-pip", "--progress-spinner", "off", *options]


if __name__ == "__main__":
    sys.exit(main())
