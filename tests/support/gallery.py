"""The routes of the gallery, for tests that visit each of them."""


def routes() -> list[tuple[str, str]]:
    """Method and an example of the path of every route."""
    from fastapi.routing import APIRoute

    from captioning.gallery.routes import app

    values = {"version": "m1", "name": "gallery.css", "picture": f"{'0' * 32}.jpg"}
    found = []
    for route in app.routes:
        assert isinstance(route, APIRoute), "a mounted application is not protected"
        found += [(method, route.path.format(**values)) for method in sorted(route.methods)]
    assert len(found) >= 12
    return found
