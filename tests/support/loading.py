"""Loading captioners and encoders, which takes most of the time of a small test, once in a process."""

from typing import Any

import pytest

from pipeline.captioner import bundle
from pipeline.captioner.metadata import load_metadata
from pipeline.features import encoder
from pipeline.storage import Bucket

_captioners: dict[Any, Any] = {}
_encoders: dict[str, Any] = {}


def load_once(patch: pytest.MonkeyPatch) -> None:
    """Have models of the same files share a captioner, which is compiled once, and use each encoder again.

    The metadata are read each time. The tests of the command line load everything as it is.
    """
    load, load_encoder = bundle.load, encoder.load

    def load_captioner(version: str, store: Bucket) -> Any:
        metadata = load_metadata(version, store)
        key = (tuple(metadata.files.values()), metadata.max_length)
        if key not in _captioners:
            _captioners[key] = load(version, store)[0]
        return _captioners[key], metadata

    def load_encoder_once(encoder_id: str, store: Bucket) -> Any:
        if encoder_id not in _encoders:
            _encoders[encoder_id] = load_encoder(encoder_id, store)
        return _encoders[encoder_id]

    patch.setattr(bundle, "load", load_captioner)
    patch.setattr(encoder, "load", load_encoder_once)
