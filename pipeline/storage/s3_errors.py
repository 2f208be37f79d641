"""Errors of S3: which pass by themselves, which concern the settings, and which concern one object.

Services other than Amazon's use the same codes, and add some of their own.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

ORIGIN = "captioning_origin"
"""Option of a profile, of which AWS knows nothing: what the profile was made from, for error messages."""

_ENVIRONMENT = "in the environment (AWS_ENDPOINT_URL, AWS_…)"

ADVICE = f"Check the bucket's name, and the endpoint and the credentials {_ENVIRONMENT}."

ARCHIVED = "InvalidObjectState"
"""The code for an object that must be restored first."""

_OF_ONE_OBJECT = {"GetObject", "HeadObject", "PutObject", "DeleteObject"}

_DENIED = {"AccessDenied", "403"}

_PASSING_STATUSES = {307, 408, 425, 429, 499}

_PASSING_CODES = re.compile(
    "Throttl|SlowDown|TooManyRequests|LimitExceeded|Busy|Unavailable|Internal|Time[Oo]ut"
    "|ExpiredToken|TokenRefreshRequired|IncompleteBody|BadDigest|OperationAborted"
)
"""Throttling, the network, and temporary credentials, which are renewed."""

_SETTINGS_STATUSES = {301, 302, 303, 308, 401, 405, 407, 501}

_CLOCK = "Set the clock of this machine: it differs too much from the service's."

_REGION = "Set AWS_DEFAULT_REGION to the region of the bucket, and AWS_ENDPOINT_URL to its service."

_SETTINGS_CODES = {
    "400": ADVICE,  # S3 gives a code: this is the answer of something else
    "AccountProblem": ADVICE,
    "AllAccessDisabled": ADVICE,
    "AuthorizationHeaderMalformed": _REGION,
    "CredentialsNotSupported": ADVICE,
    "ExpiredRequest": _CLOCK,
    "IllegalLocationConstraintException": _REGION,
    "IncorrectEndpoint": _REGION,
    "InvalidAccessKeyId": ADVICE,
    "InvalidAccessPointAliasError": ADVICE,
    "InvalidBucketName": ADVICE,
    "InvalidClientTokenId": ADVICE,
    "InvalidRegionName": _REGION,
    "InvalidSecurity": ADVICE,
    "InvalidToken": ADVICE,
    "MissingSecurityHeader": ADVICE,
    "NoSuchAccessPoint": ADVICE,
    "NoSuchBucket": ADVICE,
    "NotEntitled": ADVICE,
    "NotSignedUp": ADVICE,
    "PermanentRedirect": _REGION,
    "RequestExpired": _CLOCK,
    "RequestTimeTooSkewed": _CLOCK,
    "SignatureDoesNotMatch": ADVICE,
    "UnrecognizedClientException": ADVICE,
}
"""Codes that every request meets until a person corrects the settings, and what to correct."""

_CA = "Set AWS_CA_BUNDLE to a file with the certificate of the CA that signed the endpoint's."

_TLS = {
    "CERTIFICATE_VERIFY_FAILED": _CA,
    "[Errno 2]": _CA,  # there is no such file
    "[X509": _CA,  # it is of another kind
    "WRONG_VERSION_NUMBER": "The endpoint does not speak TLS: begin AWS_ENDPOINT_URL with http://.",
}
"""Failures of TLS that stay, by what is in their message, and what to correct; others are of the network."""


def naming_origin(message: str, origin: str) -> str:
    """A message about wrong settings that blames what they come from, such as a connection, not the environment."""
    if not origin or "AWS_" not in message:
        return message
    if _ENVIRONMENT in message:
        return message.replace(_ENVIRONMENT, f"of {origin}")
    return f"{message} Here, {origin} sets that."


def code(error: "ClientError") -> str:
    """The code of an answer; its status if it has none, as the answer to a HEAD."""
    return str(error.response.get("Error", {}).get("Code", ""))


def concerns_object(error: "ClientError") -> bool:
    """Whether one object was asked for, and not a listing, or credentials."""
    return error.operation_name in _OF_ONE_OBJECT


def may_pass(error: "ClientError") -> bool:
    """Whether the same request may succeed later although nobody does anything."""
    status = _status(error)
    return (status >= 500 and status != 501) or status in _PASSING_STATUSES or bool(_PASSING_CODES.search(code(error)))


def advice_on_settings(error: "ClientError") -> str | None:
    """What to correct in the settings; ``None`` if the answer concerns only the object that was asked for."""
    if not concerns_object(error) or _status(error) in _SETTINGS_STATUSES:
        return _SETTINGS_CODES.get(code(error), ADVICE)
    return _SETTINGS_CODES.get(code(error))


def advice_on_object(error: "ClientError") -> str:
    """What to do if an object is refused that is needed."""
    if code(error) == ARCHIVED:
        return "It is archived: restore it first."
    if code(error) in _DENIED:
        return f"{ADVICE} Without s3:ListBucket, access is also denied if there is no such object."
    return ADVICE


def reason(error: "ClientError") -> str:
    """Why an object is refused and what to do, by kind: it has neither the object's name nor the request's id."""
    kind, message = code(error), error.response.get("Error", {}).get("Message") or ""
    if kind == ARCHIVED:
        return f"archived ({kind}); restore it"
    if kind.startswith("KMS.") or "kms:" in message.lower():
        return f"its encryption key can't be used ({kind}); enable it or grant kms:Decrypt, and retry failed images"
    if kind in _DENIED:
        return f"access denied ({kind}); grant read access to it, and retry failed images"
    if kind in ("InvalidRequest", "InvalidArgument"):
        return f"refused ({kind}); if it is encrypted with a key of its owner's (SSE-C), store it without"
    return f"refused ({kind}); remove it, or make it readable and retry failed images"


def wrong_settings(error: Exception) -> str | None:
    """What is wrong with the settings and what to do, if no request could be sent; ``None`` if that may pass."""
    from botocore import exceptions

    passing = (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.PaginationError,
        exceptions.CredentialRetrievalError,
        exceptions.MetadataRetrievalError,
        exceptions.TokenRetrievalError,
    )
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, KeyError):
        return f"the answer has no {text}, and so is not one of S3. {ADVICE}"
    if isinstance(error, exceptions.HTTPClientError) and isinstance(error.kwargs.get("error"), ValueError):
        return f"a key or a token contains a character that can't be sent, such as a line break. {ADVICE}"
    advice = None
    if isinstance(error, exceptions.SSLError):
        advice = next((_TLS[sign] for sign in _TLS if sign in text), None)
    elif isinstance(error, exceptions.SSOError | exceptions.LoginError):
        advice = "Log in (aws sso login, aws login), or set keys that do not end with a session."
    elif isinstance(error, exceptions.BotoCoreError | ValueError) and not isinstance(error, passing):
        advice = ADVICE
    return advice and f"{text}. {advice}"


def _status(error: "ClientError") -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
