"""Airflow's connections as AWS profiles: what boto3 makes of them in a task's child process."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from botocore.credentials import RefreshableCredentials

from captioning.connections import INBOX, STORE, bucket_environment, child_environment, private_folder
from pipeline.errors import PipelineError
from pipeline.storage import open_bucket
from tests.support.paths import PROJECT
from tests.support.waiting import wait_for

KEYS = {"login": "a-key", "password": "a secret = %(with) #signs"}

ROLE = "arn:aws:iam::123456789012:role/photos"


@pytest.fixture
def define(airflow_home, monkeypatch, tmp_path):
    """Defines an Airflow connection, in an environment without any of AWS's variables or files."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AIRFLOW_CONN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def define(extra=None, name="aws_default", conn_type="aws", **fields):
        connection = {"conn_type": conn_type, **fields, "extra": extra or {}}
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))

    return define


@pytest.fixture
def child(define, monkeypatch, tmp_path):
    """A function that makes this process's environment that of a task's child, and returns it."""

    def child():
        environment = child_environment(tmp_path)
        for name in os.environ.keys() - environment.keys():
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it would keep what the environment said before
        return environment

    return child


def keys(session=None):
    """The credentials that boto3 finds."""
    return (session or boto3.Session()).get_credentials().get_frozen_credentials()


def test_without_a_connection_nothing_changes(child, tmp_path):
    """The child has the environment of its parent, and there is no file."""
    before = dict(os.environ)
    assert child() == before
    assert list(tmp_path.iterdir()) == []
    assert bucket_environment(tmp_path, STORE) is None


def test_keys_region_and_endpoint(child, define, monkeypatch):
    """Those of the connection take the place of those of the environment; a region that it lacks does not."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    define({"endpoint_url": "http://127.0.0.1:1", "aws_session_token": "a token"}, **KEYS)
    environment = child()
    assert keys() == ("a-key", KEYS["password"], "a token", None)
    client = boto3.Session().client("s3")
    assert (client.meta.endpoint_url, client.meta.region_name) == ("http://127.0.0.1:1", "eu-west-1")
    assert not any(KEYS["password"] in value for name, value in environment.items() if "AIRFLOW" not in name)


@pytest.mark.parametrize("chain", ["variables", "profile", "web identity", "nothing"])
def test_a_connection_without_credentials(child, define, monkeypatch, tmp_path, chain):
    """As the one that Airflow itself creates: boto3 finds what it finds without a connection, at its endpoint."""
    if chain == "variables":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    elif chain == "profile":
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws/config").write_text("[profile mine]\naws_access_key_id = a-key\naws_secret_access_key = b\n")
        monkeypatch.setenv("AWS_PROFILE", "mine")
    elif chain == "web identity":
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    define({"endpoint_url": "http://127.0.0.1:1"})
    child()
    assert boto3.Session().client("s3").meta.endpoint_url == "http://127.0.0.1:1"
    found = boto3.Session().get_credentials()
    if chain == "nothing":
        assert found is None
    elif chain == "web identity":
        assert found.method == "assume-role-with-web-identity"
    else:
        assert found.access_key == "a-key"


@pytest.mark.parametrize("base", ["keys", "variables", "web identity"])
def test_a_role_is_assumed_by_the_child(child, define, monkeypatch, s3_server, base):
    """boto3 has the role's temporary keys, which it renews by itself, also of an identity that comes from elsewhere."""
    role = {"role_arn": ROLE, "assume_role_kwargs": {"ExternalId": "an-id", "DurationSeconds": 900}}
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_server)
    if base == "variables":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    elif base == "web identity":
        token = Path.home() / "token"
        token.write_text("a token")
        monkeypatch.setenv("AWS_ROLE_ARN", f"{ROLE}-of-the-pod")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    define({**role, "endpoint_url": "http://127.0.0.1:1"}, **(KEYS if base == "keys" else {}))
    child()
    found = boto3.Session().get_credentials()
    assert isinstance(found, RefreshableCredentials)
    assert found.method == "assume-role"
    assert found.get_frozen_credentials().token
    assert (
        boto3.Session()
        .client("sts")
        .get_caller_identity()["Arn"]
        .startswith("arn:aws:sts::123456789012:assumed-role/photos/Airflow_aws_default")
    )


def test_a_web_identity_of_a_connection(child, define, tmp_path, s3_server):
    """Its token is read from the file that the connection names."""
    (tmp_path / "token").write_text("a token")
    define(
        {
            "role_arn": ROLE,
            "region_name": "us-east-1",
            "assume_role_method": "assume_role_with_web_identity",
            "assume_role_with_web_identity_federation": "file",
            "assume_role_with_web_identity_token_file": str(tmp_path / "token"),
            "service_config": {"sts": {"endpoint_url": s3_server}, "s3": {"endpoint_url": "http://127.0.0.1:1"}},
        }
    )
    child()
    found = boto3.Session().get_credentials()
    assert found.method == "assume-role-with-web-identity"
    assert found.get_frozen_credentials().token
    assert boto3.Session().client("s3").meta.endpoint_url == "http://127.0.0.1:1"


def test_the_role_of_an_instance(child, define, monkeypatch, tmp_path):
    """A connection with a role and without keys starts from that of the instance or the container."""
    define({"role_arn": ROLE, "region_name": "us-east-1"})
    for variables, source in (
        ({}, "Ec2InstanceMetadata"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1"}, "EcsContainer"),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        child_environment(tmp_path)
        assert f"credential_source = {source}\n" in (tmp_path / "config").read_text()


def test_a_profile_of_the_machine(child, define, monkeypatch, tmp_path):
    """A connection that names a profile gets it, with its own region, and with the sections that it refers to."""
    (tmp_path / "machine").write_text(
        "[profile mine]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = base\nregion = eu-west-3\n"
        "[profile base]\naws_access_key_id = a-key\naws_secret_access_key = b\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "machine"))
    define({"profile_name": "mine", "region_name": "eu-north-1"})
    child()
    assert boto3.Session().get_credentials().method == "assume-role"
    assert boto3.Session().region_name == "eu-north-1"


def test_a_damaged_config_file(define, tmp_path):
    """The error names the file, and repeats nothing of it."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text("[default]\na secret without a name\n")
    for fields in ({}, KEYS):
        define(**fields)
        with pytest.raises(PipelineError, match=r"\.aws/config") as error:
            child_environment(tmp_path)
        assert "secret" not in str(error.value)


def test_client_options(child, define, tmp_path):
    """Addressing, signatures and certificates reach the client."""
    certificates = tmp_path / "ca.pem"
    config = {"s3": {"addressing_style": "path", "payload_signing_enabled": True}, "signature_version": "s3v4"}
    define({"config_kwargs": config, "verify": str(certificates), "region_name": "us-east-1"}, **KEYS)
    child()
    session = boto3.Session()
    assert session._session.get_config_variable("ca_bundle") == str(certificates)
    certificates.touch()
    client = session.client("s3", verify=False)
    assert client.meta.config.s3["addressing_style"] == "path"
    assert client.meta.config.s3["payload_signing_enabled"] is True
    assert client.meta.config.signature_version == "s3v4"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"extra": {"verify": False}}, "verify false"),
        ({"extra": {"config_kwargs": {"proxies": {}}}}, "proxies in config_kwargs"),
        ({"extra": {"config_kwargs": {"signature_version": "unsigned"}}}, "signature_version unsigned"),
        ({"extra": {"config_kwargs": {"no_such": 1}}}, "an invalid extra"),
        ({"extra": {"config_kwargs": "path"}}, "an invalid extra"),
        ({"extra": {"service_config": "s3"}}, "an invalid extra"),
        ({"extra": "{region_name: eu-west-1}"}, "an invalid extra"),
        ({"extra": "[1]"}, "an invalid extra"),
        ({"extra": {"role_arn": ROLE, "assume_role_kwargs": "an-id"}}, "an invalid extra"),
        ({"extra": {"role_arn": ROLE, "assume_role_method": "assume_role_with_saml"}}, "assume_role_with_saml"),
        ({"extra": {"role_arn": ROLE, "assume_role_method": "by_magic"}}, "by_magic"),
        ({"extra": {"role_arn": ROLE, "assume_role_kwargs": {"SerialNumber": "x"}}}, "SerialNumber in assume_role_kwa"),
        (
            {
                "extra": {
                    "role_arn": ROLE,
                    "assume_role_method": "assume_role_with_web_identity",
                    "assume_role_with_web_identity_federation": "google",
                }
            },
            "federation google",
        ),
        ({"extra": {"profile_name": "nowhere"}}, r"nowhere.*profile_name"),
        ({"login": "a-key"}, "a key without a secret"),
        ({"conn_type": "http", **KEYS}, "the type http"),
    ],
)
def test_what_a_profile_cant_hold_is_refused(define, tmp_path, fields, words):
    """The error names the connection and the field."""
    define(**fields)
    with pytest.raises(PipelineError, match=words) as error:
        child_environment(tmp_path)
    assert "aws_default" in str(error.value) or "nowhere" in str(error.value)


def test_a_connection_that_is_named_must_exist(define, monkeypatch, tmp_path):
    """Only the default connection may be missing."""
    monkeypatch.setenv("CAPTION_INBOX_CONNECTION", "photos")
    with pytest.raises(PipelineError, match="no Airflow connection photos"):
        child_environment(tmp_path)


def test_store_and_inbox_have_their_own_connections(child, define, monkeypatch):
    """The child opens the inbox and what is in it with the keys of one, all other buckets with those of the other."""
    define({"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}, login="store", password="s")
    define({"region_name": "eu-west-1"}, name="photos", login="inbox", password="i")
    monkeypatch.setenv("CAPTION_INBOX_CONNECTION", "photos")
    monkeypatch.setenv("CAPTION_INBOX", "s3://shared/photos")
    monkeypatch.setenv("CAPTION_STORE", "s3://shared/photos/captioning")
    environment = child()
    assert environment["CAPTION_INBOX_PROFILE"] == INBOX
    for uri, key, endpoint in (
        ("s3://shared/photos", "inbox", "https://s3.eu-west-1.amazonaws.com"),
        ("s3://shared/photos/2026", "inbox", "https://s3.eu-west-1.amazonaws.com"),
        ("s3://shared/photos/captioning/corrections", "store", "http://127.0.0.1:1"),
        ("s3://shared/photos2", "store", "http://127.0.0.1:1"),
        ("s3://training", "store", "http://127.0.0.1:1"),
    ):
        client = open_bucket(uri).client
        assert (client._get_credentials().access_key, client.meta.endpoint_url) == (key, endpoint)


def test_a_profile_of_the_inbox(child, define, monkeypatch, tmp_path):
    """The one that the setting names serves the inbox where the connection has no credentials of its own."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text(
        "[profile mine]\naws_access_key_id = store\naws_secret_access_key = b\n"
        "[profile photos]\naws_access_key_id = inbox\naws_secret_access_key = b\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("CAPTION_INBOX_PROFILE", "photos")
    monkeypatch.setenv("CAPTION_INBOX", "s3://photos")
    monkeypatch.setenv("CAPTION_STORE", "s3://captioning")

    def opened():
        return [open_bucket(uri).client._get_credentials().access_key for uri in ("s3://captioning", "s3://photos")]

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert opened() == ["store", "inbox"]
    define({"region_name": "eu-west-1"})
    in_this_process = bucket_environment(tmp_path, INBOX)
    assert open_bucket("s3://photos", in_this_process).client._get_credentials().access_key == "inbox"
    child()
    assert opened() == ["store", "inbox"]


def test_this_process_opens_them_likewise(define, monkeypatch, tmp_path):
    """The API server, whose own environment may say otherwise, opens each with its own keys and endpoint."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    define({"endpoint_url": "http://127.0.0.1:1", "region_name": "us-east-1"}, login="store", password="s")
    define({"region_name": "eu-west-1"}, name="photos", login="inbox", password="i")
    monkeypatch.setenv("CAPTION_INBOX_CONNECTION", "photos")
    for profile, key, endpoint in ((STORE, "store", "http://127.0.0.1:1"), (INBOX, "inbox", "http://127.0.0.1:2")):
        client = open_bucket("s3://any", bucket_environment(tmp_path, profile)).client
        assert (client._get_credentials().access_key, client.meta.endpoint_url) == (key, endpoint)


@pytest.mark.parametrize("in_child", [True, False], ids=["child", "this process"])
def test_an_error_names_the_connection(child, define, monkeypatch, tmp_path, in_child):
    """Which holds what is wrong, and not the environment: that of the store, or that of the inbox."""
    define({"endpoint_url": "here"}, **KEYS)
    define({"region_name": "Frankfurt, please"}, name="photos", **KEYS)
    monkeypatch.setenv("CAPTION_INBOX_CONNECTION", "photos")
    environments = {profile: bucket_environment(tmp_path, profile) for profile in (STORE, INBOX)}
    if in_child:
        child()
        environments = {STORE: None, INBOX: {"AWS_PROFILE": os.environ["CAPTION_INBOX_PROFILE"]}}
    for profile, name in ((STORE, "aws_default"), (INBOX, "photos")):
        with pytest.raises(PipelineError) as error:
            open_bucket("s3://any", environments[profile])
        assert str(error.value).endswith(
            f"Check the bucket's name, and the endpoint and the credentials of the Airflow connection {name}."
        )


def test_only_the_owner_can_read_the_profiles(define, tmp_path):
    """Neither the folder nor the file is readable by others, and both are gone at the end."""
    define(**KEYS)
    with private_folder() as folder:
        file = child_environment(folder)["AWS_CONFIG_FILE"]
        assert KEYS["password"] in (folder / "config").read_text()
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, Path(file))] == [0o700, 0o600]
        assert [path.name for path in folder.iterdir()] == ["config"]
    assert not folder.exists()


def test_they_are_gone_when_the_task_is_killed(tmp_path):
    """A process that is killed leaves no folder."""
    code = (
        "import time; from captioning.connections import private_folder\n"
        "with private_folder() as folder: print(folder, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": f"{PROJECT}:{PROJECT / 'plugins'}"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    folder = tmp_path / Path(process.stdout.readline().strip()).name
    assert folder.is_dir()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for("the folder to be removed", lambda: not folder.exists())
