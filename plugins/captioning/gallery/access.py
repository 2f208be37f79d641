"""Access to the gallery: Airflow's login and permissions, posts from its own pages only, and bounded uploads."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated
from urllib.parse import urlsplit

from airflow.sdk import conf
from fastapi import Depends, HTTPException, Request, status
from fastapi.security import HTTPAuthorizationCredentials
from starlette.requests import ClientDisconnect

from captioning.internals import (
    BaseUser,
    DagAccessEntity,
    DagDetails,
    GetUserDep,
    bearer_scheme,
    get_auth_manager,
    get_user,
    requires_access_dag,
)
from captioning.settings import read_settings
from pipeline.data.images import MAX_BYTES, TOO_LARGE

UPLOADS = 8
"""Uploads that are received and processed at a time."""

UPLOAD_SECONDS = 60
"""Time limit for receiving an upload."""

Token = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer_scheme)]
"""The token that a program sends, if it does; Airflow then ignores the login's cookie."""


async def require_login(request: Request, token: Token) -> None:
    """Refuse requests without a valid login.

    Airflow answers a cookie that it did not sign as it answers a user without permission, but only a new login helps.

    Raises:
        HTTPException: there is no login, or it is not valid any more (401).
    """
    try:
        await get_user(request, None, token)
    except HTTPException as error:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, error.detail) from error


def _require_access_to_nights(request: Request, user: GetUserDep) -> None:
    requires_access_dag("GET", param_dag_id=read_settings().night_dag)(request, user)


def _require_trigger_of_nights(request: Request, user: GetUserDep) -> None:
    requires_access_dag("POST", DagAccessEntity.RUN, read_settings().night_dag)(request, user)


def _require_trigger_of_retrainings(request: Request, user: GetUserDep) -> None:
    requires_access_dag("POST", DagAccessEntity.RUN, read_settings().retraining_dag)(request, user)


can_view = Depends(_require_access_to_nights)
"""Users who can see the DAG of nights can see its captions."""

can_trigger = Depends(_require_trigger_of_nights)
"""Users who can trigger the DAG of nights can caption uploads and save corrections."""


can_promote = (can_trigger, Depends(_require_trigger_of_retrainings))
"""Users who can trigger the DAGs of nights and retrainings can choose the champion: a retraining does so, too."""


def user_can_trigger(user: BaseUser) -> bool:
    """Whether ``can_trigger`` admits the user."""
    return _can_trigger(read_settings().night_dag, user)


def user_can_promote(user: BaseUser) -> bool:
    """Whether ``can_promote`` admits the user."""
    settings = read_settings()
    return all(_can_trigger(dag_id, user) for dag_id in (settings.night_dag, settings.retraining_dag))


def _can_trigger(dag_id: str, user: BaseUser) -> bool:
    return get_auth_manager().is_authorized_dag(
        method="POST", access_entity=DagAccessEntity.RUN, details=DagDetails(id=dag_id), user=user
    )


_upload_slots = asyncio.Semaphore(UPLOADS)


def require_same_origin(request: Request, token: Token) -> None:
    """Refuse requests that another site makes a browser send, because the login's cookie is sent with them.

    A browser states the origin of a request, and no page can change that. A program that authenticates with a token
    states no origin, and needs none: no browser adds a token by itself, as it does a password.

    Raises:
        HTTPException: the request comes from another site (403).
    """
    if token:
        return
    site = request.headers.get("sec-fetch-site")
    # Browsers omit this header where the connection is neither encrypted nor local.
    if site != "same-origin" and (site or request.headers.get("origin") not in _own_origins(request)):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "This request came from another site: use the page itself.")


def _own_origins(request: Request) -> set[str]:
    """Origins of the gallery's pages: the host of the request and, since a proxy may change it, ``[api] base_url``."""
    host = request.headers.get("host", "")
    base = urlsplit(conf.get("api", "base_url", fallback="").lower())
    # A browser leaves out the default port.
    base_host = base.netloc.removesuffix({"http": ":80", "https": ":443"}.get(base.scheme, ""))
    # A proxy may also end the encryption.
    return {f"http://{host}", f"https://{host}", f"{base.scheme}://{base_host}"}


async def read_upload(request: Request) -> AsyncIterator[bytes]:
    """The body of a request, an image, bounded in size and time. Its slot is held until the request is answered.

    Raises:
        HTTPException: it is too large (413), arrives too slowly (408), breaks off (400), or there are too many at a
            time (503).
    """
    if _upload_slots.locked():
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, "Too many uploads at a time: try again in a moment.")
    async with _upload_slots:
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                data = await _read_bounded(request)
        except TimeoutError:
            raise HTTPException(
                status.HTTP_408_REQUEST_TIMEOUT, f"The picture did not arrive within {UPLOAD_SECONDS} seconds."
            ) from None
        except ClientDisconnect:
            raise HTTPException(status.HTTP_400_BAD_REQUEST, "The upload broke off.") from None
        yield data


async def _read_bounded(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise HTTPException(
                status.HTTP_413_CONTENT_TOO_LARGE, f"The picture can't be captioned: it is {TOO_LARGE}."
            )
    return bytes(data)
