"""Signatures: documents that are read only if somebody has signed them who holds a trusted key (Ed25519).

Signed are the documents on which it depends what is loaded: those with the checksums of all files of an encoder or of a
model, and the pointer to the champion. ``CAPTION_SIGNING_KEY`` names the private key of a process that writes them, and
``CAPTION_VERIFY_KEY`` the public keys of one that reads them. Without the latter nothing is verified.

A signature is an object of 64 bytes. It covers the key and the bytes of its document, so no document can take the place
of another, and its name holds the beginning of the document's checksum. It is therefore written before the document,
and of two processes that write a document at the same time, each has a signature of its own.

A signature alone does not tell an old document from the newest. The pointer to the champion therefore has a counter,
and each machine remembers the highest one that it has seen, in a file outside the store (``CAPTION_VERIFY_STATE``).
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.settings import read_settings
from pipeline.storage import (
    Bucket,
    DamagedObjectError,
    ObjectChangedError,
    ObjectDeniedError,
    ObjectNotFoundError,
    json,
    layout,
    open_object,
)
from pipeline.storage.bucket import read_version

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PURPOSE = b"image-captioning-pipeline\n"
"""Begins all that is signed, so that no signature for another purpose fits."""

PRIVATE, PUBLIC = "signing.pem", "verify.pem"
"""The files of a pair of keys."""


class SignatureError(DamagedObjectError):
    """No trusted key has signed the object as it is, or it is older than one that was seen here."""


def get(key: str, store: Bucket, *, etag: str | None = None, verify: bool = True) -> bytes:
    """A document's bytes, verified if the settings name a public key.

    Args:
        key: of the document.
        store: where it is.
        etag: the version that is expected.
        verify: whether it is verified at all.

    Raises:
        SignatureError: no trusted key has signed it.
        PipelineError: a public key can't be read.
        ObjectNotFoundError: there is no such document.
        ObjectChangedError: it does not have this etag any more.
    """
    data = store.get(key, etag=etag)
    if verify and is_verifying():
        _verify(key, data, store)
    return data


def put(key: str, data: bytes, store: Bucket, *, if_match: str | None = None) -> None:
    """Write a document, after its signature if the settings name a private key.

    Raises:
        PipelineError: the settings name a public key and no private key, or one that can't be read.
        ObjectChangedError: the document's etag is not ``if_match``.
    """
    require_signing_key(f"write {store.url(key)}")
    if read_settings().signing_key:
        _sign(key, data, store)
    store.put(key, data, if_match=if_match)


def sign(key: str, store: Bucket) -> None:
    """Sign a document that is in the store already. Raises ``PipelineError`` if no private key can be read."""
    _sign(key, store.get(key), store)


def copy_signature(key: str, data: bytes, source: Bucket, target: Bucket) -> int:
    """Copy the signature of a document, if it has one that the target lacks; return the number of objects written."""
    place = layout.signature(key, _checksum(data))
    try:
        signature = source.get(place)
    except ObjectNotFoundError:
        return 0
    if target.exists(place) and target.get(place) == signature:
        return 0
    target.put(place, signature)
    return 1


def is_verifying() -> bool:
    """Whether the settings name a public key."""
    return bool(read_settings().verify_key)


def require_signing_key(action: str) -> None:
    """Raise ``PipelineError`` if the settings ask for signatures and name no private key; ``action`` as "promote x"."""
    settings = read_settings()
    if settings.verify_key and not settings.signing_key:
        raise PipelineError(
            f"Can't {action}: CAPTION_VERIFY_KEY is set, so what is written here must be signed, and "
            "CAPTION_SIGNING_KEY names no private key. Do it on a machine that has the key, or set the variable."
        )


def highest_counter(key: str, store: Bucket) -> int:
    """The highest counter of a document that was seen here, or 0. Raises ``PipelineError`` if it can't be read."""
    return _read_counters()[0].get(_place(key, store), 0)


def check_counter(counter: int, seen: int, key: str, store: Bucket) -> None:
    """Refuse a verified document that is older than one seen before, and remember it otherwise.

    Args:
        counter: of the document; 0 if it is missing.
        seen: the highest counter that was seen before the document was read.
        key: of the document.
        store: where it is.

    Raises:
        SignatureError: the counter is lower.
        PipelineError: it can't be remembered.
    """
    uri = read_settings().verify_state
    if counter < seen:
        what = f"is older than one seen here: its counter is {counter}, not {seen}" if counter else "is missing"
        raise SignatureError(
            f"{store.url(key)} {what}; somebody may have put an old one back, or removed it. Restore the newest one "
            "from a backup; or run `captioning sign`, if you restored the whole store yourself; or remove its line "
            f"from {uri}, if this is a new store."
        )
    place = _place(key, store)
    state, name = open_object(uri)
    while counter > seen:
        counters, etag = _read_counters()
        if (seen := counters.get(place, 0)) >= counter:
            return
        try:
            # If another process writes at the same time, the next round sees what it has written.
            with contextlib.suppress(ObjectChangedError):
                json.write({**counters, place: counter}, name, state, if_match=etag)
        except (OSError, ObjectDeniedError) as error:
            raise PipelineError(
                f"The counter of {store.url(key)} can't be remembered in {uri}: {error} Set CAPTION_VERIFY_STATE to a "
                "file outside the store that can be written."
            ) from error


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Make a pair of keys, as the files ``PRIVATE`` and ``PUBLIC`` in PEM, and return their paths.

    Raises:
        PipelineError: one of the files exists.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = folder / PRIVATE, folder / PUBLIC
    if found := [path for path in (private, public) if path.exists()]:
        raise PipelineError(f"{found[0]} exists, and what it has signed would be worth nothing: name another folder.")
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    folder.mkdir(parents=True, exist_ok=True)
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with open(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def _read_counters() -> tuple[dict[str, int], str]:
    """The highest counters by document, and the etag of the file that holds them."""
    if not (uri := read_settings().verify_state):
        raise PipelineError(
            "CAPTION_VERIFY_KEY is set, and CAPTION_VERIFY_STATE is not: name a file outside the store in which the "
            "champion's counter is remembered, so that no old champion is accepted."
        )
    state, name = open_object(uri)
    advice = f"Delete {uri}, if nobody can have tampered with the store; the next pointer that is read counts then."

    def read(etag: str) -> dict[str, int]:
        return json.read(dict[str, int], name, state, etag=etag, advice=advice)

    counters, etag = read_version(read, name, state)
    return counters or {}, etag


def _place(key: str, store: Bucket) -> str:
    return f"{store.location}/{key}"


def _sign(key: str, data: bytes, store: Bucket) -> None:
    store.put(layout.signature(key, _checksum(data)), _private_key().sign(_message(key, data)))


def _verify(key: str, data: bytes, store: Bucket) -> None:
    from cryptography.exceptions import InvalidSignature

    place = layout.signature(key, _checksum(data))
    advice = (
        "Restore it from a backup. If you know that nobody has tampered with it, run `captioning sign` on the machine "
        "that has the private key."
    )
    try:
        signature = store.get(place)
    except ObjectNotFoundError:
        raise SignatureError(
            f"{store.url(key)} is not signed as it is: there is no {store.url(place)}. It was changed, or written "
            f"without CAPTION_SIGNING_KEY. {advice}"
        ) from None
    for trusted in _public_keys():
        try:
            return trusted.verify(signature, _message(key, data))
        except InvalidSignature:
            continue
    raise SignatureError(
        f"{store.url(key)} is not signed with a key of CAPTION_VERIFY_KEY: {store.url(place)} is by another key, or "
        f"damaged. {advice}"
    )


def _message(key: str, data: bytes) -> bytes:
    return PURPOSE + key.encode() + b"\n" + data


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _private_key() -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if not (file := read_settings().signing_key):
        raise PipelineError(
            "CAPTION_SIGNING_KEY names no private key to sign with: `captioning make-keys FOLDER` makes one."
        )
    try:
        key = load_pem_private_key(_read("CAPTION_SIGNING_KEY", file), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # whose messages may repeat the file
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise PipelineError(
            f"CAPTION_SIGNING_KEY: {file} is not a private key of Ed25519 in PEM, without a password. "
            "`captioning make-keys FOLDER` makes one."
        )
    return key


def _public_keys() -> Sequence["Ed25519PublicKey"]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found = []
    for file in filter(None, map(str.strip, read_settings().verify_key.split(","))):
        try:
            key = load_pem_public_key(_read("CAPTION_VERIFY_KEY", file))
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise PipelineError(
                f"CAPTION_VERIFY_KEY: {file} is not a public key of Ed25519 in PEM, such as the {PUBLIC} that "
                "`captioning make-keys FOLDER` makes."
            )
        found.append(key)
    return found


def _read(variable: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise PipelineError(
            f"{variable}: {file} can't be read: {error.strerror}. Correct the path, or its mode."
        ) from error
