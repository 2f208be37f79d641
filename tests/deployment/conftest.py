"""What the tests of the deployments share."""

import argparse

import pytest

from tests.support.compose_file import SERVICES


@pytest.fixture
def parser(monkeypatch) -> argparse.ArgumentParser:
    """Of Airflow's command line. Executors' commands are there only where the executor is configured."""
    from airflow.cli import cli_parser

    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", SERVICES["worker"]["environment"]["AIRFLOW__CORE__EXECUTOR"])
    cli_parser.get_parser.cache_clear()
    return cli_parser.get_parser()
