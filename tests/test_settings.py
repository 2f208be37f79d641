"""Settings in the environment: misspelled names are errors, and those of other programs are not."""

import pytest

from captioning.settings import AirflowSettings
from pipeline.errors import PipelineError
from pipeline.settings import DATA, DATA_SETTINGS, Settings, load_settings
from tests.support.variables import DEFAULTS


@pytest.mark.parametrize(
    ("kind", "variable", "meant"),
    [
        (Settings, "CAPTION_ENCODR", "CAPTION_ENCODER"),
        (Settings, "caption_inbx", "CAPTION_INBOX"),
        (Settings, "CAPTION_NIGHTLIMIT", "CAPTION_NIGHT_LIMIT"),
        (AirflowSettings, "CAPTION_NOTIFY_MAIL", "CAPTION_NOTIFY_EMAIL"),
    ],
)
def test_a_misspelled_setting_is_an_error(monkeypatch, kind, variable, meant):
    """It would be ignored, and its default used instead; the error names both variables."""
    monkeypatch.setenv(variable, "x")
    with pytest.raises(PipelineError, match=rf"{variable}: there is no such setting \(did you mean {meant}\?\)"):
        load_settings(kind)


@pytest.mark.parametrize("kind", [Settings, AirflowSettings])
def test_all_variables_may_be_set_together(monkeypatch, kind):
    """No setting is taken for a misspelling of another, and neither are the variables of the tests."""
    for name, value in DEFAULTS.items():
        monkeypatch.setenv(name, value)
    for name in ("TESTS", "PICTURES", "TEST_CHART", "TEST_ENCODER", "TEST_FLICKR8K"):
        monkeypatch.setenv(f"CAPTION_{name}", "x")
    load_settings(kind)


@pytest.mark.parametrize(
    ("value", "words"), [("", ()), ("fat", ("fat",)), (" ugly, fat,,hot dog,fat ", ("fat", "hot dog", "ugly"))]
)
def test_forbidden_words_are_separated_by_commas(value, words):
    """Their order and number do not matter, so that the same words are the same decoding."""
    assert Settings(forbidden_words=value).decoding.forbidden_words == words


def test_the_settings_of_data_are_known():
    """Those that are below the folder of all data by default are passed to a child whose code is elsewhere."""
    below = {name for name, field in Settings.model_fields.items() if str(DATA) in str(field.default)}
    assert below == set(DATA_SETTINGS)
