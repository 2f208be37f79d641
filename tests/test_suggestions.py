"""The datasets that the form of a retraining suggests: found in the store, or left out without harm."""

import json
import logging
import os
import socket
from pathlib import Path

import pytest
import toy

from pipeline import dataset
from pipeline.storage import open_bucket

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def suggestions(airflow_home):
    """The module, as the DAG imports it."""
    from dags import suggestions

    return suggestions


def ingested(store, folder):
    """The URIs of two datasets put in a store, the older first."""
    sources = [toy.draw(open_bucket(str(folder / f"source-{seed}")), seed=seed) for seed in (0, 100)]
    return [dataset.ingest(source, store, name=name).dataset for source, name in zip(sources, "ba", strict=True)]


def test_the_newest_come_first(tmp_path):
    """Datasets are listed by when they were written, the newest first, and no more of them than asked for."""
    store = open_bucket(str(tmp_path / "store"))
    assert dataset.newest(store, limit=20) == []
    older, newer = ingested(store, tmp_path)
    for age, uri in ((200, newer), (100, older)):
        os.utime(Path(uri.removeprefix("file://")), (age, age))
    assert dataset.newest(store, limit=20) == [newer, older]
    assert dataset.newest(store, limit=1) == [newer]
    assert all(dataset.load(uri).name in "ab" for uri in dataset.newest(store, limit=20))


@pytest.mark.parametrize("fail", [False, True])
def test_the_form_suggests_them(suggestions, tmp_path, monkeypatch, fail):
    """The field takes any text and suggests the deployment's default first, then the datasets of the store, if any."""
    from airflow.dag_processing.dagbag import DagBag

    store = open_bucket(str(tmp_path / "store"))
    found = [] if fail else sorted(ingested(store, tmp_path))
    monkeypatch.setenv("CAPTION_STORE", "gopher://store" if fail else store.uri)
    monkeypatch.setenv("CAPTION_DATASET", "file:///photographs")
    bag = DagBag(str(PROJECT / "dags" / "retrain_captioner.py"))
    assert not bag.import_errors
    param = bag.dags["retrain_captioner"].params.get_param("dataset")
    first, *others = param.schema["examples"]
    assert (first, sorted(others)) == ("file:///photographs", found)
    assert param.resolve("anything else") == "anything else"


def test_s3_is_listed_as_the_connection_says(suggestions, s3_server, s3_bucket_name, monkeypatch, tmp_path):
    """With the store on S3, reached by the connection aws_default alone, its datasets are suggested."""
    store = open_bucket(f"s3://{s3_bucket_name}/{tmp_path.name}")
    found = ingested(store, tmp_path)
    connection = {
        "conn_type": "aws",
        "login": os.environ["AWS_ACCESS_KEY_ID"],
        "password": os.environ["AWS_SECRET_ACCESS_KEY"],
        "extra": {"endpoint_url": s3_server, "region_name": os.environ["AWS_DEFAULT_REGION"]},
    }
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("CAPTION_STORE", store.uri)
    monkeypatch.setattr(suggestions, "PATIENCE", 60)
    assert sorted(suggestions.datasets()) == sorted(found)


def test_a_silent_store_is_given_up(suggestions, monkeypatch, caplog):
    """Of a store that does not answer nothing is suggested, and a warning says so."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("CAPTION_STORE", "s3://silent/store")
        monkeypatch.setattr(suggestions, "PATIENCE", 3)
        with caplog.at_level(logging.WARNING):
            assert suggestions.datasets() == []
    assert "suggests no datasets" in caplog.text
    assert "3 seconds" in caplog.text


@pytest.mark.parametrize("store", ["gopher://store", "s3://"])
def test_a_wrong_store_is_left_to_the_tasks(suggestions, monkeypatch, caplog, store):
    """Of a store that is none nothing is suggested; the warning says what is wrong with it."""
    monkeypatch.setenv("CAPTION_STORE", store)
    with caplog.at_level(logging.WARNING):
        assert suggestions.datasets() == []
    assert f"Received: '{store}'" in caplog.text


def test_nothing_is_listed_for_a_task(suggestions, monkeypatch, tmp_path):
    """Where the DAG is read to run one of its tasks, the store is not asked."""
    store = open_bucket(str(tmp_path / "store"))
    ingested(store, tmp_path)
    monkeypatch.setenv("CAPTION_STORE", store.uri)
    assert len(suggestions.datasets()) == 2
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "retrain_captioner")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", "train")
    assert suggestions.datasets() == []
