"""The Airflow connections of the buckets, and of the inbox's queue, as AWS profiles.

With a profile, store and inbox can have credentials of their own, and boto3 itself assumes the role of a connection and
renews its keys, however long a command takes. A profile takes from the environment what its connection leaves open, so
boto3 finds an instance's role, a web identity or variables as it does without a connection.
"""

import configparser
import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioning.settings import read_settings
from pipeline.errors import PipelineError
from pipeline.settings import read_settings as pipeline_settings
from pipeline.storage.s3_errors import ORIGIN

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

DEFAULT_CONNECTION = "aws_default"
"""The only connection that need not exist."""

STORE, INBOX = "captioning-store", "captioning-inbox"
"""The names of the profiles."""

_KEYS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}
_WEB_IDENTITY = {
    "AWS_WEB_IDENTITY_TOKEN_FILE": "web_identity_token_file",
    "AWS_ROLE_ARN": "role_arn",
    "AWS_ROLE_SESSION_NAME": "role_session_name",
}
_PLACE = {"AWS_DEFAULT_REGION": "region", "AWS_CA_BUNDLE": "ca_bundle", "AWS_ENDPOINT_URL": "endpoint_url"}
"""Variables of the environment, and the options of a profile that say the same. boto3 prefers the variables."""

_PROFILE_CREDENTIALS = ("aws_access_key_id", "role_arn", "credential_process", "sso_account_id", "login_session")
"""Options of which a profile with credentials has at least one."""

_ROLE_OPTIONS = {
    "ExternalId": "external_id",
    "DurationSeconds": "duration_seconds",
    "RoleSessionName": "role_session_name",
}
"""The arguments of AssumeRole that a profile can hold."""

_CONFIG_OPTIONS = ("s3", "signature_version", "use_dualstack_endpoint", "use_fips_endpoint")
"""The options of a connection's ``config_kwargs`` that a profile can hold."""

Sections = dict[str, dict[str, Any]]
"""Sections of an AWS config file; the values of an option are text, or options in turn."""


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only its owner can read, removed at the end of the context, and also if this process is killed."""
    folder = tempfile.mkdtemp(prefix="captioning-")
    # The standard input of this shell ends with this process, however it ends.
    remover = subprocess.Popen(
        ["/bin/sh", "-c", 'read -r end; rm -rf "$0"', folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield Path(folder)
    finally:
        remover.communicate()


def child_environment(folder: Path) -> dict[str, str]:
    """The environment of a child process that opens the buckets.

    Without a connection it is that of this process; with one, boto3 finds the profiles in a config file in the folder.

    Raises:
        PipelineError: a connection is missing, or has a field that a profile can't hold.
    """
    if not (profiles := _write_profiles(folder)):
        return dict(os.environ)
    # They would take precedence over the profiles, which hold them where the connections have nothing else.
    replaced = {
        "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS",
        *_KEYS, *_WEB_IDENTITY, *_PLACE,
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in replaced}
    environment |= {"AWS_CONFIG_FILE": profiles[STORE]["AWS_CONFIG_FILE"], "AWS_PROFILE": STORE}
    if INBOX in profiles:
        environment["CAPTION_INBOX_PROFILE"] = INBOX
    return environment


def bucket_environment(folder: Path, profile: str) -> Mapping[str, str] | None:
    """What ``open_bucket`` needs to open the store or the inbox in this process; ``None`` without a connection.

    Raises:
        PipelineError: a connection is missing, or has a field that a profile can't hold.
    """
    profiles = _write_profiles(folder)
    return profiles.get(profile, profiles.get(STORE))


def connection_environment(folder: Path, connection_id: str, profile: str) -> Mapping[str, str]:
    """The environment for a client of AWS that uses this connection, whichever connections the settings name.

    Args:
        folder: where the profile of the connection is written.
        connection_id: the connection.
        profile: the AWS profile if the connection names none; may be empty.

    Raises:
        PipelineError: the connection is missing, or has a field that a profile can't hold.
    """
    connection = _find_connection(connection_id)
    if not connection:
        return {"AWS_PROFILE": profile} if profile else {}
    return _write({INBOX: connection}, profile, folder)[INBOX]


def _write_profiles(folder: Path) -> dict[str, dict[str, str]]:
    """Write the profiles to a config file, and return the variables that choose each; empty without a connection.

    There is no profile for the inbox if nothing distinguishes it from the store.
    """
    settings, inbox_profile = read_settings(), pipeline_settings().inbox_profile
    connections = {STORE: _find_connection(settings.store_connection)}
    if inbox_profile or settings.inbox_connection != settings.store_connection:
        connections[INBOX] = _find_connection(settings.inbox_connection)
    return _write(connections, inbox_profile, folder) if any(connections.values()) else {}


def _write(
    connections: Mapping[str, "AwsConnectionWrapper"], inbox_profile: str, folder: Path
) -> dict[str, dict[str, str]]:
    """Write the connections to a config file, each as the profile of its name; the variables that choose each."""
    sections: Sections = {}
    for name, connection in connections.items():
        if name == INBOX and inbox_profile and not connection.profile_name:
            connection.profile_name = inbox_profile
        try:
            sections |= _profile(name, connection)
        except (AttributeError, TypeError) as error:
            raise _invalid(connection.conn_id, error) from error
    file = _write_config(folder / "config", sections)
    return {name: {"AWS_CONFIG_FILE": str(file), **_variables(name, sections)} for name in connections}


def _find_connection(connection_id: str) -> "AwsConnectionWrapper":
    """A connection; false if it is the default one and does not exist. Raises ``PipelineError`` if it is invalid."""
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

    try:
        connection = Connection.get(connection_id)
    except AirflowNotFoundException:
        if connection_id == DEFAULT_CONNECTION:
            return AwsConnectionWrapper(conn=None)
        raise PipelineError(
            f"There is no Airflow connection {connection_id}, which CAPTION_STORE_CONNECTION or "
            "CAPTION_INBOX_CONNECTION names. Create it under Admin → Connections, or correct the setting."
        ) from None
    if connection.conn_type != "aws":
        raise _refusal(connection_id, f"the type {connection.conn_type}", "Choose the type aws.")
    if bool(connection.login) != bool(connection.password):
        raise _refusal(connection_id, "a key without a secret, or a secret without a key", "Give both, or neither.")
    try:
        json.loads(connection.extra or "{}")  # Airflow would take it for empty
        return AwsConnectionWrapper(conn=connection)
    except (AirflowException, AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise _invalid(connection_id, error) from error


def _invalid(connection_id: object, error: Exception) -> PipelineError:
    return _refusal(connection_id, f"an invalid extra ({error})", "Correct it under Admin → Connections.")


def _refusal(connection_id: object, what: str, advice: str) -> PipelineError:
    return PipelineError(f"The Airflow connection {connection_id} can't be used for S3: it has {what}. {advice}")


def _profile(name: str, connection: "AwsConnectionWrapper") -> Sections:
    """The profile of a connection, with the sections that it refers to."""
    options = _credentials(connection)
    sections: Sections = {}
    if connection.role_arn:
        source, options = options, _role(connection)
        if connection.assume_role_method == "assume_role_with_web_identity":
            pass  # it needs no other credentials
        elif any(option in source for option in _PROFILE_CREDENTIALS):
            sections[f"profile {name}-source"] = source
            options["source_profile"] = f"{name}-source"
        else:
            in_container = any(variable.startswith("AWS_CONTAINER_CREDENTIALS_") for variable in os.environ)
            options["credential_source"] = "EcsContainer" if in_container else "Ec2InstanceMetadata"
    options |= _environment(_PLACE) | _config(connection)
    if connection.conn_id:
        options[ORIGIN] = f"the Airflow connection {connection.conn_id}"
    endpoints = {
        service: endpoint
        for service in ("s3", "sts")
        # As in Airflow's hooks, the URL of all services does not hold for STS.
        if (
            endpoint := connection.get_service_endpoint_url(service, sts_connection_assume=True)
            or os.environ.get(f"AWS_ENDPOINT_URL_{service.upper()}")
        )
    }
    if endpoints:
        options["services"] = name
        sections[f"services {name}"] = {service: {"endpoint_url": url} for service, url in endpoints.items()}
    return {**sections, f"profile {name}": options}


def _credentials(connection: "AwsConnectionWrapper") -> dict[str, Any]:
    """The options of a profile with a connection's credentials, or else with those of the environment.

    Without either they are empty, and boto3 asks the container or the instance for its role.
    """
    if connection.aws_access_key_id:
        keys = {
            "aws_access_key_id": connection.aws_access_key_id,
            "aws_secret_access_key": connection.aws_secret_access_key,
            "aws_session_token": connection.aws_session_token,
        }
        return {option: value for option, value in keys.items() if value}
    if not connection.profile_name:
        keys = _environment(_KEYS)
        if {"aws_access_key_id", "aws_secret_access_key"} <= keys.keys():
            return keys
    options = _existing_profile(connection)
    if not connection.profile_name and "AWS_WEB_IDENTITY_TOKEN_FILE" in os.environ:
        options |= _environment(_WEB_IDENTITY)
    return options


def _existing_profile(connection: "AwsConnectionWrapper") -> dict[str, Any]:
    """The options of the profile that a connection or the environment names, in the config file of this machine."""
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        return dict(botocore.session.Session(profile=connection.profile_name).get_scoped_config())
    except BotoCoreError as error:  # there is no such profile, or the file is damaged
        advice = "Correct the Airflow connection's profile_name, AWS_PROFILE, CAPTION_INBOX_PROFILE, or the file."
        raise PipelineError(f"{error}. {advice}") from error


def _role(connection: "AwsConnectionWrapper") -> dict[str, Any]:
    """The options of a profile with a connection's role."""
    options = {
        "role_arn": connection.role_arn,
        "role_session_name": re.sub(r"[^\w+=,.@-]+", "-", f"Airflow_{connection.conn_id}", flags=re.ASCII),
    }
    supported = set(_ROLE_OPTIONS)
    if connection.assume_role_method == "assume_role_with_web_identity":
        federation = connection.extra_config.get("assume_role_with_web_identity_federation")
        if federation != "file":
            advice = "Only a token in a file is supported: choose the federation file."
            raise _refusal(connection.conn_id, f"a web identity of the federation {federation}", advice)
        token = "assume_role_with_web_identity_token_file"  # noqa: S105 - the name of a field
        file = connection.extra_config.get(token) or os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
        if not file:
            raise _refusal(connection.conn_id, "a web identity without a token", f"Name its file in {token}.")
        options["web_identity_token_file"] = file
        supported = {"RoleSessionName"}
    elif connection.assume_role_method != "assume_role":
        advice = "Choose assume_role or assume_role_with_web_identity."
        raise _refusal(connection.conn_id, f"assume_role_method {connection.assume_role_method}", advice)
    if unsupported := sorted(connection.assume_role_kwargs.keys() - supported):
        advice = f"Only {', '.join(sorted(supported))} can be used."
        raise _refusal(connection.conn_id, f"{', '.join(unsupported)} in assume_role_kwargs", advice)
    return options | {_ROLE_OPTIONS[name]: value for name, value in connection.assume_role_kwargs.items()}


def _config(connection: "AwsConnectionWrapper") -> dict[str, Any]:
    """The options of a profile for a connection's region, certificates and ``config_kwargs``."""
    given = connection.extra_config.get("config_kwargs") or {}
    if unsupported := sorted(given.keys() - set(_CONFIG_OPTIONS)):
        advice = f"The pipeline itself chooses timeouts and retries; only {', '.join(_CONFIG_OPTIONS)} can be used."
        raise _refusal(connection.conn_id, f"{', '.join(unsupported)} in config_kwargs", advice)
    if given.get("signature_version") == "unsigned":
        raise _refusal(connection.conn_id, "the signature_version unsigned", "Requests are always signed.")
    if connection.verify is False:
        advice = "Name a file of the certificates to trust in verify instead."
        raise _refusal(connection.conn_id, "verify false", advice)
    options = {name: value for name, value in given.items() if name != "signature_version"}
    if "signature_version" in given:
        options["s3"] = {**options.get("s3", {}), "signature_version": given["signature_version"]}
    if isinstance(connection.verify, str):
        options["ca_bundle"] = connection.verify
    if connection.region_name:
        options["region"] = connection.region_name
    return options


def _environment(names: Mapping[str, str]) -> dict[str, Any]:
    """The options of a profile that say the same as the variables of the environment."""
    return {option: os.environ[name] for name, option in names.items() if os.environ.get(name)}


def _variables(name: str, sections: Sections) -> dict[str, str]:
    """The variables by which a profile is chosen in a process whose environment may say otherwise."""
    options = sections[f"profile {name}"]
    endpoint = sections.get(f"services {name}", {}).get("s3", {}).get("endpoint_url")
    place = {variable: options[option] for variable, option in _PLACE.items() if option in options}
    return {"AWS_PROFILE": name, **place, **({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})}


def _write_config(file: Path, sections: Sections) -> Path:
    """Write the sections to a config file, after those of the machine, to which they may refer."""
    config, machine = configparser.RawConfigParser(), Path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"))
    try:
        config.read(machine.expanduser())
    except configparser.Error:
        # Its message may repeat a key.
        raise PipelineError(f"{machine} can't be read as a config file of AWS. Correct it.") from None
    for section, options in sections.items():
        config[section] = {option: _format(value) for option, value in options.items()}
    descriptor, temporary = tempfile.mkstemp(dir=file.parent)
    with open(descriptor, "w", encoding="utf-8") as stream:
        config.write(stream)
    return Path(temporary).replace(file)


def _format(value: Any) -> str:
    """An option's value as text; options in turn are lines of their own, which the parser indents."""
    if isinstance(value, Mapping):
        return "".join(f"\n{option} = {_format(each)}" for option, each in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
