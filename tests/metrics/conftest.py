"""What the tests of the metrics share: Java, where it is installed."""

from collections.abc import Callable

import pytest

from pipeline.metrics import java


@pytest.fixture(autouse=True)
def _with_java(real_java: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "available", real_java)
