"""docker-compose.yaml and the Dockerfile as they are, read for the tests of the deployments."""

import re
import shlex

import yaml

from tests.support.paths import PROJECT

TEXT = (PROJECT / "docker-compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
DOCKERFILE = (PROJECT / "Dockerfile").read_text().replace("\\\n", " ")
IMAGE_ENV = dict(
    word.split("=", 1) for line in re.findall(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE) for word in shlex.split(line)
)

SECRET = re.compile(r"PASSWORD|SECRET|KEY")
"""In the names of the variables that hold secrets."""


def known_options() -> set[tuple[str, str]]:
    """Section and name of each option of Airflow and its providers."""
    from airflow.configuration import conf
    from airflow.providers_manager import ProvidersManager

    return {
        (section, name)
        for descriptions in (conf.configuration_description, *dict(ProvidersManager().provider_configs).values())
        for section, description in descriptions.items()
        for name in description["options"]
    }
