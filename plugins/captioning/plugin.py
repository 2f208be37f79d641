"""The plugins of Airflow: the gallery in the navigation, and the listeners of runs.

Airflow imports this module in each of its parts, in every task's process too, so it imports as little as it can.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from captioning import pools, run_notes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

PREFIX = "/captions"
"""The path of the gallery in Airflow's API server."""


async def gallery(scope: Scope, receive: Receive, send: Send) -> None:
    """The gallery as an ASGI application, imported on the first request."""
    from captioning.gallery.app import app

    await app(scope, receive, send)


class AddSlash:
    """Redirects from the gallery's path without its last slash, which Airflow's own pages would answer."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or hand it on."""
        if scope["type"] != "http" or scope["path"] != scope.get("root_path", "") + PREFIX:
            await self.app(scope, receive, send)
            return
        # Relative, because a proxy may have changed what is before it.
        location = f"{PREFIX.removeprefix('/')}/".encode()
        if query := scope["query_string"]:
            location += b"?" + query
        await send({"type": "http.response.start", "status": 307, "headers": [(b"location", location)]})
        await send({"type": "http.response.body"})


class GalleryPlugin(AirflowPlugin):
    """Mounts the gallery at ``PREFIX`` and adds it to the navigation."""

    name = "captioning_gallery"
    fastapi_apps: list[Any] = [{"app": gallery, "url_prefix": PREFIX, "name": "Captions"}]  # noqa: RUF012 - as Airflow declares it
    fastapi_root_middlewares: list[Any] = [{"middleware": AddSlash, "name": "Captions"}]  # noqa: RUF012 - as Airflow declares it
    external_views: list[Any] = [  # noqa: RUF012 - as Airflow declares it
        {
            "name": "Captions",
            "href": "captions/",
            "destination": "nav",
            "url_route": "captions",
            "icon": "captions/static/icon.svg",
            "icon_dark_mode": "captions/static/icon-dark.svg",
            "nav_top_level": True,
        }
    ]


class RunNotesPlugin(AirflowPlugin):
    """Registers the listeners: of runs that start, for the pool, and of runs that have ended, for their notes."""

    name = "captioning_run_notes"
    listeners: list[Any] = [pools, run_notes]  # noqa: RUF012 - as Airflow declares it
