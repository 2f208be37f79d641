"""S3 that misbehaves: retries end, errors name the object, and no night loses an image or captions another one."""

import os
import subprocess
import sys
import traceback
import uuid
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    IncompleteReadError,
    PaginationError,
)

from pipeline.captioner import bundle, registry
from pipeline.errors import PipelineError
from pipeline.features import encoder
from pipeline.nightly import night as nights
from pipeline.storage import (
    ABSENT,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    open_bucket,
    s3,
)
from pipeline.work.outcomes import ARCHIVED
from tests.support import toy
from tests.support.faults import after, at_first, cut_off, dripping, dropped, lost, refused, stale
from tests.support.keys import DOTTED_KEYS, NASTY_KEYS
from tests.support.loading import load_once
from tests.support.nights import colour_in, counts, extract, identities, night, photographs, reconciled, rows_in, write
from tests.support.wide_table import put_wide_table

SLOW_DOWN = refused(503, "SlowDown")
BROKEN = refused(500, "InternalError")
DENIED = refused(403, "AccessDenied")

KEY = "folder/a photo.jpg"
DATA = bytes(range(256)) * 500

ATTEMPTS = 9
"""Botocore's, of each request: the first and eight more."""


@pytest.fixture
def new_bucket(s3_faults, s3_bucket_name):
    """Makes empty buckets behind the proxy."""
    return lambda: open_bucket(f"s3://{s3_bucket_name}/{uuid.uuid4().hex}")


def logged(error):
    """All that a log shows of an error itself."""
    return "".join(traceback.format_exception_only(error))


def read_opened(bucket, key=KEY):
    """The object's bytes, through ``open``."""
    with bucket.open(key) as file:
        return file.read()


USES = {
    "get": ("GET", lambda bucket: bucket.get(KEY)),
    "open": ("GET", read_opened),
    "range": ("GET", lambda bucket: bucket._range(KEY, bucket.etag(KEY), 0, 1000)),
    "etag": ("HEAD", lambda bucket: bucket.etag(KEY)),
    "put": ("PUT", lambda bucket: bucket.put(KEY, DATA)),
    "conditional put": ("PUT", lambda bucket: bucket.put(KEY, DATA, if_match=bucket.etag(KEY))),
    "delete": ("DELETE", lambda bucket: bucket.delete(KEY)),
}
EVERY_USE = pytest.mark.parametrize(("method", "use"), USES.values(), ids=USES)
EVERY_READ = pytest.mark.parametrize("read", [lambda bucket: bucket.get(KEY), read_opened], ids=["get", "open"])


# --- one object -----------------------------------------------------------------------------------------------------


@EVERY_USE
@pytest.mark.parametrize("fault", [SLOW_DOWN, BROKEN, dropped], ids=["throttled", "500", "dropped"])
def test_a_fault_that_passes_is_not_noticed(bucket, s3_faults, fault, method, use):
    """Throttling, server errors and lost connections are tried again, whatever was asked."""
    bucket.put(KEY, DATA)
    expected = use(bucket)
    bucket.put(KEY, DATA)
    s3_faults.plan(fault, method, KEY, times=3)
    assert use(bucket) == expected
    assert s3_faults.asked(method, KEY) >= 4


@EVERY_USE
@pytest.mark.parametrize(
    ("fault", "error"),
    [(SLOW_DOWN, ClientError), (BROKEN, ClientError), (dropped, ConnectionClosedError)],
    ids=["throttled", "500", "dropped"],
)
def test_a_fault_that_stays_is_an_error_that_names_the_object(bucket, s3_faults, *, fault, error, method, use):
    """Retries end, and the error, which a later run may not meet, says which object of which bucket it was."""
    bucket.put(KEY, DATA)
    s3_faults.behave()
    s3_faults.plan(fault, method, KEY)
    with pytest.raises(error) as caught:
        use(bucket)
    assert not isinstance(caught.value, PipelineError)
    assert bucket.url(KEY) in logged(caught.value)
    assert s3_faults.asked(method, KEY) == ATTEMPTS


def test_nobody_listens(s3_faults, s3_bucket_name, monkeypatch):
    """A server that is down is an error that names the object and may be retried."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    bucket = open_bucket(f"s3://{s3_bucket_name}")
    for use in (lambda: bucket.get(KEY), lambda: bucket.put(KEY, b""), lambda: list(bucket.list(KEY))):
        with pytest.raises(EndpointConnectionError) as error:
            use()
        assert bucket.url(KEY) in logged(error.value)


@EVERY_READ
@pytest.mark.parametrize("after_bytes", [0, 1, 70_000, len(DATA) - 1])
def test_a_body_that_is_cut_off_is_asked_for_again(bucket, s3_faults, read, after_bytes):
    """Wherever it broke off, the bytes are the object's own, once."""
    bucket.put(KEY, DATA)
    s3_faults.plan(cut_off(after_bytes), key=KEY, times=s3.READ_ATTEMPTS - 1)
    assert read(bucket) == DATA
    assert s3_faults.asked("GET", KEY) == s3.READ_ATTEMPTS


@EVERY_READ
def test_a_body_that_is_always_cut_off_is_an_error(bucket, s3_faults, read):
    """Half an object is never passed for a whole one; the error names it."""
    bucket.put(KEY, DATA)
    s3_faults.plan(cut_off(1000), key=KEY)
    with pytest.raises(IncompleteReadError) as error:
        read(bucket)
    assert bucket.url(KEY) in logged(error.value)
    assert s3_faults.asked("GET", KEY) == s3.READ_ATTEMPTS


@EVERY_READ
def test_an_error_answer_that_is_cut_off_is_asked_for_again(bucket, s3_faults, read):
    """The body of an error's answer may break off as well."""
    bucket.put(KEY, DATA)
    s3_faults.plan(lambda request, ask: cut_off(10)(request, lambda: BROKEN(request, ask)), key=KEY, times=2)
    assert read(bucket) == DATA


def test_a_parquet_column_survives_cut_off_ranges(bucket, s3_faults):
    """Reading a part of a table does not mind that each of its ranges breaks off once."""
    put_wide_table(bucket, "table.parquet")
    s3_faults.plan(cut_off(5), key="table.parquet", times=1)
    s3_faults.plan(cut_off(5), key="table.parquet", times=1, skip=2)
    with bucket.open("table.parquet") as file:
        assert pq.read_table(file, columns=["small"]).to_pydict() == {"small": list(range(1000))}


@EVERY_READ
def test_a_body_that_drips_ends(bucket, s3_faults, monkeypatch, read):
    """Bytes that come one by one keep nobody for longer than the time limit; the error names the object."""
    monkeypatch.setattr(s3, "READ_SECONDS", 0.3)
    bucket.put(KEY, DATA)
    s3_faults.plan(dripping(0.02), key=KEY)
    with pytest.raises(TimeoutError, match="of 128000 bytes arrived") as error:
        read(bucket)
    assert bucket.url(KEY) in str(error.value)
    assert error.value.__notes__ == [f"while accessing {bucket.url(KEY)}"]
    assert s3_faults.asked("GET", KEY) == 1


@EVERY_READ
def test_a_slow_body_is_waited_for(bucket, s3_faults, read):
    """A body that comes slowly, but in time, is read to its end."""
    bucket.put(KEY, DATA[:100])
    s3_faults.plan(dripping(0.003), key=KEY)
    assert read(bucket) == DATA[:100]
    assert s3_faults.asked("GET", KEY) == 1


def test_a_body_that_stops_coming_is_asked_for_again(bucket, s3_faults, monkeypatch):
    """A silent connection is given up, and the object comes through another one; if it never does, that is an error."""
    bucket.put(KEY, DATA)
    monkeypatch.setattr(s3, "READ_TIMEOUT", 0.4)
    impatient = open_bucket(bucket.uri)
    s3_faults.plan(dripping(1), key=KEY, times=1)
    assert impatient.get(KEY) == DATA
    s3_faults.behave()
    s3_faults.plan(dripping(1), key=KEY)
    with pytest.raises(Exception, match="timed out") as error:
        impatient.get(KEY)
    assert bucket.url(KEY) in logged(error.value)
    assert s3_faults.asked("GET", KEY) >= s3.READ_ATTEMPTS


def test_a_connection_is_used_again(bucket, s3_faults):
    """Reading many objects one after another does not connect for each."""
    bucket.put(KEY, DATA)
    before = s3_faults.connections
    for _ in range(10):
        assert bucket.get(KEY) == DATA
        assert read_opened(bucket) == DATA
    assert s3_faults.connections == before


def test_an_object_too_large_is_not_read(bucket, s3_faults):
    """An object above the limit is refused by the length that the server states, and never fetched."""
    bucket.put(KEY, DATA)
    s3_faults.plan(dripping(60), key=KEY)
    with pytest.raises(ObjectTooLargeError, match="128000 bytes, more than the limit of 1000") as error:
        bucket.get(KEY, limit=1000)
    assert bucket.url(KEY) in str(error.value)


@EVERY_USE
def test_a_denied_key_is_an_error_of_that_key(bucket, s3_faults, method, use):
    """Its class is another than a bad bucket's, it names the object, and the request is not repeated."""
    bucket.put(KEY, DATA)
    bucket.put("other", DATA)
    for each in {method, "GET"}:  # who may not read an object may not ask for its etag either
        s3_faults.plan(DENIED, each, KEY)
    before = s3_faults.asked(method, KEY)
    with pytest.raises(ObjectDeniedError) as error:
        use(bucket)
    assert bucket.url(KEY) in str(error.value)
    assert s3_faults.asked(method, KEY) == before + 1
    assert bucket.get("other") == DATA


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket"])
def test_what_is_wrong_for_all_objects_is_no_one_objects_error(bucket, s3_faults, code):
    """Bad credentials and a missing bucket are bad configuration."""
    s3_faults.plan(refused(404 if code == "NoSuchBucket" else 403, code))
    with pytest.raises(PipelineError, match="credentials") as error:
        bucket.get(KEY)
    assert type(error.value) is PipelineError
    assert bucket.url(KEY) in str(error.value)


@pytest.mark.parametrize("existing", [False, True])
def test_a_conditional_put_whose_answer_is_lost_has_succeeded(bucket, s3_faults, existing):
    """The put is repeated, and then meets its own object: that is no change by somebody else."""
    expected = bucket.put(KEY, b"before") if existing else ABSENT
    s3_faults.plan(lost, "PUT", KEY, times=1)
    before = s3_faults.asked("PUT", KEY)
    written = bucket.put(KEY, DATA, if_match=expected)
    assert s3_faults.asked("PUT", KEY) == before + 2
    assert bucket.get(KEY, etag=written) == DATA


def test_a_repeated_conditional_put_may_still_be_too_late(bucket, s3_faults):
    """An object that somebody else wrote while the connection was lost is left alone."""
    expected = bucket.put(KEY, b"before")
    other = open_bucket(bucket.uri)
    s3_faults.plan(lambda *_: other.put(KEY, b"theirs") and None, "PUT", KEY, times=1)
    with pytest.raises(ObjectChangedError):
        bucket.put(KEY, DATA, if_match=expected)
    assert bucket.get(KEY) == b"theirs"


@pytest.mark.parametrize("key", [*NASTY_KEYS, *DOTTED_KEYS, "a\nb"], ids=repr)
def test_a_key_is_sent_as_it_is(bucket, s3_faults, key):
    """Nothing on the way to the server takes a key's dots, slashes and escapes for something else."""
    s3_faults.plan(refused(404, "NoSuchKey"))
    with pytest.raises(ObjectNotFoundError):
        bucket.get(key)
    [request] = s3_faults.requests
    assert request.target == f"/{bucket.name}/{quote(bucket.prefix + key, safe='/-._~')}"


# --- listings -------------------------------------------------------------------------------------------------------

SEVEN = [f"{number}.jpg" for number in range(7)]


@pytest.fixture
def paged(bucket):
    """A bucket of seven objects that are listed two at a time."""
    for key in SEVEN:
        bucket.put(key, b"")
    bucket.client.meta.events.register(
        "before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=2)
    )
    return bucket


EVERY_LISTING_FAULT = pytest.mark.parametrize(
    "fault", [SLOW_DOWN, BROKEN, dropped, cut_off(300)], ids=["throttled", "500", "dropped", "cut off"]
)


@EVERY_LISTING_FAULT
def test_a_page_that_fails_is_asked_for_again(paged, s3_faults, fault):
    """A listing of many pages is complete, whatever happened to one of them on the way."""
    s3_faults.plan(fault, listings=True, skip=1, times=3)
    assert [item.key for item in paged.list()] == SEVEN
    assert s3_faults.asked(listings=True) == 4 + 3


@EVERY_LISTING_FAULT
def test_a_page_that_never_comes_is_an_error(paged, s3_faults, fault):
    """A listing does not end early as if it were complete: it raises, and names bucket and prefix."""
    s3_faults.plan(fault, listings=True, skip=2)
    with pytest.raises((ClientError, ConnectionClosedError)) as error:
        list(paged.list())
    assert paged.url("") in logged(error.value)
    assert s3_faults.asked(listings=True) == 2 + ATTEMPTS


def test_a_listing_that_goes_in_circles_ends(paged, s3_faults):
    """A server that never comes to the last page is found out."""
    pages = []

    def first_page(_, ask):
        pages.append(ask())
        return pages[0]

    s3_faults.plan(first_page, listings=True)
    with pytest.raises(PaginationError) as error:
        list(paged.list())
    assert paged.url("") in logged(error.value)


def test_a_listing_that_is_denied_is_a_persons_to_mend(bucket, s3_faults):
    """It is bad configuration, and no one object's error."""
    s3_faults.plan(DENIED, listings=True)
    with pytest.raises(PipelineError, match="credentials") as error:
        list(bucket.list("folder/"))
    assert type(error.value) is PipelineError
    assert bucket.url("folder/") in str(error.value)


# --- whole nights ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded_once(trained):
    """Load the toy world's captioner and encoder once and not for each shard; shards of captions are small."""
    with pytest.MonkeyPatch.context() as patch:
        load_once(patch)
        # The stores of these tests lack their files.
        bundle.load(trained.model.version, trained.store)
        encoder.load(trained.inputs.encoder_id, trained.store)
        patch.setattr(nights, "SHARD_FACTOR", 1)
        yield


def crowned(store, trained):
    """The store, with the toy world's model as champion."""
    toy.copy(trained.store, store, f"models/{trained.model.version}/metadata.json")
    registry.promote(trained.model.version, store)
    return store


def filled(inbox):
    """The inbox, with seven photographs, one of them damaged, some with difficult names."""
    for seed, key in enumerate(("red.jpg", "green.jpg", "blue.jpg", "more/yellow.jpg", "//100% blue + #1?.jpg")):
        inbox.put(key, toy.picture(colour_in(key), seed))
    inbox.put("more//red, déjà vu.jpg", toy.picture("red", 9))
    inbox.put("broken.jpg", toy.picture("green")[:50])
    return inbox


@pytest.fixture
def store(new_bucket, trained, loaded_once):
    """A store with a champion and no features."""
    return crowned(new_bucket(), trained)


@pytest.fixture
def inbox(new_bucket):
    """Seven photographs."""
    return filled(new_bucket())


def outcome(store):
    """The rows that nights left, in whichever shards: of each the image, its status, caption and error."""
    return sorted(
        (row["image_key"], row["image_etag"], row["status"], row["caption"] or "", row["error"] or "")
        for row in rows_in(store)
    )


def rows_of(key, store):
    """The rows of one photograph, by etag."""
    return {row["image_etag"]: row for row in rows_in(store) if row["image_key"] == key}


@pytest.fixture(scope="module")
def undisturbed(trained, loaded_once, s3_bucket_name):
    """The rows that a night leaves when nothing fails."""
    inbox, store = (open_bucket(f"s3://{s3_bucket_name}/{uuid.uuid4().hex}") for _ in range(2))
    night("n1", filled(inbox), crowned(store, trained))
    return outcome(store)


@pytest.mark.parametrize(
    ("fault", "method"),
    [(SLOW_DOWN, "GET"), (SLOW_DOWN, "PUT"), (BROKEN, "GET"), (BROKEN, "PUT"), (cut_off(40), "GET"), (lost, "PUT")],
    ids=["throttled reads", "throttled writes", "500 to reads", "500 to writes", "cut-off bodies", "lost answers"],
)
def test_a_night_through_faults_that_pass(inbox, store, undisturbed, s3_faults, *, fault, method):
    """Every request fails twice first, and the rows are those of any other night."""
    s3_faults.plan(at_first(2, fault), method)
    s3_faults.plan(at_first(2, fault), method, listings=True)

    def again():
        """The store in another process, as of each step, which has its own quota of retries."""
        return open_bucket(store.uri)

    nights.list_inbox("n1", inbox=inbox, store=again(), options=nights.NightOptions())
    extract("n1", again())
    write("n1", again())
    assert counts(reconciled("n1", again())) == (7, 0, 7, 6, 1)
    s3_faults.behave()
    assert outcome(store) == undisturbed


@pytest.mark.parametrize(
    ("method", "key", "skip", "again"),
    [
        pytest.param("GET", ".jpg", 4, "n1", id="extraction"),
        pytest.param("PUT", "/features/", 1, "n2", id="a shard of features"),
        pytest.param("GET", "/features/", 3, "n1", id="captioning"),
        pytest.param("PUT", "/captions/", 1, "n1", id="a shard of captions"),
        pytest.param("PUT", "/captions/", 2, "n2", id="a shard of captions, next night"),
        pytest.param("GET", "/captions/", 0, "n1", id="counting"),
        pytest.param("PUT", "/runs/night/n1.json", 0, "n2", id="the record"),
    ],
)
def test_a_night_that_loses_s3_is_made_up_for(inbox, store, undisturbed, s3_faults, *, method, key, skip, again):
    """Wherever S3 went away in a night, the run repeated, or the next one, leaves what an undisturbed night leaves."""

    def outage(*_):
        for verb in ("GET", "HEAD", "PUT", "DELETE"):
            s3_faults.plan(dropped, verb)
        s3_faults.plan(dropped, listings=True)

    s3_faults.plan(outage, method, key, skip=skip, times=1)
    with pytest.raises(ConnectionClosedError) as error:
        night("n1", inbox, store)
    assert f"while accessing s3://{store.name}/" in logged(error.value)
    s3_faults.behave()
    night(again, inbox, store)
    assert outcome(store) == undisturbed


def test_a_photograph_replaced_while_the_night_runs(inbox, store, s3_faults):
    """It is not captioned under the etag of what it was, and the next night captions what it is."""
    listed = inbox.etag("red.jpg")
    s3_faults.plan(after(lambda: inbox.put("red.jpg", toy.picture("yellow", 50))), key="/red.jpg", times=1)
    assert counts(night("n1", inbox, store, max_failed_fraction=0.5)) == (7, 0, 7, 5, 1)
    [row] = rows_of("red.jpg", store).values()
    assert (row["image_etag"], row["status"], row["caption"]) == (listed, "failed", None)
    assert "removed or replaced" in row["error"]

    night("n2", inbox, store, date="2026-01-03")
    rows = rows_of("red.jpg", store)
    assert rows.keys() == {listed, inbox.etag("red.jpg")}
    assert colour_in(rows[inbox.etag("red.jpg")]["caption"]) == "yellow"


def test_a_photograph_replaced_while_it_is_read(inbox, store, s3_faults):
    """Where its bytes break off and another photograph has replaced it by then, the two are not mixed."""
    listed = inbox.etag("red.jpg")

    def replaced_halfway(request, ask):
        answer = cut_off(100)(request, ask)
        inbox.put("red.jpg", toy.picture("yellow", 50))
        return answer

    s3_faults.plan(replaced_halfway, key="/red.jpg", times=1)
    night("n1", inbox, store, max_failed_fraction=0.5)
    assert rows_of("red.jpg", store)[listed]["status"] == "failed"


def test_a_photograph_deleted_while_the_night_runs(inbox, store, s3_faults):
    """It gets a failed row that says so, and the others their captions."""
    s3_faults.plan(after(lambda: inbox.delete("red.jpg")), key="/red.jpg", times=1)
    assert counts(night("n1", inbox, store, max_failed_fraction=0.5)) == (7, 0, 7, 5, 1)
    [row] = rows_of("red.jpg", store).values()
    assert (row["status"], row["caption"]) == ("failed", None)
    assert "removed or replaced" in row["error"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (DENIED, "access denied (AccessDenied); grant read access to it"),
        (refused(400, "InvalidRequest"), "refused (InvalidRequest); if it is encrypted"),
        (refused(400, "KMS.DisabledException"), "its encryption key can't be used (KMS.DisabledException)"),
    ],
    ids=["denied", "SSE-C", "KMS"],
)
def test_a_photograph_that_is_refused(inbox, store, s3_faults, fault, error):
    """It gets a failed row that says so, and the others of its shard their captions."""
    s3_faults.plan(fault, key="/red.jpg")
    assert counts(night("n1", inbox, store, max_failed_fraction=0.5)) == (7, 0, 7, 5, 2)
    [row] = rows_of("red.jpg", store).values()
    assert (row["status"], row["caption"]) == ("failed", None)
    assert row["error"].startswith(error)


def test_photographs_that_are_archived(inbox, store, s3_faults):
    """They fail no night, however many they are, and are captioned in the first one after they were restored."""
    for key in ("/red.jpg", "/green.jpg", "/blue.jpg"):
        s3_faults.plan(refused(403, "InvalidObjectState"), key=key)
    for run in ("n1", "n2"):
        record = night(run, inbox, store)
        assert record.status == "succeeded"
        assert record.errors[ARCHIVED] == 3
    s3_faults.behave()
    assert counts(night("n3", inbox, store)) == (7, 4, 3, 3, 0)


def test_a_night_on_a_stale_listing(inbox, store, trained, s3_faults):
    """An image that is gone fails under its old etag; one that it hides is captioned when a later listing shows it."""
    s3_faults.plan(stale(), key=inbox.prefix, listings=True)
    before = {item.key: item.etag for item in inbox.list()}
    inbox.put("red.jpg", toy.picture("yellow", 50))
    inbox.delete("blue.jpg")
    inbox.put("green, new.jpg", toy.picture("green", 51))
    record = night("n1", inbox, store)
    assert (counts(record), record.gone) == ((7, 0, 7, 4, 1), 2)
    for key in ("red.jpg", "blue.jpg"):
        [row] = rows_of(key, store).values()
        assert (row["image_etag"], row["status"]) == (before[key], "failed")

    s3_faults.behave()
    assert counts(night("n2", inbox, store, date="2026-01-03")) == (7, 5, 2, 2, 0)
    assert not photographs(inbox, trained.model.version) - identities(rows_in(store))
    assert colour_in(rows_of("red.jpg", store)[inbox.etag("red.jpg")]["caption"]) == "yellow"
    assert colour_in(rows_of("green, new.jpg", store)[inbox.etag("green, new.jpg")]["caption"]) == "green"


def test_a_command_that_may_not_read_an_object(s3_faults, s3_bucket_name):
    """The command line, in a process of its own, names the object, and fails as one that a person has to mend."""
    store = f"s3://{s3_bucket_name}/{uuid.uuid4().hex}"
    for method in ("GET", "HEAD"):
        s3_faults.plan(DENIED, method, "models/champion.json")
    child = subprocess.run(
        [sys.executable, "-m", "pipeline", "night", "list", "n1"],
        env={**os.environ, "CAPTION_STORE": store},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 2, child.stderr
    assert f"error: {store}/models/champion.json: " in child.stderr
