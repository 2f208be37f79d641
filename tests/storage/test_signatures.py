"""Signatures: which documents are read, with which keys, and what is remembered of them."""

import stat
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pipeline.errors import PipelineError
from pipeline.storage import ObjectChangedError, json, layout, open_bucket, signatures
from pipeline.storage.signatures import SignatureError, check_counter, highest_counter
from tests.support.signing import Keys

KEY = layout.model_metadata("v1")


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """A pair of keys, with which documents are signed and verified."""
    keys = Keys.make(tmp_path / "keys", monkeypatch)
    keys.use(sign=True, verify=True)
    return keys


def signatures_in(store):
    """The keys of all signatures."""
    return [item.key for item in store.list() if item.key.endswith(".sig")]


def test_without_keys_nothing_is_signed(bucket):
    """As long as no setting names a key, documents are written and read as before."""
    signatures.put(KEY, b"{}", bucket)
    assert signatures.get(KEY, bucket) == b"{}"
    assert [item.key for item in bucket.list()] == [KEY]


def test_a_signed_document_is_read(bucket, keys):
    """It is, with and without a public key, and as long as it is as it was written."""
    signatures.put(KEY, b"{}", bucket)
    assert signatures.get(KEY, bucket) == b"{}"
    [place] = signatures_in(bucket)
    assert len(bucket.get(place)) == 64
    signatures.put(KEY, b"[]", bucket)
    assert signatures.get(KEY, bucket) == b"[]"
    assert len(signatures_in(bucket)) == 2


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (
            lambda store, place: store.put(KEY, b"[]"),
            r"is not signed as it is: there is no .*\.sig\. It was",
        ),
        (lambda store, place: store.delete(place), "is not signed as it is: there is no "),
        (lambda store, place: store.put(place, bytes(64)), "is not signed with a key of CAPTION_VERIFY_KEY: "),
        (lambda store, place: store.put(place, b""), "is not signed with a key of CAPTION_VERIFY_KEY: "),
        (
            lambda store, place: store.put(place, store.get(place)[:-1] + bytes([store.get(place)[-1] ^ 1])),
            "is not signed with a key of CAPTION_VERIFY_KEY: ",
        ),
    ],
    ids=["document", "no signature", "zeros", "empty", "a bit"],
)
def test_what_was_changed_is_refused(bucket, keys, tamper, why):
    """The error names the document, says why, and what to do."""
    signatures.put(KEY, b"{}", bucket)
    [place] = signatures_in(bucket)
    tamper(bucket, place)
    with pytest.raises(SignatureError, match=rf"{KEY} {why}.*Restore it from a backup\..* `captioning sign`"):
        signatures.get(KEY, bucket)
    assert bucket.get(KEY) == signatures.get(KEY, bucket, verify=False)


def test_a_document_can_not_take_the_place_of_another(bucket, keys):
    """A signature fits its key alone: an old model is not the champion because it was signed once."""
    other = layout.model_metadata("v2")
    signatures.put(KEY, b"{}", bucket)
    signatures.put(other, b"[]", bucket)
    bucket.put(other, bucket.get(KEY))
    first = next(place for place in signatures_in(bucket) if place.startswith("models/v1/"))
    bucket.put(first.replace("v1", "v2"), bucket.get(first))
    with pytest.raises(SignatureError, match=r"models/v2/metadata\.json is not signed with a key"):
        signatures.get(other, bucket)


def test_a_document_that_is_missing_is_missing(bucket, keys):
    """That is no matter of signatures: a reader says of what there is none."""
    with pytest.raises(PipelineError, match="There is no object") as raised:
        signatures.get(KEY, bucket)
    assert not isinstance(raised.value, SignatureError)


def test_a_write_that_comes_too_late(bucket, keys):
    """Its signature is there, but the document of the other writer stays, and is read."""
    signatures.put(KEY, b"{}", bucket)
    with pytest.raises(ObjectChangedError):
        signatures.put(KEY, b"[]", bucket, if_match="another")
    assert signatures.get(KEY, bucket) == b"{}"


def test_keys_are_replaced(bucket, keys, tmp_path, monkeypatch):
    """While both public keys are trusted, both signatures are; afterwards only what was signed again."""
    signatures.put(KEY, b"{}", bucket)
    new = Keys.make(tmp_path / "new", monkeypatch)
    new.use(sign=True, verify=True)
    with pytest.raises(SignatureError, match="is by another key, or damaged"):
        signatures.get(KEY, bucket)
    monkeypatch.setenv("CAPTION_VERIFY_KEY", f"{new.public}, {keys.public}")
    assert signatures.get(KEY, bucket) == b"{}"
    signatures.sign(KEY, bucket)
    new.use(verify=True)
    assert signatures.get(KEY, bucket) == b"{}"


def test_who_verifies_signs(bucket, keys):
    """Without the private key nothing is written that nobody here could read."""
    keys.use(verify=True)
    with pytest.raises(PipelineError, match=r"^Can't write .*\.json: CAPTION_VERIFY_KEY is set.*machine that has"):
        signatures.put(KEY, b"{}", bucket)
    assert list(bucket.list()) == []
    bucket.put(KEY, b"{}")
    with pytest.raises(PipelineError, match=r"CAPTION_SIGNING_KEY names no private key.*`captioning make-keys FOLDER`"):
        signatures.sign(KEY, bucket)


def test_a_pair_of_keys(tmp_path):
    """Only its owner can read the private one, and neither is overwritten."""
    private, public = signatures.make_keys(tmp_path / "a" / "b")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"PUBLIC" in public.read_bytes()
    for path in (private, public):
        path.unlink()
        (tmp_path / "a" / "b" / "other").touch()
        with pytest.raises(PipelineError, match=r"\.pem exists, and what it has signed would be worth nothing"):
            signatures.make_keys(tmp_path / "a" / "b")
        path.touch()


def rsa_key(path):
    """A private key of another kind."""
    key = rsa.generate_private_key(65537, 2048)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "can't be read: No such file or directory"),
        (lambda path: path.write_bytes(b"secret"), "is not a (private|public) key of Ed25519 in PEM"),
        (rsa_key, "is not a (private|public) key of Ed25519 in PEM"),
    ],
    ids=["missing", "no key", "RSA"],
)
def test_a_wrong_key_is_an_error(bucket, keys, tmp_path, make, why):
    """The error names the setting and the file, and repeats nothing of its content."""
    signatures.put(KEY, b"{}", bucket)
    wrong = tmp_path / "wrong.pem"
    make(wrong)
    keys = replace(keys, private=wrong, public=wrong)
    keys.use(sign=True)
    with pytest.raises(PipelineError, match=rf"^CAPTION_SIGNING_KEY: .*wrong\.pem {why}") as raised:
        signatures.put(KEY, b"{}", bucket)
    assert "secret" not in str(raised.value)
    keys.use(verify=True)
    with pytest.raises(PipelineError, match=rf"^CAPTION_VERIFY_KEY: .*wrong\.pem {why}"):
        signatures.get(KEY, bucket)


@pytest.fixture
def state(new_bucket, monkeypatch):
    """The bucket of the file that remembers the counters, in which there is none yet."""
    place = new_bucket()
    monkeypatch.setenv("CAPTION_VERIFY_STATE", place.url("verified.json"))
    return place


def test_counters_are_remembered(bucket, new_bucket, state):
    """Each store has one of its own; it never falls, and the error of a lower one says what to do."""
    other = new_bucket()
    assert highest_counter(KEY, bucket) == 0
    for store, counter in ((bucket, 5), (other, 3), (bucket, 7), (bucket, 6)):
        check_counter(counter, 0, KEY, store)
    assert (highest_counter(KEY, bucket), highest_counter(KEY, other)) == (7, 3)
    check_counter(7, 7, KEY, bucket)
    for counter, why in ((6, "is older than one seen here: its counter is 6, not 7"), (0, "is missing")):
        with pytest.raises(SignatureError, match=rf"metadata\.json {why}; .*from a backup; or run `captioning sign`"):
            check_counter(counter, 7, KEY, bucket)
    assert highest_counter(KEY, bucket) == 7


def test_two_processes_remember_at_the_same_time(bucket, new_bucket, state, monkeypatch):
    """Neither loses what the other has remembered."""
    other, write = new_bucket(), json.write

    def write_after_another(document, *arguments, **options):
        monkeypatch.setattr(json, "write", write)
        check_counter(9, 0, KEY, other)
        write(document, *arguments, **options)

    monkeypatch.setattr(json, "write", write_after_another)
    check_counter(5, 0, KEY, bucket)
    assert (highest_counter(KEY, bucket), highest_counter(KEY, other)) == (5, 9)


def test_what_can_not_be_remembered_is_an_error(bucket, tmp_path, monkeypatch):
    """So is a setting that is missing, and a file of something else."""
    monkeypatch.setenv("CAPTION_VERIFY_STATE", "")
    with pytest.raises(PipelineError, match="CAPTION_VERIFY_STATE is not: name a file outside the store"):
        highest_counter(KEY, bucket)
    monkeypatch.setenv("CAPTION_VERIFY_STATE", "/proc/no/such/file")
    with pytest.raises(PipelineError, match=r"can't be remembered in /proc/no/such/file: .*Set CAPTION_VERIFY_S"):
        check_counter(5, 0, KEY, bucket)
    open_bucket(str(tmp_path)).put("wrong.json", b"[]")
    monkeypatch.setenv("CAPTION_VERIFY_STATE", str(tmp_path / "wrong.json"))
    with pytest.raises(PipelineError, match=r"wrong\.json is damaged.*Delete .*wrong\.json, if nobody can have"):
        highest_counter(KEY, bucket)
