"""The environment variables of all settings, those of the pipeline and those that only Airflow uses."""

from captioning.settings import AirflowSettings
from pipeline.settings import Settings


def _text(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


DEFAULTS = {
    f"CAPTION_{name.upper()}": _text(field.default)
    for settings in (Settings, AirflowSettings)
    for name, field in settings.model_fields.items()
}
"""The default of each variable, as one would write it."""
