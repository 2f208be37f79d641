"""What the tests of the deployments share."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.compose_file import SERVICES
from tests.support.paths import PROJECT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that the build leaves nothing in the checkout."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pipeline", "plugins", "dags"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *build], check=True, capture_output=True)
    [wheel] = folder.iterdir()
    return wheel


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel alone is installed."""
    folder = tmp_path_factory.mktemp("site-packages")
    command = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", folder, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def parser(monkeypatch) -> argparse.ArgumentParser:
    """Of Airflow's command line. Executors' commands are there only where the executor is configured."""
    from airflow.cli import cli_parser

    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", SERVICES["worker"]["environment"]["AIRFLOW__CORE__EXECUTOR"])
    cli_parser.get_parser.cache_clear()
    return cli_parser.get_parser()
