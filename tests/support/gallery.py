"""The routes of the gallery, for tests that visit each of them."""

PAGES = (
    "/",
    "/?status=failed",
    "/by-model",
    "/image?key={key}",
    "/similar?key={key}&etag=e",
    "/review",
    "/corrections",
    "/nights",
    "/models",
    "/models/{version}/report",
    "/models/{version}/report/page",
    "/models/{version}/card",
    "/models/{version}/promote",
    "/rollback",
    "/compare?b={version}",
    "/compare?b={version}&of=test",
    "/datasets",
    "/try",
    "/image?key=none",
)
"""A path of every page, and of one that says what is wrong; a test holds that none is missing."""


def routes() -> list[tuple[str, str]]:
    """Method and an example of the path of every route."""
    from fastapi.routing import APIRoute

    from captioning.gallery.app import app

    values = {"version": "m1", "name": "gallery.css", "picture": f"{'0' * 32}.jpg"}
    found = []
    for route in app.routes:
        assert isinstance(route, APIRoute), "a mounted application is not protected"
        found += [(method, route.path.format(**values)) for method in sorted(route.methods)]
    assert len(found) >= 12
    return found
