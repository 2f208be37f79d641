"""The gallery inside Airflow's API server: who gets in, with what, and what the pages say."""

import html
import json
import subprocess
import sys
from urllib.parse import urlencode

import boto3
import pytest
import toy
from test_gallery import row, write

from pipeline import caption_worker, marks, runs
from pipeline.images import MAX_BYTES
from pipeline.serving import Answer, Scored
from pipeline.storage import LocalBucket, open_bucket
from plugins.gallery import places as deployment

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7*7 }}"

ANSWER = Answer(version="m1", captions=[Scored(caption=HOSTILE, log_prob=-0.5, probability=0.4)])


@pytest.fixture(scope="module")
def server(airflow_home):
    """Airflow's API server in this process, and a function from a user's role to a token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "someone:viewer")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(airflow_home / "passwords.json"))
        from airflow.api_fastapi.app import create_app, get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        app = create_app("core")

        def token(role):
            return get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="someone", role=role))

        yield app, token


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An inbox of two photographs, one of them with a hostile name, and their captions in a store."""
    store, inbox = open_bucket(str(tmp_path / "store")), open_bucket(str(tmp_path / "inbox"))
    etag = inbox.put("red.jpg", toy.picture("red"))
    inbox.put(f"{HOSTILE}.jpg", toy.picture("blue"))
    (tmp_path / "secret.jpg").write_bytes(toy.picture("green"))
    rows = [
        {**row("red.jpg", "a ball"), "image_etag": etag},
        row(f"{HOSTILE}.jpg", HOSTILE),
        row("x.jpg", error=HOSTILE),
    ]
    write(store, rows, night="2026-01-01", shard="s")
    monkeypatch.setenv("CAPTION_STORE", store.uri)
    monkeypatch.setenv("CAPTION_INBOX", inbox.uri)
    return store, inbox, etag


@pytest.fixture
def visit(server, places):
    """A function that gets or posts as a user of some role, or of none."""
    from starlette.testclient import TestClient

    app, token = server
    with TestClient(app, base_url="http://127.0.0.1:8080", raise_server_exceptions=False) as client:

        def ask(path, *, role="admin", method="GET", cookie=False, headers=None, **options):
            client.cookies.clear()
            headers = dict(headers or {})
            if role and cookie:
                client.cookies.set("_token", token(role))
            elif role:
                headers["Authorization"] = f"Bearer {token(role)}"
            return client.request(method, f"/captions{path}", headers=headers, **options)

        yield ask


@pytest.fixture
def answering(monkeypatch):
    """A captioning process that always says the same, and what it was asked."""
    from plugins.gallery import app

    asked = []

    class Always:
        def caption(self, data):
            asked.append(data)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        def warm(self):
            asked.append("warm")

    always = Always()
    always.answer = ANSWER
    monkeypatch.setattr(app, "worker", always)
    return always, asked


def routes():
    """Method and an example of the path of every route of the gallery."""
    from fastapi.routing import APIRoute

    from plugins.gallery.app import app

    values = {"version": "m1", "name": "gallery.css"}
    found = [(method, route.path.format(**values)) for route in app.routes for method in sorted(route.methods)]
    assert all(isinstance(route, APIRoute) for route in app.routes), "what is mounted inherits no protection"
    assert len(found) >= 9
    return found


def test_nobody_gets_in_without_a_login(visit):
    """Each route, static files too, refuses who is not logged in, and the pages that describe an API are not there."""
    for method, path in routes():
        answer = visit(path, role=None, method=method)
        assert (answer.status_code, set(answer.json())) == (401, {"detail"}), path
        assert visit(path, role=None, method=method, headers={"Authorization": "Bearer x"}).status_code in (401, 403)
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert visit(path).status_code == 404


def test_each_route_opens_with_a_login(visit, answering):
    """By the cookie of Airflow's login and by a token; none fails."""
    for method, path in routes():
        if method == "GET":
            assert visit(path, cookie=True, role="viewer").status_code in (200, 404, 422), path
    for path in (
        "/",
        "/nights",
        "/models",
        "/try",
        "/static/gallery.css",
        "/image?key=red.jpg",
        "/thumbnail?key=red.jpg",
    ):
        assert visit(path, role="viewer").status_code == 200, path


def test_who_may_not_see_the_dag_sees_no_captions(visit, monkeypatch):
    """The permissions are those of the DAG that writes the captions."""
    from airflow.api_fastapi.app import get_auth_manager

    asked = []

    def none(**question):
        asked.append(question)
        return False

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", none)
    for method, path in routes():
        assert visit(path, method=method).status_code == 403, path
    assert {question["details"].id for question in asked} == {"caption_new_images"}


def test_who_may_only_look_changes_nothing(visit, answering, places):
    """A viewer has no captions made and marks none, and the page says so."""
    store, _, _ = places
    for path in ("/caption", "/marks?better=a+dog&key=red.jpg"):
        assert visit(path, role="viewer", method="POST", content=b"x").status_code == 403
    assert "not have any made" in visit("/try", role="viewer").text
    assert "Say it better" not in visit("/image?key=red.jpg", role="viewer").text
    assert (marks.count(store), answering[1]) == (0, [])


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:8080"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {},
    ],
)
def test_posts_of_other_sites_are_refused(visit, answering, places, headers):
    """Where the login's cookie would come along; also where the browser says nothing."""
    store, _, _ = places
    for path in ("/caption", "/marks?better=a+dog&key=red.jpg"):
        answer = visit(path, method="POST", cookie=True, content=b"x", headers=headers)
        assert (answer.status_code, "another site" in answer.json()["detail"]) == (403, True)
    assert (marks.count(store), answering[1]) == (0, [])


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://127.0.0.1:8080"}])
def test_posts_of_the_page_itself_are_taken(visit, answering, headers):
    """Of a browser with the login's cookie."""
    answer = visit("/caption", method="POST", cookie=True, content=b"picture", headers=headers)
    assert (answer.status_code, answer.json()) == (200, ANSWER.model_dump())
    assert answering[1] == [b"picture"]


def test_a_program_posts_with_its_token(visit, answering):
    """It needs to say nothing of where it comes from."""
    assert visit("/caption", method="POST", content=b"picture").json()["captions"][0]["probability"] == 0.4


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (caption_worker.BadPictureError("not a picture"), 422),
        (caption_worker.BusyError("too many"), 503),
        (caption_worker.TimeLimitError("too long"), 504),
        (caption_worker.UnavailableError("no champion"), 503),
    ],
)
def test_what_has_no_caption_has_a_plain_message(visit, answering, error, status):
    """The status tells programs what it was, and the message people."""
    answering[0].answer = error
    answer = visit("/caption", method="POST", content=b"x")
    assert (answer.status_code, answer.json()) == (status, {"detail": str(error)})
    assert ("retry-after" in answer.headers) == (status == 503)


def test_uploads_are_bounded(visit, answering, monkeypatch):
    """In size, whatever the request says of it, in time, and in number at once."""
    import asyncio

    from plugins.gallery import access

    assert visit("/caption", method="POST", content=bytes(MAX_BYTES + 1)).status_code == 413

    def chunks():
        for _ in range(1 + MAX_BYTES // 1_000_000):
            yield bytes(1_000_000)

    assert visit("/caption", method="POST", content=chunks()).status_code == 413
    monkeypatch.setattr(access, "UPLOAD_SECONDS", 0)
    assert visit("/caption", method="POST", content=b"x").status_code == 408
    monkeypatch.setattr(access, "_places", asyncio.Semaphore(0))
    answer = visit("/caption", method="POST", content=b"x")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answering[1] == []


def test_hostile_names_and_captions_are_text(visit):
    """What looks like markup or like a template is shown as it is written, on every page."""
    key = f"{HOSTILE}.jpg"
    query = urlencode({"key": key})
    for path in ("/", f"/image?{query}", "/?" + urlencode({"words": HOSTILE}), "/?status=failed"):
        page = visit(path, headers={"Accept": "text/html"}).text
        assert "&lt;img src=x" in page, path
        assert "<img src=x" not in page
        assert HOSTILE in html.unescape(page)
    assert visit(f"/thumbnail?{query}").headers["content-type"] == "image/jpeg"
    for path in ("/nothing/" + HOSTILE, "/image?" + urlencode({"key": HOSTILE}), "/?night=" + HOSTILE):
        assert "<img src=x" not in visit(path, headers={"Accept": "text/html"}).text


def test_pages_may_do_nothing_more(visit):
    """No page loads, frames or runs what is not the gallery's own."""
    for path in ("/", "/nothing", "/static/gallery.js"):
        headers = visit(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "key", ["../secret.jpg", "/etc/passwd", "..", "a/../../secret.jpg", "%2e%2e/secret.jpg", "\0", "missing.jpg"]
)
def test_nothing_outside_is_read(visit, places, key):
    """No key leads out of the inbox, and no name out of the static files or the models."""
    assert visit("/thumbnail", params={"key": key}).status_code == 404
    assert visit("/marks", method="POST", params={"key": key, "better": "a dog"}).status_code == 422
    for path in ("/static/..%2Fapp.py", "/static/app.py", "/models/..%2F..%2Fsecret/report", "/models/../report"):
        assert visit(path).status_code == 404
    assert marks.count(places[0]) == 0


def test_a_mark_keeps_picture_and_words(visit, places):
    """Of a picture of the inbox it says which; of an upload it keeps the bytes."""
    store, _, etag = places
    said = {"better": "a red ball", "wrong": "a ball", "version": "m1"}
    inside = visit("/marks", method="POST", params={**said, "key": "red.jpg", "etag": etag})
    outside = visit("/marks", method="POST", params=said, content=toy.picture("green"))
    assert (inside.status_code, outside.status_code) == (201, 201)
    first, second = marks.read(store).to_pylist()
    assert (first["image_key"], first["image_etag"], first["caption"]) == ("red.jpg", etag, "a red ball")
    assert (second["image_key"], second["wrong_caption"], second["marked_by"]) == (None, "a ball", "someone")
    assert store.get(f"marks/{second['image']}") == toy.picture("green")


@pytest.mark.parametrize(
    ("said", "content", "message"),
    [
        ({"better": " "}, toy.picture("red"), "caption"),
        ({"better": "a dog"}, b"no picture", "picture"),
        ({"better": "a dog", "key": "red.jpg", "etag": "older"}, b"", "written or removed"),
        ({}, b"", "better"),
    ],
)
def test_bad_marks_are_refused(visit, places, said, content, message):
    """With a message, and nothing is kept."""
    answer = visit("/marks", method="POST", params=said, content=content)
    assert (answer.status_code, message in answer.json()["detail"]) == (422, True), answer.json()
    assert marks.count(places[0]) == 0


def test_a_thumbnail_keeps_its_shape(visit, places):
    """It is small, and a browser may keep what has its etag."""
    import io

    from PIL import Image

    _, inbox, _ = places
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(buffer, "PNG")
    etag = inbox.put("wide.png", buffer.getvalue())
    answer = visit("/thumbnail", params={"key": "wide.png", "etag": etag})
    assert Image.open(io.BytesIO(answer.content)).size == (320, 160)
    assert "immutable" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(visit("/thumbnail?key=wide.png&whole=true").content)).size == (1280, 640)
    assert visit("/thumbnail", params={"key": "wide.png", "etag": "older"}).status_code == 404


def test_empty_places_have_pages(visit, tmp_path, monkeypatch):
    """Where there is nothing yet, each page says what to do."""
    monkeypatch.setenv("CAPTION_STORE", (tmp_path / "nothing").as_uri())
    for path, text in (
        ("/", "No captions yet"),
        ("/nights", "No night has ended yet"),
        ("/models", "No model has been trained"),
    ):
        assert text in visit(path).text


def test_errors_have_pages(visit):
    """A person sees a page that says what to do, a program JSON."""
    page = visit("/", role=None, headers={"Accept": "text/html"})
    assert (page.status_code, "Log in to Airflow" in page.text) == (401, True)
    assert "../api/v2/auth/login?next=http" in page.text
    page = visit("/image?key=x", headers={"Accept": "text/html"})
    assert (page.status_code, "No captions are known" in page.text) == (404, True)
    page = visit("/?after=gone:1", headers={"Accept": "text/html"})
    assert (page.status_code, "pruned" in page.text) == (409, True)
    assert "night" in visit("/?night=x").json()["detail"]


def test_a_store_that_is_down_has_a_page(visit, monkeypatch):
    """It says so, and no more than that; the log has the rest."""
    monkeypatch.setattr(LocalBucket, "list", lambda *_: (_ for _ in ()).throw(ConnectionError("10.0.0.7 is away")))
    page = visit("/", headers={"Accept": "text/html"})
    assert (page.status_code, "can't be read now" in html.unescape(page.text), "10.0.0.7" in page.text) == (
        500,
        True,
        False,
    )


def test_a_report_is_shown_and_runs_nothing(visit, places):
    """As it was written, in a sandbox."""
    store, _, _ = places
    store.put("models/m1/report.html", b"<h1>Report</h1><script>alert(1)</script>")
    answer = visit("/models/m1/report")
    assert (answer.status_code, answer.text[:15]) == (200, "<h1>Report</h1>")
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert "was not evaluated" in visit("/models/m2/report").json()["detail"]


def test_filters_of_a_form_come_through(visit):
    """A form sends what is not chosen as empty."""
    page = visit("/?words=ball&night=&version=&status=&unsure=").text
    assert ("red.jpg" in page, "onerror" in page) == (True, False)
    assert "Nothing found" in visit("/?unsure=0.01").text


def test_the_end_of_the_pages(visit):
    """Where a full page was the last, the next does not say that nothing was found at all."""
    end = {"words": "ball", "after": "captions/model=m1/date=2026-01-01/s.parquet:1"}
    page = visit("/", params=end).text
    assert ("No older caption passes" in page, "No caption passes" in page) == (True, False)


SERVE = """
import sys
from airflow.plugins_manager import get_fastapi_plugins
apps, _ = get_fastapi_plugins()
early = {"pyarrow", "plugins.gallery.app"} & set(sys.modules)
import plugins.gallery.app
heavy = {"keras", "tensorflow", "jax", "torch", "openvino", "matplotlib"} & set(sys.modules)
print([app["name"] for app in apps], early, heavy)
"""


def test_the_server_loads_no_keras(airflow_home):
    """Nor does Airflow, which loads plugins in each of its parts, load the gallery before it is asked for."""
    found = subprocess.run([sys.executable, "-c", SERVE], capture_output=True, text=True, check=True).stdout
    assert found.splitlines()[-1] == "['Captions'] set() set()"


def test_drift_is_plotted(visit, places):
    """A dot a night and reference, what lies beyond the limit among them; warnings and errors stand in the table."""
    store, _, _ = places
    record = {
        "kind": "caption_new_images", "version": "m1", "listed": 1200, "captioned": 3, "failed": 1, "already_done": 4,
        "images_per_second": 2.5, "errors": {"the file is empty": 1}, "warnings": [],
    }  # fmt: skip
    apart = {"the model's test": {"features": 0.1, "failed": 0.0}}
    runs.finish("n1", {**record, "drift": apart, "finished_at": "2026-01-01T02:10:00+00:00"}, store)
    apart = {**apart, "earlier nights": {"features": -2.0, "failed": 0.0}}
    second = {**record, "drift": apart, "finished_at": "2026-01-02T02:10:00+00:00", "warnings": [HOSTILE]}
    runs.finish("n2", second, store)
    text = visit("/nights").text
    assert (text.count("<circle"), text.count(" beyond")) == (6, 1)
    assert "2026-01-02: -2.00 from earlier nights" in text
    assert 'href="./?night=2026-01-01"' in text
    assert "night=2026-01-02" not in text, "nothing was written under this date"
    assert "1,200" in text
    assert "1 × the file is empty" in text
    assert "<img src=x" not in text


def test_s3_is_reached_by_airflows_connection(visit, s3_bucket_name, s3_server, monkeypatch):
    """Where the API server's own environment has no credentials, the connection of the tasks serves the pages too."""
    uri = f"s3://{s3_bucket_name}/gallery"
    store = open_bucket(uri)
    write(store, [row("far.jpg")], night="2026-01-01", shard="s")
    etag = store.put("inbox/far.jpg", toy.picture("red"))
    extra = {"endpoint_url": s3_server, "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": "test", "password": "test", "extra": extra}
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    boto3.setup_default_session()
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("CAPTION_STORE", uri)
    monkeypatch.setenv("CAPTION_INBOX", f"{uri}/inbox")
    deployment._connection.cache_clear()
    assert "far.jpg" in visit("/").text
    assert visit("/thumbnail", params={"key": "far.jpg", "etag": etag}).status_code == 200
    assert deployment.environment()["AWS_ENDPOINT_URL"] == s3_server
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
    deployment._connection.cache_clear()
    deployment._open.cache_clear()
    answer = visit("/", headers={"Accept": "text/html"})
    assert (answer.status_code, "credentials" in answer.text) == (409, True)
    deployment._open.cache_clear()
    boto3.setup_default_session()
