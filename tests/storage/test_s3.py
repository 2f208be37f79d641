"""S3 and services like it: whose fault an error is, archives, the settings, and conditional writes."""

import datetime
import ipaddress
import os
import re
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.errors import PipelineError
from pipeline.storage import (
    ABSENT,
    Bucket,
    ObjectArchivedError,
    ObjectChangedError,
    ObjectDeniedError,
    S3Bucket,
    open_bucket,
)
from tests.support.faults import Answer, Fault, Pass, Proxy, Request, refused

KEY = "folder/a photo.jpg"


@pytest.fixture
def new_bucket(s3_faults: Proxy, s3_bucket_name: str) -> Callable[[], S3Bucket]:
    """Makes empty buckets behind the proxy."""
    return lambda: S3Bucket(f"s3://{s3_bucket_name}/{uuid.uuid4().hex}")


@pytest.fixture
def bucket(new_bucket: Callable[[], S3Bucket]) -> S3Bucket:
    """A bucket with one object, behind the proxy."""
    bucket = new_bucket()
    bucket.put(KEY, b"bytes")
    return bucket


USES: list[Callable[[Bucket], object]] = [
    lambda bucket: bucket.get(KEY),
    lambda bucket: bucket.put(KEY, b""),
    lambda bucket: list(bucket.list()),
]

# --- whose fault an error is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "message", "reason"),
    [
        (403, "AccessDenied", "", r"access denied \(AccessDenied\); grant read access to it"),
        (403, "AccessDenied", "not authorized to perform: kms:Decrypt on …", r"key can't be used .*grant kms:Decrypt"),
        (400, "KMS.DisabledException", "", r"encryption key can't be used \(KMS.DisabledException\); enable it"),
        (400, "KMS.NotFoundException", "", r"encryption key can't be used \(KMS.NotFoundException\)"),
        (400, "InvalidRequest", "", r"refused \(InvalidRequest\); if it is encrypted .*SSE-C"),
        (400, "InvalidArgument", "", r"refused \(InvalidArgument\); if it is encrypted .*SSE-C"),
        (400, "NeverHeardOf", "", r"refused \(NeverHeardOf\); remove it, or make it readable"),
        (451, "LegalHold", "", r"refused \(LegalHold\)"),
    ],
)
@pytest.mark.parametrize("read", [Bucket.get, Bucket.open])
def test_what_is_refused_for_its_own_sake(
    bucket: S3Bucket,
    s3_faults: Proxy,
    *,
    status: int,
    code: str,
    message: str,
    reason: str,
    read: Callable[..., object],
) -> None:
    """The error is that object's, and its reason, by which failed images are grouped, names the code and no object."""
    bucket.put("other", b"bytes")
    s3_faults.plan(refused(status, code, message), key=KEY)
    with pytest.raises(ObjectDeniedError, match=code) as error:
        getattr(bucket, read.__name__)(KEY)
    assert bucket.url(KEY) in str(error.value)
    assert re.search(reason, error.value.reason)
    assert code in error.value.reason
    assert "photo" not in error.value.reason
    assert bucket.get("other") == b"bytes"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ExpiredToken"),
        (400, "TokenRefreshRequired"),
        (400, "RequestTimeout"),
        (400, "ThrottlingException"),
        (400, "KMS.ThrottlingException"),
        (400, "IncompleteBody"),
        (409, "OperationAborted"),
        (429, "TooManyRequests"),
        (503, "SlowDownRead"),
        (500, "KMS.KeyUnavailableException"),
        (307, "TemporaryRedirect"),
    ],
)
def test_what_passes(bucket: S3Bucket, s3_faults: Proxy, status: int, code: str) -> None:
    """Throttling, the network, and temporary credentials that have expired are no one's fault: they may be retried."""
    for method in ("GET", "PUT"):
        s3_faults.plan(refused(status, code), method)
    s3_faults.plan(refused(status, code), listings=True)
    for use in USES:
        with pytest.raises(ClientError, match=code) as error:
            use(bucket)
        assert any(note.startswith(f"while accessing {bucket.uri}/") for note in error.value.__notes__)


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "InvalidAccessKeyId", "credentials"),
        (403, "SignatureDoesNotMatch", "credentials"),
        (400, "InvalidToken", "credentials"),
        (401, "Unauthorized", "credentials"),
        (403, "NotSignedUp", "credentials"),
        (403, "AllAccessDisabled", "bucket's name"),
        (404, "NoSuchBucket", "bucket's name"),
        (405, "MethodNotAllowed", "endpoint"),
        (501, "NotImplemented", "endpoint"),
        (403, "RequestTimeTooSkewed", "Set the clock"),
        (400, "AuthorizationHeaderMalformed", "AWS_DEFAULT_REGION"),
        (400, "InvalidRegionName", "AWS_DEFAULT_REGION"),
        (301, "PermanentRedirect", "AWS_DEFAULT_REGION"),
    ],
)
def test_what_the_settings_are_to_blame_for(
    bucket: S3Bucket, s3_faults: Proxy, *, status: int, code: str, advice: str
) -> None:
    """It is no one object's error, and says what to correct, on one line."""
    for method in ("GET", "PUT", "HEAD"):
        s3_faults.plan(refused(status, code), method)
    s3_faults.plan(refused(status, code), listings=True)
    for use in USES:
        with pytest.raises(PipelineError, match=advice) as error:
            use(bucket)
        assert type(error.value) is PipelineError
        assert bucket.uri in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("status", [301, 302, 308, 400, 405])
def test_what_does_not_answer_as_s3_does(bucket: S3Bucket, s3_faults: Proxy, status: int) -> None:
    """A web server or a proxy at the endpoint is a matter of the settings, and not of each photograph."""
    page = b"<html><body>The plain HTTP request was sent to HTTPS port<br></body></html>"
    for method in ("GET", "HEAD"):
        s3_faults.plan(lambda *_: Answer(status, [("Content-Type", "text/html"), ("Location", "/login")], page), method)
    with pytest.raises(PipelineError, match="AWS_ENDPOINT_URL") as error:
        bucket.get(KEY)
    assert type(error.value) is PipelineError


def test_what_answers_everything_with_a_page(bucket: S3Bucket, s3_faults: Proxy) -> None:
    """Such as the console of an S3 service: it gives objects no etag, by which it is found out."""
    page = Answer(200, [("Content-Type", "text/html")], b"<html><body>Console</body></html>")
    for method in ("HEAD", "PUT"):
        s3_faults.plan(lambda *_: page, method)
    for use in (bucket.etag, lambda key: bucket.put(key, b"")):
        with pytest.raises(PipelineError, match=r"the answer has no 'ETag'.*AWS_ENDPOINT_URL") as error:
            use(KEY)
        assert bucket.url(KEY) in str(error.value)


@pytest.mark.parametrize("code", ["AccessDenied", "KMS.DisabledException", "QuotaExceeded"])
def test_a_listing_that_is_refused_is_no_objects_error(bucket: S3Bucket, s3_faults: Proxy, code: str) -> None:
    """Whatever its code."""
    s3_faults.plan(refused(403, code), listings=True)
    with pytest.raises(PipelineError, match=code) as error:
        list(bucket.list())
    assert type(error.value) is PipelineError


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "AccessDenied", ObjectDeniedError),
        (403, "SignatureDoesNotMatch", PipelineError),
        (400, "KMS.DisabledException", ObjectDeniedError),
        (400, "ExpiredToken", ClientError),
    ],
)
def test_an_etag_that_is_refused(
    bucket: S3Bucket, s3_faults: Proxy, *, status: int, code: str, error: type[Exception]
) -> None:
    """The answer to a HEAD has no code: it is found out, and decides whose error it is."""
    for method in ("HEAD", "GET"):
        s3_faults.plan(refused(status, code), method, KEY)
    with pytest.raises(error, match=code) as caught:
        bucket.etag(KEY)
    assert type(caught.value) is error


def test_an_object_that_may_be_absent(bucket: S3Bucket, s3_faults: Proxy) -> None:
    """Who may not list a bucket is denied what is not there: the error says that, too."""
    s3_faults.plan(refused(403, "AccessDenied"), key=KEY)
    with pytest.raises(ObjectDeniedError, match="s3:ListBucket") as error:
        bucket.get(KEY)
    assert "ListBucket" not in error.value.reason


def test_an_absent_object_costs_one_request(bucket: S3Bucket, s3_faults: Proxy) -> None:
    """Its HEAD says enough."""
    s3_faults.behave()
    assert bucket.etag("absent") == ABSENT
    assert len(s3_faults.requests) == 1


def test_credentials_of_a_role_that_are_denied(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_faults: Proxy
) -> None:
    """An error that the token service gives is not that of the object for which the token is."""
    (tmp_path / "config").write_text(
        "[profile role]\nrole_arn = arn:aws:iam::111122223333:role/r\nsource_profile = keys\nregion = us-east-1\n"
        "sts_regional_endpoints = regional\n[profile keys]\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_faults.url)
    s3_faults.plan(refused(403, "AccessDenied"), "POST")
    with pytest.raises(PipelineError, match="AssumeRole") as error:
        S3Bucket("s3://bucket", {"AWS_PROFILE": "role"}).get(KEY)
    assert type(error.value) is PipelineError


# --- archives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_object(bucket: S3Bucket, storage_class: str) -> None:
    """The listing shows that it is archived, and reading it raises an error of its own that says what to do."""
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "z.jpg", Body=b"", StorageClass=storage_class)
    assert [item.archived for item in bucket.list()] == [False, True]
    for read in (bucket.get, bucket.open):
        with pytest.raises(ObjectArchivedError, match="It is archived: restore it first") as error:
            read("z.jpg")
        assert bucket.url("z.jpg") in str(error.value)


@pytest.mark.parametrize(
    ("status", "archived"),
    [
        ("", True),
        ("<IsRestoreInProgress>true</IsRestoreInProgress>", True),
        (
            "<IsRestoreInProgress>false</IsRestoreInProgress>"
            "<RestoreExpiryDate>2030-01-01T00:00:00.000Z</RestoreExpiryDate>",
            False,
        ),
    ],
    ids=["archived", "being restored", "restored"],
)
def test_a_restored_object(bucket: S3Bucket, s3_faults: Proxy, status: str, archived: bool) -> None:
    """As soon as it can be read, it is archived no longer."""

    def listed(request: Request, ask: Pass) -> Answer:
        assert request.headers["x-amz-optional-object-attributes"] == "RestoreStatus"
        answer = ask()
        archive = f"<StorageClass>GLACIER</StorageClass><RestoreStatus>{status}</RestoreStatus>".encode()
        body = answer.body.replace(b"<StorageClass>STANDARD</StorageClass>", archive)
        return Answer(answer.status, [(n, v) for n, v in answer.headers if n.lower() != "content-length"], body)

    s3_faults.plan(listed, listings=True)
    assert [item.archived for item in bucket.list()] == [archived]


def test_an_archive_of_immediate_access_is_none(bucket: S3Bucket) -> None:
    """Its objects are read like any others."""
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "z.jpg", Body=b"z", StorageClass="GLACIER_IR")
    assert [item.archived for item in bucket.list()] == [False, False]
    assert bucket.get("z.jpg") == b"z"


# --- settings -------------------------------------------------------------------------------------------------------

GOOD = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}

WRONG = {
    "an endpoint without a scheme": ({"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, "Invalid endpoint: 127.0.0.1:9000"),
    "an endpoint of another scheme": ({"AWS_ENDPOINT_URL": "htp://127.0.0.1:9"}, "not a valid URI"),
    "an endpoint of no port": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:99999"}, "not a valid URI"),
    "half a key": ({"AWS_SECRET_ACCESS_KEY": ""}, "(?i)secret_access_key"),
    "a region of no form": ({"AWS_DEFAULT_REGION": "Frankfurt, please"}, "region_name 'Frankfurt, please'"),
    "an unknown profile": ({"AWS_PROFILE": "nobody"}, r"profile \(nobody\) could not be found"),
    "a profile without a source": ({"AWS_PROFILE": "role"}, 'source_profile "nowhere"'),
    "a profile that is not logged in": ({"AWS_PROFILE": "sso"}, "aws sso login"),
    "a line break in a key": ({"AWS_ACCESS_KEY_ID": "a\n"}, "line break"),
}

PROFILES = """
[profile role]
role_arn = arn:aws:iam::111122223333:role/r
source_profile = nowhere
[profile sso]
sso_session = s
sso_account_id = 111122223333
sso_role_name = r
[sso-session s]
sso_region = us-east-1
sso_start_url = https://example.awsapps.com/start
"""


@pytest.fixture
def no_aws(s3_faults: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment that says nothing about AWS; its file of profiles. Retries do not wait."""
    import boto3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(PROFILES)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    return tmp_path / "config"


@pytest.mark.parametrize(("variables", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("passed", [False, True], ids=["in the environment", "passed"])
def test_wrong_settings(
    no_aws: Path, monkeypatch: pytest.MonkeyPatch, *, variables: dict[str, str], message: str, passed: bool
) -> None:
    """Each is an error that says what is wrong, on one line, when the bucket is opened or first used."""
    keys = {} if "AWS_PROFILE" in variables else GOOD
    settings = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", **keys, **variables}
    settings = {name: value for name, value in settings.items() if value}
    if not passed:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
    with pytest.raises(PipelineError, match=message) as error:
        open_bucket("s3://bucket/prefix", settings if passed else None).get(KEY)
    assert "s3://bucket/prefix" in str(error.value)
    assert "AWS_" in str(error.value) or "aws" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_profiles_that_is_none(no_aws: Path) -> None:
    """It is named."""
    no_aws.write_text("garbage [\n= x")
    with pytest.raises(PipelineError, match=str(no_aws)):
        open_bucket("s3://bucket")


def test_a_secret_with_a_line_break_is_not_shown(no_aws: Path) -> None:
    """The header that can't be sent has the token in it; neither the error nor what it came from repeats it."""
    bucket = S3Bucket("s3://bucket", {**GOOD, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_SESSION_TOKEN": "t0ken\n"})
    with pytest.raises(PipelineError, match="line break") as error:
        bucket.get(KEY)
    assert "t0ken" not in str(error.getrepr(style="native"))


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("s3://arn:aws:s3:us-east-1:111122223333:accesspoint/photos/2026", "alias of the access point"),
        ("s3://my photos", "can't be the name of a bucket"),
        ("s3://my-photos?versionId=1", "can't be the name of a bucket"),
        ("s3://key:secret@bucket", "can't be the name of a bucket"),
    ],
)
def test_what_can_be_no_buckets_name(s3_server: str, uri: str, advice: str) -> None:
    """It is refused before anything is asked."""
    with pytest.raises(PipelineError, match=advice):
        open_bucket(uri)


def test_a_host_that_is_not_found_may_be_retried(no_aws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is restarted may have no name meanwhile; the error says which name it was."""
    bucket = S3Bucket("s3://bucket", {**GOOD, "AWS_ENDPOINT_URL": "http://nowhere.invalid"})
    with pytest.raises(BotoCoreError, match=r"nowhere\.invalid") as error:
        bucket.get(KEY)
    assert error.value.__notes__ == [f"while accessing {bucket.url(KEY)}"]


def test_the_environment_that_is_passed_is_used(
    no_aws: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Endpoint, region, keys and token, or a profile that has them; and it goes before that of the process."""
    no_aws.write_text(
        "[profile mine]\naws_access_key_id = mine\naws_secret_access_key = b\naws_session_token = t2\n"
        "region = eu-west-3\nendpoint_url = http://127.0.0.1:1/\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, GOOD[name])
    keys = {"AWS_ACCESS_KEY_ID": "yours", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "t1"}
    endpoint = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_DEFAULT_REGION": "eu-west-2"}
    sent = []

    def answer(request: object, **_: object) -> None:
        sent.append(request)
        raise KeyboardInterrupt

    for environment in ({**keys, **endpoint}, {"AWS_PROFILE": "mine"}):
        bucket = S3Bucket("s3://bucket", environment)
        bucket.client.meta.events.register("before-send.s3", answer)
        with pytest.raises(KeyboardInterrupt):
            bucket.get(KEY)
    for request, key, token, region in zip(sent, ("yours", "mine"), (b"t1", b"t2"), ("-2", "-3"), strict=True):
        assert request.url.startswith("http://127.0.0.1:1/bucket/")
        assert f"Credential={key}/".encode() in request.headers["Authorization"]
        assert f"/eu-west{region}/s3/".encode() in request.headers["Authorization"]
        assert request.headers["X-Amz-Security-Token"] == token


def test_one_name_on_two_servers(no_aws: Path) -> None:
    """They are two buckets, as the locations say; the same name on one server is the same bucket."""
    buckets = [
        S3Bucket("s3://bucket/a", {**GOOD, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}) for port in (1, 2, 1)
    ]
    one, other, same = (bucket.location for bucket in buckets)
    assert (one == other, one == same) == (False, True)


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An S3 server of one object with a certificate that nobody knows: its address and its certificate."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"bytes")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(HTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that hangs up is what the tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}", pem
    server.shutdown()
    server.server_close()


def test_a_certificate_of_an_unknown_ca(
    no_aws: Path, tls: tuple[str, Path], s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says where its certificate goes, and there it helps."""
    address, certificate = tls
    environment = {**GOOD, "AWS_ENDPOINT_URL": address}
    with pytest.raises(PipelineError, match="AWS_CA_BUNDLE"):
        S3Bucket("s3://bucket", environment).get(KEY)
    assert S3Bucket("s3://bucket", {**environment, "AWS_CA_BUNDLE": str(certificate)}).get(KEY) == b"bytes"
    for file in (no_aws, no_aws.parent / "no.pem"):
        with pytest.raises(PipelineError, match="Set AWS_CA_BUNDLE to a file with"):
            S3Bucket("s3://bucket", {**environment, "AWS_CA_BUNDLE": str(file)}).get(KEY)
    with pytest.raises(PipelineError, match="http://"):
        S3Bucket("s3://bucket", {**environment, "AWS_ENDPOINT_URL": s3_server.replace("http", "https")}).get(KEY)


@pytest.mark.parametrize("pays", [False, True])
def test_the_requester_pays_if_told_so(
    new_bucket: Callable[[], S3Bucket], s3_faults: Proxy, monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    """Then every request says it, and else none."""
    monkeypatch.setenv("CAPTION_REQUESTER_PAYS", str(pays))
    bucket = new_bucket()
    etag = bucket.put(KEY, b"bytes", if_match=ABSENT)
    bucket.get(KEY, etag=etag)
    bucket.open(KEY).close()
    bucket.etag(KEY)
    list(bucket.list())
    bucket.delete(KEY)
    said = {request.headers.get("x-amz-request-payer") for request in s3_faults.requests}
    assert said == ({"requester"} if pays else {None})
    assert {request.method for request in s3_faults.requests} == {"GET", "PUT", "HEAD", "DELETE"}


# --- conditional writes ---------------------------------------------------------------------------------------------


def unconditional(request: Request, ask: Pass) -> Answer:
    """A service that knows no conditions does what it is asked for."""
    for name in ("If-Match", "If-None-Match"):
        request.headers.pop(name, None)
    return ask()


def not_implemented(request: Request, ask: Pass) -> Answer | None:
    """A service that knows that it knows no conditions."""
    if {"If-Match", "If-None-Match"} & request.headers.keys():
        return refused(501, "NotImplemented")(request, ask)
    return ask()


@pytest.mark.parametrize("service", [unconditional, not_implemented])
@pytest.mark.parametrize("existing", [False, True])
def test_a_service_without_conditional_writes(
    bucket: S3Bucket, s3_faults: Proxy, service: Fault, existing: bool
) -> None:
    """It is found out before anything is overwritten, the error says what to use instead, and nothing is left."""
    s3_faults.plan(service, "PUT")
    expected = bucket.etag(KEY)
    for _ in range(2):
        with pytest.raises(
            PipelineError, match=r"does not support conditional writes.*SeaweedFS.*CAPTION_STORE"
        ) as error:
            bucket.put(KEY if existing else "new", b"other", if_match=expected if existing else ABSENT)
        assert type(error.value) is PipelineError
        assert bucket.uri in str(error.value)
    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=bucket.prefix)
    assert [item["Key"] for item in listed["Contents"]] == [bucket.prefix + KEY]
    assert bucket.get(KEY) == b"bytes"
    bucket.put("unconditional", b"bytes")


def test_a_service_that_refuses_only_one_condition(bucket: S3Bucket, s3_faults: Proxy) -> None:
    """The other may be refused later than the first."""
    bucket.put("first", b"", if_match=ABSENT)
    s3_faults.plan(not_implemented, "PUT")
    with pytest.raises(PipelineError, match="does not support conditional writes"):
        bucket.put(KEY, b"other", if_match=bucket.etag(KEY))


def test_conditional_writes_are_tried_once(new_bucket: Callable[[], S3Bucket], s3_faults: Proxy) -> None:
    """One request more for all buckets in one S3 bucket, and none for unconditional writes."""
    bucket = new_bucket()
    bucket.put(KEY, b"bytes")
    assert s3_faults.asked("PUT") == 1
    etag = bucket.put(KEY, b"bytes, too", if_match=bucket.etag(KEY))
    assert s3_faults.asked("PUT") == 3
    bucket.put(KEY, b"more", if_match=etag)
    new_bucket().put(KEY, b"bytes", if_match=ABSENT)
    assert s3_faults.asked("PUT") == 5
    assert [item.key for item in bucket.list()] == [KEY]


def test_amazons_s3_is_not_tried(no_aws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known to have conditional writes."""
    bucket = S3Bucket("s3://bucket", GOOD)
    sent = []

    def put_object(**request: object) -> dict[str, str]:
        sent.append(request)
        return {"ETag": '"e"'}

    monkeypatch.setattr(bucket.client, "put_object", put_object)
    assert bucket.put(KEY, b"", if_match=ABSENT) == "e"
    assert len(sent) == 1


def test_whoever_may_write_only_some_keys(bucket: S3Bucket, s3_faults: Proxy) -> None:
    """That the trial is denied says nothing: the write itself decides."""
    s3_faults.plan(refused(403, "AccessDenied"), "PUT", ".conditional-write")
    etag = bucket.put(KEY, b"other", if_match=bucket.etag(KEY))
    with pytest.raises(ObjectChangedError):
        bucket.put(KEY, b"third", if_match=ABSENT)
    assert bucket.get(KEY, etag=etag) == b"other"
