"""Git repositories of this project, which Airflow reads as bundles."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.paths import PROJECT

BRANCH = "production"

WHO = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]


class Repository:
    """A repository whose first commit has the files of this checkout, with changes.

    Args:
        folder: where it is made; it must not exist.
        changes: those of the first commit, as for ``commit``.

    Attributes:
        first: the first commit.
        clones: the folder in which Airflow keeps what it has cloned.
    """

    def __init__(self, folder: Path, changes: Mapping[str, str]) -> None:
        self.folder, self.clones = folder, folder.with_name("clones")
        listed = _git(PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in filter(None, listed.split("\0")):
            if (PROJECT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, folder / name)
        _git(folder, "init", "--quiet", f"--initial-branch={BRANCH}")
        self.first = self.commit(changes)

    def commit(self, changes: Mapping[str, str]) -> str:
        """Write files, given by their path and content, and commit all; returns the commit."""
        for name, content in changes.items():
            (self.folder / name).write_text(content)
        _git(self.folder, "add", "--all")
        _git(self.folder, *WHO, "commit", "--quiet", "--message", "some changes")
        return _git(self.folder, "rev-parse", "HEAD").strip()

    def bundles(self, **subdirs: str | None) -> dict[str, str]:
        """The variables that give Airflow bundles of it: by name, of all the repository or of a folder."""
        listed = [
            {
                "name": name,
                "classpath": "airflow.providers.git.bundles.git.GitDagBundle",
                "kwargs": {
                    "repo_url": self.folder.as_uri(),
                    "tracking_ref": BRANCH,
                    "subdir": subdir,
                    "refresh_interval": 1,
                },
            }
            for name, subdir in subdirs.items()
        ]
        return {
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(listed),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(self.clones),
        }


def _git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", folder, *arguments], env=environment, check=True, capture_output=True, text=True
    ).stdout
