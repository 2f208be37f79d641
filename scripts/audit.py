"""Look locked packages up among known vulnerabilities, by pip-audit: `make lint` does, for all locks.

    python scripts/audit.py requirements.txt …

The advisories are those of https://osv.dev. Where it can't be asked this says so and is no failure.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

OSV = "https://api.osv.dev/v1/query"

KNOWN = "jinja2==2.4.1"
"""A release with advisories: what doesn't know them, such as a proxy that answers everything, is no index of them."""

PATIENCE = 10
"""Seconds in which the index has to know these."""

IGNORED: dict[str, str] = {}
"""Advisories that don't concern us, or that nothing can be done about yet: each by its id, with the reason."""


def main(arguments: list[str] | None = None) -> int:
    """Print what is known of the packages in the locks; the exit status is 1 where that is a vulnerability."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locks", nargs="+", help="requirements files with hashes")
    parser.add_argument("--url", default=OSV, help="another address that speaks OSV's protocol")
    options = parser.parse_args(arguments)
    if not is_index(options.url):
        sys.stderr.write(f"audit: {options.url} can't be asked, no package was looked up for known vulnerabilities\n")
        return 0
    ignored = [word for advisory in IGNORED for word in ("--ignore-vuln", advisory)]
    failed = False
    for lock in options.locks:  # one by one: two may hold different versions of a package
        sys.stderr.write(f"{lock}: ")
        sys.stderr.flush()
        failed |= subprocess.run(pip_audit(options.url, *ignored, "--requirement", lock), check=False).returncode != 0
    return int(failed)


def is_index(url: str) -> bool:
    """Whether the advisories of a release that has some are found there."""
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder, "known.txt")
        known.write_text(KNOWN)
        command = pip_audit(url, "--no-deps", "--format", "json", "--requirement", str(known))
        try:
            answer = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
            return bool(json.loads(answer.stdout)["dependencies"][0]["vulns"])
        except (subprocess.TimeoutExpired, ValueError):
            return False


def pip_audit(url: str, *options: str) -> list[str]:
    """A command that looks packages up as they are pinned, without asking a package index what they need."""
    service = ("--vulnerability-service", "osv", "--osv-url", url)
    return [sys.executable, "-m", "pip_audit", *service, "--disable-pip", "--progress-spinner", "off", *options]


if __name__ == "__main__":
    sys.exit(main())
