"""The gallery inside Airflow's API server: access, uploads, corrections, and the content of the pages."""

import csv
import html
import io
import json
import math
import operator
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from threading import Event, Semaphore
from urllib.parse import quote, urlencode

import boto3
import pyarrow as pa
import pytest
from PIL import Image

from captioning import gallery
from captioning.gallery import dependencies, limits
from pipeline.captioner import registry
from pipeline.captioner.spoken import spoken_name
from pipeline.config import DecodingConfig
from pipeline.data import corrections
from pipeline.data.decoders import Thumbnails
from pipeline.data.images import MAX_BYTES
from pipeline.data.ingest import ingest
from pipeline.evaluation import drift
from pipeline.nightly import current
from pipeline.ops import review
from pipeline.serving import client
from pipeline.serving.server import Answer, ScoredCaption
from pipeline.storage import LocalBucket, layout, open_bucket, parquet
from pipeline.storage.json import write as write_json
from pipeline.work import runs
from pipeline.work.runs import NightRecord
from tests.support import toy
from tests.support.caption_tables import current_row, row, shard_key, write, write_current
from tests.support.damaged_images import encoded
from tests.support.decoder_code import CANNOT_START, in_decoders
from tests.support.features import write_features
from tests.support.gallery import PAGES, routes
from tests.support.long_history import write_history
from tests.support.memory import MemoryBucket
from tests.support.models import write_evaluation, write_model

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7*7 }}"

WORDS = {"caption": "a red ball", "model_caption": "a ball", "model_version": "m1"}
"""What a person says about a caption."""

ANSWER = Answer(version="m1", captions=[ScoredCaption(caption=HOSTILE, log_prob=-0.5, probability=0.4, confidence=0.7)])


@pytest.fixture(scope="module")
def server(airflow_home):
    """Airflow's API server in this process, and a function from a user's role to a token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "0" * 64)
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "someone:viewer")
        patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(airflow_home / "passwords.json"))
        from airflow.api_fastapi.app import create_app, get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        app = create_app("core")

        def token(role):
            return get_auth_manager().generate_jwt(SimpleAuthManagerUser(username="someone", role=role))

        yield app, token
        # They serve for as long as the server runs.
        from captioning.gallery import pictures

        for processes in (pictures.small, pictures.large):
            processes.close()


@pytest.fixture
def buckets(tmp_path, monkeypatch):
    """An inbox of two photographs, one of them with a hostile name, and their captions in a store after a night."""
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
    write_current(
        store,
        [
            current_row("red.jpg", "a ball", etag=etag, width=64, height=48, bytes=1234),
            current_row(f"{HOSTILE}.jpg", HOSTILE),
            current_row("x.jpg", error=HOSTILE),
        ],
    )
    monkeypatch.setenv("CAPTION_STORE", store.uri)
    monkeypatch.setenv("CAPTION_INBOX", inbox.uri)
    return store, inbox, etag


@pytest.fixture
def visit(server, buckets):
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

        ask.airflow = lambda path: client.get(path)
        yield ask


@pytest.fixture
def post_correction(visit):
    """A function that posts what a person says: a line of JSON, and the picture if it is an upload."""

    def post(form, picture=b"", **options):
        body = json.dumps(form).encode() + b"\n" + picture
        return visit("/corrections", method="POST", content=body, **options)

    return post


@pytest.fixture
def answering(monkeypatch):
    """A captioning process that always gives the same answer, and the calls that it got."""
    from captioning.gallery import try_it

    calls = []

    class Always:
        def caption(self, data, version):
            calls.append((data, version) if version else data)
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        def warm(self):
            calls.append("warm")

    always = Always()
    always.answer = ANSWER
    monkeypatch.setattr(try_it, "worker", always)
    return always, calls


def test_nobody_gets_in_without_a_login(visit):
    """Each route, including static files, refuses users who are not logged in; no page describes the API."""
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
        "/by-model",
        "/captions.csv",
        "/corrections",
        "/corrections.csv",
        "/review",
        "/review/count",
        "/nights",
        "/models",
        "/datasets",
        "/try",
        "/static/gallery.css",
        "/image?key=red.jpg",
        "/thumbnail?key=red.jpg",
    ):
        assert visit(path, role="viewer").status_code == 200, path


@pytest.mark.parametrize("prefix", ["", "team_a_"])
def test_users_who_cannot_see_the_dag_see_no_captions(visit, monkeypatch, prefix):
    """The permissions are those of the DAG that writes the captions."""
    from airflow.api_fastapi.app import get_auth_manager

    asked = []

    def none(**question):
        asked.append(question)
        return False

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", none)
    monkeypatch.setenv("CAPTION_DAG_PREFIX", prefix)
    for method, path in routes():
        assert visit(path, method=method).status_code == 403, path
    assert {question["details"].id for question in asked} == {f"{prefix}caption_new_images"}


def test_no_page_is_left_out_of_the_tests_in_a_browser():
    """They look at each route that answers with a page."""
    from fastapi.responses import HTMLResponse

    from captioning.gallery.app import app

    pages = {route.path for route in app.routes if route.endpoint.__annotations__["return"] is HTMLResponse}
    assert pages <= {path.partition("?")[0] for path in PAGES} <= {route.path for route in app.routes}


ACTIONS = ("corrected", "confirmed", "withdrawn")


@pytest.mark.parametrize(("role", "status"), [("viewer", 403), ("user", 403), ("op", 404), ("admin", 404)])
def test_who_may_report_an_upload(server, role, status):
    """With Airflow's simple auth manager, an operator; there is no such asset here."""
    from starlette.testclient import TestClient

    app, token = server
    with TestClient(app, base_url="http://127.0.0.1:8080") as client:
        headers = {"Authorization": f"Bearer {token(role)}"}
        assert client.get("/api/v2/assets?name_pattern=captioning_inbox", headers=headers).status_code == 200
        assert client.post("/api/v2/assets/events", headers=headers, json={"asset_id": 1_000_000}).status_code == status


def test_viewers_change_nothing(visit, post_correction, answering, buckets):
    """A viewer can neither caption an upload nor say anything about a caption, and the pages do not offer it."""
    store, _, etag = buckets
    form = {**WORDS, "image_key": "red.jpg", "image_etag": etag}
    assert post_correction(form).status_code == 201
    assert visit("/caption", role="viewer", method="POST", content=b"x").status_code == 403
    for action in ACTIONS:
        assert post_correction({**form, "action": action}, role="viewer").status_code == 403
    assert "you need permission to trigger the DAG" in visit("/try", role="viewer").text
    for path in ("/image?key=red.jpg", "/corrections"):
        assert "<form" in visit(path).text
        page = visit(path, role="viewer").text
        assert ("a red ball" in page, "<form" in page) == (True, False)
    for version in ("m1", "m2", "m3"):
        write_model(version, store)
    for version in ("m1", "m2"):
        registry.promote(version, store)
    reason = json.dumps({"reason": "it is better", "seen": "m2"})
    for path, offer in (("/models/m3/promote", "/promote"), ("/rollback", "Roll back …")):
        assert visit(path, role="viewer", method="POST", content=reason).status_code == 403
        for shown, text in ((path, "<form"), ("/models", offer)):
            assert (text in visit(shown).text, text in visit(shown, role="viewer").text) == (True, False)
    assert (corrections.count(store), answering[1]) == (1, [])
    assert registry.read_champion(store).version == "m2"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:8080"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://["},
        {"Origin": "null"},
        {},
        {"Authorization": "Basic YTpi", "Origin": "https://evil.example"},
        {"Authorization": "Bearer", "Sec-Fetch-Site": "cross-site"},
        {"Authorization": "Digest Bearer"},
    ],
)
def test_posts_of_other_sites_are_refused(visit, post_correction, answering, buckets, headers):
    """Where the login's cookie is sent with them; also where the browser states no origin."""
    store, _, etag = buckets
    form = {**WORDS, "image_key": "red.jpg", "image_etag": etag}
    answers = [visit("/caption", method="POST", cookie=True, content=b"x", headers=headers)]
    answers += [post_correction({**form, "action": action}, cookie=True, headers=headers) for action in ACTIONS]
    write_model("m1", store)
    reason = json.dumps({"reason": "it is better", "seen": ""})
    for path in ("/models/m1/promote", "/rollback"):
        answers.append(visit(path, method="POST", cookie=True, headers=headers, content=reason))
    assert registry.find_champion(store) is None
    for answer in answers:
        assert (answer.status_code, "another site" in answer.json()["detail"]) == (403, True)
    assert (corrections.count(store), answering[1]) == (0, [])


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://127.0.0.1:8080"}])
def test_posts_of_the_page_itself_are_taken(visit, post_correction, answering, buckets, headers):
    """Of a browser with the login's cookie."""
    form = {**WORDS, "image_key": "red.jpg", "image_etag": buckets[2]}
    for action in ACTIONS:
        assert post_correction({**form, "action": action}, cookie=True, headers=headers).status_code == 201
    answer = visit("/caption", method="POST", cookie=True, content=b"picture", headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"name": spoken_name("m1"), **ANSWER.model_dump()})
    assert answering[1] == [b"picture"]


def test_posts_behind_a_proxy_that_changes_the_host(visit, answering, monkeypatch):
    """Its pages have the origin of ``[api] base_url``, and no other."""
    for base_url, origin, status in (
        ("http://Airflow.example:80/data", "http://airflow.example", 200),
        ("http://airflow.example:8443", "http://airflow.example:8443", 200),
        ("http://airflow.example:8443", "https://airflow.example:8443", 403),
        ("http://airflow.example:8443", "http://airflow.example", 403),
        ("", "http://airflow.example", 403),
        ("", "", 403),
    ):
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
        headers = {"Origin": origin, "Host": "10.0.0.7:8080"}
        answer = visit("/caption", method="POST", cookie=True, content=b"x", headers=headers)
        assert answer.status_code == status, (base_url, origin)


def test_a_program_posts_with_its_token(visit, answering):
    """It states no origin and needs none."""
    assert visit("/caption", method="POST", content=b"picture").json()["captions"][0]["probability"] == 0.4


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (client.BadPictureError("not a picture"), 422),
        (client.BusyError("too many"), 503),
        (client.TimeLimitError("too long"), 504),
        (client.UnavailableError("no champion"), 503),
    ],
)
def test_errors_of_the_captioner(visit, answering, error, status):
    """The status is for programs, the message for people."""
    answering[0].answer = error
    answer = visit("/caption", method="POST", content=b"x")
    assert (answer.status_code, answer.json()) == (status, {"detail": str(error)})
    assert ("retry-after" in answer.headers) == (status == 503)


def test_uploads_are_bounded(visit, answering, monkeypatch):
    """In size, whatever the request states, in time, and in number at a time."""
    import asyncio

    from captioning.gallery import access

    assert visit("/caption", method="POST", content=bytes(MAX_BYTES + 1)).status_code == 413

    def chunks():
        for _ in range(1 + MAX_BYTES // 1_000_000):
            yield bytes(1_000_000)

    assert visit("/caption", method="POST", content=chunks()).status_code == 413
    monkeypatch.setattr(access, "UPLOAD_SECONDS", 0)
    assert visit("/caption", method="POST", content=b"x").status_code == 408
    monkeypatch.setattr(access, "_upload_slots", asyncio.Semaphore(0))
    answer = visit("/caption", method="POST", content=b"x")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answering[1] == []


def test_hostile_names_and_captions_are_text(visit, post_correction, buckets):
    """Text that looks like markup or like a template is shown as it is written, on every page."""
    key = f"{HOSTILE}.jpg"
    query, search = urlencode({"key": key}), urlencode({"words": HOSTILE})
    words = dict.fromkeys(WORDS, HOSTILE) | {"caption": f"better {HOSTILE}"}
    assert post_correction({**words, "image_key": key, "image_etag": buckets[1].etag(key)}).status_code == 201
    listed = [f"/{view}{filters}" for view in ("", "by-model") for filters in ("", f"?{search}", "?status=failed")]
    for path in (*listed, f"/image?{query}", "/corrections"):
        page = visit(path, headers={"Accept": "text/html"}).text
        assert "&lt;img src=x" in page, path
        assert "<img src=x" not in page
        assert HOSTILE in html.unescape(page)
    assert visit(f"/thumbnail?{query}").headers["content-type"] == "image/jpeg"
    for path in ("/nothing/" + HOSTILE, "/image?" + urlencode({"key": HOSTILE}), "/?night=" + HOSTILE):
        assert "<img src=x" not in visit(path, headers={"Accept": "text/html"}).text


def test_pages_may_do_nothing_more(visit, monkeypatch):
    """No page loads, frames or runs anything but the gallery's own files; neither does an error, whatever it is."""
    monkeypatch.setattr(LocalBucket, "list", lambda *_: (_ for _ in ()).throw(ConnectionError))
    statuses = []
    for path in ("/", "/nothing", "/static/gallery.js", "/caption", "/image"):
        answer = visit(path)
        statuses.append(answer.status_code)
        headers = answer.headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert ("no-store" in headers["cache-control"]) == (answer.status_code != 200)
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert statuses == [500, 404, 200, 405, 422]


@pytest.mark.parametrize(
    "key", ["../secret.jpg", "/etc/passwd", "..", "a/../../secret.jpg", "%2e%2e/secret.jpg", "\0", "missing.jpg"]
)
def test_nothing_outside_is_read(visit, post_correction, buckets, key):
    """No key leads out of the inbox, and no name out of the static files, the models or the corrected pictures."""
    assert visit("/thumbnail", params={"key": key}).status_code == 404
    assert post_correction({**WORDS, "image_key": key, "image_etag": "e"}).status_code == 422
    assert visit("/corrections/pictures/" + quote(key, safe="")).headers["content-type"] != "image/jpeg"
    for path in ("/static/..%2Fapp.py", "/static/app.py", "/models/..%2F..%2Fsecret/report", "/models/../card"):
        assert visit(path).status_code == 404
    assert corrections.count(buckets[0]) == 0


@pytest.mark.parametrize("new_bucket", ["file", "s3"], indirect=True)
def test_hidden_pictures_stay_hidden(visit, post_correction, new_bucket, monkeypatch):
    """No night captions them: they are not shown, and nobody corrects them."""
    from captioning.gallery.app import app

    inbox = new_bucket()
    monkeypatch.setitem(app.dependency_overrides, dependencies.inbox, lambda: inbox)
    for key in (".thumbs/red.jpg", "a/.red.jpg", "@eaDir/red.jpg", ".trash"):
        if isinstance(inbox, LocalBucket):
            path = inbox.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(toy.picture("red"))
        else:
            inbox.client.put_object(Bucket=inbox.name, Key=f"{inbox.prefix}{key}", Body=toy.picture("red"))
        etag = inbox.etag(key)
        for parameters in ({"key": key}, {"key": key, "etag": etag, "whole": "true"}):
            assert visit("/thumbnail", params=parameters).status_code == 404
        answer = post_correction({**WORDS, "image_key": key, "image_etag": etag})
        assert (answer.status_code, "hidden" in answer.json()["detail"]) == (422, True)
    assert "Nobody has corrected" in visit("/corrections").text


def test_a_correction_is_stored(visit, post_correction, buckets):
    """It names a picture of the inbox; of an upload it stores the bytes, whose copy the gallery shows."""
    store, _, etag = buckets
    inside = post_correction({**WORDS, "image_key": "red.jpg", "image_etag": etag})
    outside = post_correction(WORDS, toy.picture("green"))
    assert (inside.status_code, outside.status_code) == (201, 201)
    first, second = corrections.read(store).to_pylist()
    assert (first["image_key"], first["image_etag"], first["caption"]) == ("red.jpg", etag, "a red ball")
    assert (second["image_key"], second["model_caption"], second["corrected_by"]) == (None, "a ball", "someone")
    assert store.get(f"{layout.CORRECTIONS}{second['picture']}") == toy.picture("green")
    shown = visit(f"/corrections/{second['picture']}")
    assert (shown.headers["content-type"], "immutable" in shown.headers["cache-control"]) == ("image/jpeg", True)
    assert visit(f"/corrections/pictures/{'0' * 32}.jpg").status_code == 404


def test_a_persons_word_counts_at_once(visit, post_correction, buckets):
    """Corrected, confirmed and withdrawn: the pages of captions and of the picture show it, and who said it."""
    form = {**WORDS, "image_key": "red.jpg", "image_etag": buckets[2]}

    def shown(badge):
        # The end of a picture's page has all that was ever said.
        pages = [visit(path).text.partition('id="words"')[0] for path in ("/", "/by-model", "/image?key=red.jpg")]
        texts = list(map(html.unescape, pages))
        return all(badge in text for text in texts), ["a red ball" in text for text in texts]

    assert shown("corrected by someone") == (False, [False] * 3)
    assert post_correction(form).status_code == 201
    assert shown("corrected by someone") == (True, [True] * 3)
    assert "Withdraw" in visit("/image?key=red.jpg").text
    for path in ("/?source=person", "/by-model?source=person"):
        page = visit(path).text
        assert (page.count('class="card'), "a red ball" in page) == (1, True)
    answer = post_correction({**form, "action": "withdrawn"}).json()
    assert answer["summary"] == "Withdrawn. The caption of the model counts again."
    assert shown("corrected by someone") == (False, [False] * 3)
    # To save the model's caption as it is means that it is right.
    for words in ({"action": "confirmed", "caption": ""}, {"caption": "a ball"}):
        answer = post_correction({**form, **words}).json()
        assert (answer["action"], answer["caption"]) == ("confirmed", "a ball")
        assert shown("looks right (someone)") == (True, [False] * 3)
    answer = post_correction({**form, "action": "withdrawn", "image_etag": "older"})
    assert (answer.status_code, "There is no correction of red.jpg" in answer.json()["detail"]) == (422, True)


def test_the_answer_says_what_becomes_of_it(post_correction, buckets, tmp_path):
    """That the next retraining learns from it, or that none does, or that it is not known."""
    store, inbox, etag = buckets
    form = {**WORDS, "image_key": "red.jpg", "image_etag": etag}
    assert post_correction(form).json()["summary"] == "Saved. The next retraining will use it."
    source = open_bucket(str(tmp_path / "source"))
    toy.draw(source)
    report = ingest([source.url("captions.csv")], store, name="toy")
    write_model("m1", store, dataset=report.dataset)
    registry.promote("m1", store)
    assert post_correction(form).json()["summary"] == "Saved. The next retraining will use it."
    held_out = source.get("pictures/red-5.jpg")
    reason = f"no retraining learns from it: the photograph is in dev or test of {report.dataset}."
    answer = post_correction({**form, "image_etag": inbox.put("red.jpg", held_out)}).json()
    assert answer["summary"] == f"Saved. Readers see it; {reason}"
    assert post_correction(WORDS, held_out).json()["summary"] == f"Saved. N{reason[1:]}"
    write_model("m2", store)
    registry.promote("m2", store)
    assert "It is not known whether a retraining learns from it" in post_correction(WORDS, held_out).json()["summary"]


def test_the_list_of_corrections(visit, post_correction, buckets, monkeypatch):
    """The newest first, with both captions and what became of each; all of them as CSV."""
    from captioning.gallery import corrections as module

    form = {**WORDS, "image_key": "red.jpg", "image_etag": buckets[2]}
    for caption in ("first try", 'a, "red" ball'):
        post_correction({**form, "caption": caption})
    upload = post_correction(WORDS, toy.picture("green")).json()
    page = html.unescape(visit("/corrections").text)
    assert page.index("a red ball") < page.index('a, "red" ball') < page.index("first try")
    for text in ("<del>a ball</del>", "someone", "replaced", "counts", "the next retraining will use it"):
        assert text in page
    assert f'src="corrections/{upload["picture"]}"' in page
    # What was said about an upload is withdrawn here.
    assert post_correction({"action": "withdrawn", "image_etag": upload["picture"]}).status_code == 201
    answer = visit("/corrections.csv")
    assert "attachment" in answer.headers["content-disposition"]
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(each["caption"], each["state"]) for each in table] == [
        ("", "withdrawn"),
        ("a red ball", "withdrawn"),
        ('a, "red" ball', "counts"),
        ("first try", "replaced"),
    ]
    monkeypatch.setattr(module, "CORRECTIONS", 2)
    page = visit("/corrections").text
    assert ("The last 2" in page, "first try" in page) == (True, False)


@pytest.fixture
def unsure(buckets):
    """Two captions that wait for review: of the red photograph, which is novel, and of the one with a hostile name."""
    store, inbox, _ = buckets
    rows = [
        {
            **dict.fromkeys(current.SCHEMA.names),
            **{"image_key": item.key, "image_etag": item.etag, "caption": caption, "source": "model"},
            **{"model_version": "m1", "confidence": 0.724, "novel": novel, "review": True},
        }
        for item, caption, novel in zip(inbox.list(), (HOSTILE, "a ball"), (False, True), strict=True)
    ]
    facts = {"listed_at": "2026-01-01T00:00:00+00:00"}
    table = pa.Table.from_pylist(rows, schema=current.SCHEMA)
    parquet.write(table, layout.CURRENT_CAPTIONS, store, metadata=facts)
    return {"image_key": "red.jpg", "image_etag": buckets[2], "model_caption": "a ball", "model_version": "m1"}


def test_the_review_queue(visit, post_correction, unsure):
    """The unsure captions one after the other, how sure the model is of each, and how many are left."""

    def shown(**parameters):
        page = html.unescape(visit("/review", params=parameters).text)
        return re.search(r'<p class="caption">(.*?)</p>', page)[1], page

    first, page = shown()
    assert (first, ">unlike the photographs it learned from<" in page, "% sure" in page) == ("a ball", True, False)
    assert (">2 left<" in page, visit("/review/count").json()) == (True, {"left": 2})
    second, page = shown(after="red.jpg")
    assert (second, ">72 % sure<" in page) == (HOSTILE, True)
    assert "<img src=x" not in visit("/review", params={"after": "red.jpg"}).text
    assert post_correction({**unsure, "action": "confirmed", "seen": ""}).status_code == 201
    again, page = shown()
    assert (again, ">1 left<" in page, visit("/review/count").json()) == (HOSTILE, True, {"left": 1})
    form = {"image_key": f"{HOSTILE}.jpg", "image_etag": "e", "model_caption": HOSTILE}
    skipped = visit("/review/skipped", method="POST", content=json.dumps({**form, "image_etag": unsure["image_etag"]}))
    assert skipped.status_code == 201
    assert visit("/review/count").json() == {"left": 1}, "another version of the photograph"
    etag = re.search(r'name="image_etag" value="(.*?)"', shown()[1])[1]
    skipped = visit("/review/skipped", method="POST", content=json.dumps({**form, "image_etag": etag}))
    assert "It comes back if the caption or the photograph changes" in skipped.json()["summary"]
    page = visit("/review").text
    assert ("Nothing to review" in page, "less than 50 % sure" in page) == (True, True)
    assert visit("/review/count").json() == {"left": 0}


def test_the_second_reviewer_learns_what_the_first_said(visit, post_correction, unsure, buckets):
    """Who saves what another has answered meanwhile gets the status 409 and the first's caption."""
    assert post_correction({**unsure, "caption": "a red ball", "seen": ""}).status_code == 201
    for action in ("confirmed", "corrected"):
        answer = post_correction({**unsure, "caption": "a blue ball", "action": action, "seen": ""})
        assert answer.status_code == 409
        said = "Nothing was saved: someone has corrected this caption meanwhile: a red ball. Reload the page"
        assert answer.json()["detail"].startswith(said)
    assert corrections.count(buckets[0]) == 1
    seen = re.search(r'name="seen" value="(.*?)"', visit("/image?key=red.jpg").text)[1]
    assert post_correction({**unsure, "caption": "a blue ball", "seen": seen}).status_code == 201


def test_viewers_take_nothing_out_of_the_queue(visit, unsure, buckets):
    """They see how many captions wait, and get none of them."""
    page = visit("/review", role="viewer").text
    assert ("2 captions wait for review" in page, "<form" in page) == (True, False)
    form = json.dumps(unsure)
    assert visit("/review/skipped", role="viewer", method="POST", content=form).status_code == 403
    for headers in ({"Origin": "https://evil.example"}, {}):
        answer = visit("/review/skipped", method="POST", cookie=True, headers=headers, content=form)
        assert (answer.status_code, "another site" in answer.json()["detail"]) == (403, True)
    assert not buckets[0].exists(layout.REVIEW_STATE)
    for content in (b"", b"{}", b"\xff"):
        assert visit("/review/skipped", method="POST", content=content).status_code == 422


def test_others_are_at_it(visit, unsure, buckets):
    """Where other reviewers have all that is left, the page says so."""
    for name in ("ann", "bob"):
        review.Queue().take(name, buckets[0], damaged=[])
    assert "Other people are looking at the captions that are left" in visit("/review").text


def test_what_people_accepted_is_plotted(visit, post_correction, buckets):
    """By model and week, and in all weeks in the table."""
    store, _, etag = buckets
    write_model("m1", store)
    assert "<svg" not in visit("/models").text
    assert post_correction({**WORDS, "image_key": "red.jpg", "image_etag": etag}).status_code == 201
    assert post_correction({**WORDS, "action": "confirmed"}, toy.picture("green")).status_code == 201
    page = visit("/models").text
    assert (page.count("<circle"), ">50 % of 2<" in page) == (1, True)
    monday = datetime.now(UTC).date() - timedelta(days=datetime.now(UTC).weekday())
    assert f"week of {monday}: 50 % of 2, by m1" in page


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ({"caption": " "}, toy.picture("red"), "caption"),
        ({"caption": "a dog"}, b"no picture", "picture"),
        (
            {"caption": "a dog", "image_key": "red.jpg", "image_etag": "older"},
            b"",
            "Nothing was saved: 'red.jpg' was replaced or removed since the page was made.",
        ),
        ({"caption": "a dog", "image_key": "red.jpg"}, b"", "expected the etag"),
        ({"caption": "a dog", "action": "praised"}, toy.picture("red"), "action"),
        ({"action": "confirmed"}, toy.picture("red"), "caption"),
        ({"action": "withdrawn"}, b"", "There is no correction"),
        ([], b"", "an object"),
    ],
)
def test_bad_corrections_are_refused(post_correction, buckets, form, content, message):
    """With a message, and nothing is stored."""
    answer = post_correction(form, content)
    assert (answer.status_code, message in answer.json()["detail"]) == (422, True), answer.json()
    assert corrections.count(buckets[0]) == 0


def test_a_body_that_is_no_form(visit, buckets):
    """It is refused with a message, and so is one that is too large."""
    for body, status in ((b"", 422), (b"\xff\n", 422), (toy.picture("red"), 422), (bytes(MAX_BYTES + 1), 413)):
        answer = visit("/corrections", method="POST", content=body)
        assert (answer.status_code, bool(answer.json()["detail"])) == (status, True)


def test_a_thumbnail_keeps_its_shape(visit, buckets):
    """It is small, and a browser may cache it by its etag."""
    from PIL import Image

    _, inbox, _ = buckets
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(buffer, "PNG")
    etag = inbox.put("wide.png", buffer.getvalue())
    answer = visit("/thumbnail", params={"key": "wide.png", "etag": etag})
    assert Image.open(io.BytesIO(answer.content)).size == (320, 160)
    assert "immutable" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(visit("/thumbnail?key=wide.png&whole=true").content)).size == (1280, 640)
    assert visit("/thumbnail", params={"key": "wide.png", "etag": "older"}).status_code == 404


def test_the_file_of_a_picture(visit, buckets):
    """Its size in pixels and bytes, its date, and a link to the file itself, which is shown as a picture."""
    _, inbox, _ = buckets
    page = html.unescape(visit("/image?key=red.jpg").text)
    assert ("64 × 48 pixels" in page, "1.2 kB" in page) == (True, True)
    assert f"of {inbox.modified('red.jpg'):%Y-%m-%d %H:%M} UTC" in page
    link = re.search(r'href="(original\?.*?)"', page)[1]
    answer = visit(f"/{link}")
    assert answer.content == toy.picture("red")
    assert answer.headers["content-type"] == f"image/{Image.open(io.BytesIO(answer.content)).format.lower()}"
    assert answer.headers["content-disposition"] == "inline; filename*=UTF-8''red.jpg"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert ("immutable" in answer.headers["cache-control"], "default-src 'none'" in str(answer.headers)) == (True, True)
    hostile = visit("/original", params={"key": f"{HOSTILE}.jpg"})
    assert hostile.headers["content-disposition"] == f"inline; filename*=UTF-8''{quote(f'{HOSTILE}.jpg', safe='')}"
    assert "no-store" in hostile.headers["cache-control"]


@pytest.mark.parametrize(
    ("key", "etag", "why"),
    [
        ("red.jpg", "older", "it was replaced or removed"),
        ("page.jpg", "", "it is not a picture in a known format"),
        ("drawing.svg", "", "it is not a picture in a known format"),
        ("../secret.jpg", "", "it was replaced or removed"),
        (".hidden.jpg", "", "it was replaced or removed"),
    ],
)
def test_files_that_are_not_shown(visit, buckets, key, etag, why):
    """What is no picture, is hidden, elsewhere, or another version."""
    _, inbox, _ = buckets
    (inbox.root / ".hidden.jpg").write_bytes(toy.picture("red"))
    inbox.put("page.jpg", b"<html><script>alert(1)</script>")
    inbox.put("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    answer = visit("/original", params={"key": key, "etag": etag})
    assert (answer.status_code, answer.json()["detail"]) == (404, f"The picture can't be shown: {why}.")


def test_a_picture_that_has_left_the_inbox(visit, buckets):
    """Its page has its captions, and no date of a file."""
    _, inbox, _ = buckets
    inbox.delete("red.jpg")
    page = visit("/image?key=red.jpg")
    assert (page.status_code, "a ball" in page.text, " UTC" in page.text) == (200, True, False)


def test_all_that_people_said_of_a_picture(visit, post_correction, buckets):
    """In time order, with who said it, also what no longer counts and what was said of another version."""
    _, inbox, etag = buckets
    form = {**WORDS, "image_key": "red.jpg", "image_etag": etag}
    assert 'class="history"' not in visit("/image?key=red.jpg").text.partition('id="words"')[2]
    for words in ({}, {"action": "withdrawn"}, {"action": "confirmed"}):
        assert post_correction({**form, **words}).status_code == 201
    said = html.unescape(visit("/image?key=red.jpg").text).partition('id="words"')[2]
    found = re.findall(
        r"<span>(corrected|withdrawn|looks right)</span> <span>someone</span> <span>[\d-]+ [\d:]+ UTC", said
    )
    assert found == ["corrected", "withdrawn", "looks right"]
    assert ("a red ball" in said, "another version" in said) == (True, False)
    other = inbox.put("red.jpg", toy.picture("green"))
    assert post_correction({**form, "image_etag": other}).status_code == 201
    assert visit("/image?key=red.jpg").text.partition('id="words"')[2].count("another version") == 1


def test_other_captions_to_choose(visit, buckets):
    """Those by other models can be put into the field, by those who may correct the caption."""
    later = {**row("red.jpg", "a red circle", version="m2"), "image_etag": buckets[2]}
    write(buckets[0], [later], night="2026-01-02", shard="t", version="m2")
    page = visit("/image?key=red.jpg").text
    assert re.findall(r'data-suggestion="(.*?)"', page) == ["a red circle"]
    assert 'href="by-model?night=2026-01-02"' in page
    assert 'href="models/m2/card"' in page
    assert "data-suggestion" not in visit("/image?key=red.jpg", role="viewer").text


def test_pictures_like_one(visit, buckets):
    """A link leads to them, if there is a champion; those that are nearly the same come first, and are marked."""
    store, _, etag = buckets
    assert "similar?" not in visit("/image?key=red.jpg").text
    assert visit("/similar", params={"key": "red.jpg", "etag": etag}).status_code == 409
    write_model("m1", store)
    registry.promote("m1", store)
    link = html.unescape(re.search(r'href="(similar\?.*?)"', visit("/image?key=red.jpg").text)[1])
    assert "were not found in time" in visit(f"/{link}").text
    other = f"{HOSTILE}.jpg"
    write_features(store, {"red.jpg": [1, 0], "x.jpg": [0, 1]}, 1, etag=etag)
    write_features(store, {other: [5, 1], "x.jpg": [1, 1]}, 2)
    page = visit(f"/{link}").text
    assert "Compared with 4 photographs" in page
    assert ("<img src=x" in page, HOSTILE in html.unescape(page)) == (False, True)
    assert page.count("nearly the same picture") == 1
    assert page.count('class="card"') == 2


def test_decoders_that_cannot_start(visit, post_correction, tmp_path, monkeypatch):
    """It is not the picture that is missing or bad: the server can't show or take any at the moment."""
    from captioning.gallery import pictures

    monkeypatch.setattr(pictures, "small", Thumbnails(320))
    for name, value in in_decoders(CANNOT_START, tmp_path / "code").items():
        monkeypatch.setenv(name, value)
    for answer in (
        visit("/thumbnail?key=red.jpg"),
        post_correction(WORDS, toy.picture("red")),
    ):
        assert answer.status_code == 503
        assert "libjpeg.so.62" in answer.json()["detail"]


def test_empty_pages(visit, tmp_path, monkeypatch):
    """An empty page says what to do."""
    monkeypatch.setenv("CAPTION_STORE", (tmp_path / "nothing").as_uri())
    for path, text in (
        ("/", "No captions yet"),
        ("/by-model", "No captions yet"),
        ("/review", "Nothing to review"),
        ("/corrections", "Nobody has corrected"),
        ("/nights", "No night has run yet"),
        ("/models", "No model has been trained"),
        ("/datasets", "No captioned photographs have been read"),
    ):
        assert text in visit(path).text


def test_errors_have_pages(visit):
    """A person sees a page that says what to do, a program JSON."""
    page = visit("/image?key=x", headers={"Accept": "text/html"})
    assert (page.status_code, "There are no captions" in page.text) == (404, True)
    page = visit("/by-model?after=gone:1", headers={"Accept": "text/html"})
    assert (page.status_code, "pruned" in page.text) == (409, True)
    assert "night" in visit("/?night=x").json()["detail"]


@pytest.mark.parametrize("accept", ["text/html,*/*", "*/*"])
@pytest.mark.parametrize("cookie", [None, "not.a.token", "signed by an older server"])
def test_whoever_is_not_logged_in_is_led_to_the_login(visit, monkeypatch, accept, cookie):
    """And from there back to the page; a program gets a status. A cookie that is not valid any more is none."""
    if cookie and " " in cookie:
        import jwt

        now = int(time.time())
        claims = {"sub": "someone", "role": "admin", "exp": now + 600, "iat": now, "nbf": now, "aud": "apache-airflow"}
        cookie = jwt.encode(claims, "1" * 64, "HS512")
    headers = {"Accept": accept, **({"Cookie": f"_token={cookie}"} if cookie else {})}
    for path, root in (("/?words=a%26b", "./"), ("/models/m1/report", "../../"), ("/caption", "./")):
        method = "POST" if path == "/caption" else "GET"
        answer = visit(path, method=method, role=None, headers=headers, follow_redirects=False)
        if accept == "*/*":
            assert (answer.status_code, set(answer.json())) == (401, {"detail"})
        else:
            login = f"{root}../api/v2/auth/login?" + urlencode({"next": f"/captions{path}"})
            assert (answer.status_code, answer.headers["location"]) == (303, login)
    # A user without permission has a login already.
    from airflow.api_fastapi.app import get_auth_manager

    monkeypatch.setattr(get_auth_manager(), "is_authorized_dag", lambda **_: False)
    assert visit("/", cookie=True, headers={"Accept": accept}, follow_redirects=False).status_code == 403


@pytest.mark.parametrize("prefix", ["", "/proxied"])
def test_the_last_slash_may_be_missing(server, prefix):
    """A redirect adds it, and keeps the query and what a proxy puts before the path."""
    from starlette.testclient import TestClient

    app, _ = server
    with TestClient(app, root_path=prefix) as client:
        answer = client.get(f"{prefix}/captions?words=a%26b&night=2026-01-01", follow_redirects=False)
        assert (answer.status_code, answer.next_request.url.raw_path.decode()) == (
            307,
            f"{prefix}/captions/?words=a%26b&night=2026-01-01",
        )
        assert client.get(f"{prefix}/captions", follow_redirects=False).headers["location"] == "captions/"
        assert client.get(f"{prefix}/captions").status_code == 401
        assert "location" not in client.get(f"{prefix}/captionsx", follow_redirects=False).headers


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_viewers_do_not_learn_where_the_store_is(visit, post_correction, buckets, caplog, accept):
    """No answer names the address of a bucket, or the path of a folder; the log does."""
    store, inbox, etag = buckets
    for key in (shard_key("2026-01-02", "s"), layout.run_record("night", "n1"), layout.model_metadata("m1")):
        store.put(key, b"{")
    message = f"{store.url('x')} and {inbox.uri}, {store.root}/y and '{inbox.root}' at https://10.0.0.7:9000/x are away"
    record = NightRecord(
        run="n2", started_at=datetime(2026, 1, 3, tzinfo=UTC), status="failed", message=message, warnings=[message]
    )
    runs.write_record(record.model_copy(update={"errors": {message: 2}}), store)
    headers = {"Accept": accept}
    answers = [
        visit(path, headers=headers)
        for path in ("/by-model", "/nights", "/models", "/models/m2/report", "/models/m2/card", "/image?key=x")
    ]
    (store.root / layout.CORRECTION_LOG).parent.mkdir(exist_ok=True)
    store.put(layout.correction("2026-01-01", "c"), b"{")
    answers += [visit(path, headers=headers) for path in ("/corrections", "/corrections.csv", "/image?key=red.jpg")]
    for key in ("a/../b", "red.jpg/x", "x" * 1000, "missing.jpg"):
        answers.append(post_correction({**WORDS, "image_key": key, "image_etag": etag}, headers=headers))
    for answer in answers:
        text = html.unescape(answer.text)
        assert str(store.root.parent) not in text, answer.url
        assert "10.0.0.7" not in text
    assert "the store/x and the inbox, the store/y and 'the inbox' at the server are away" in html.unescape(
        answers[1].text
    )
    assert "the store" in answers[3].text
    assert f"There is no model 'm2' in {store.uri}" in caplog.text
    assert str(inbox.root) in caplog.text


def test_addresses_that_are_set_wrongly(visit, monkeypatch):
    """The answer says what is wrong, not the address."""
    for uri in ("ftp://user:secret@host/x", "gs://secret", "s3://secret?", "s3://secret/a//b", "s3://arn:secret"):
        monkeypatch.setenv("CAPTION_STORE", uri)
        answer = visit("/")
        assert (answer.status_code, "secret" in answer.text) == (409, False), answer.text
    monkeypatch.setenv("CAPTION_SHARD_SIZE", "secret")
    answer = visit("/")
    assert (answer.status_code, "CAPTION_SHARD_SIZE" in answer.text, "secret" in answer.text) == (409, True, False)


def test_a_model_of_choice_captions_an_upload(visit, answering, buckets):
    """One of those that the page lists; another one is refused before the picture goes anywhere."""
    store, _, _ = buckets
    for version in ("m1", "m2"):
        write_model(version, store)
    registry.promote("m1", store)
    page = visit("/try").text
    assert re.findall('<option value="(.*?)">', page) == ["", "m2"]
    assert f"{spoken_name('m1')} (m1), the champion" in page
    assert visit("/caption?version=m2", method="POST", content=b"x").status_code == 200
    answer = visit("/caption?version=m9", method="POST", content=b"x")
    assert (answer.status_code, "There is no model 'm9'" in answer.json()["detail"]) == (404, True)
    assert answering[1] == ["warm", (b"x", "m2")]


def test_a_sample_to_try(visit, buckets):
    """A photograph that a night has captioned, or a drawn picture if there is none; nothing is written."""
    store, inbox, _ = buckets
    before = [item for bucket in (store, inbox) for item in bucket.list()]
    sizes = set()
    for _ in range(2):
        answer = visit("/sample")
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/jpeg", "no-store")
        sizes.add(Image.open(io.BytesIO(answer.content)).size)
        inbox.delete("red.jpg")
    assert sizes == {(8, 8), (224, 224)}
    assert len(before) == 1 + len([item for bucket in (store, inbox) for item in bucket.list()])


def test_a_python_that_is_set_wrongly(visit, monkeypatch, tmp_path):
    """The page and the endpoint for uploads say so, and all others work."""
    monkeypatch.setenv("CAPTION_PYTHON", str(tmp_path))
    for answer in (visit("/try"), visit("/caption", method="POST", content=toy.picture("red"))):
        assert (answer.status_code, "CAPTION_PYTHON can't be used" in answer.text) == (409, True), answer.text
    assert visit("/").status_code == 200


def test_an_upload_that_breaks_off(server, buckets, caplog):
    """It is one line in the log, of the request."""
    import asyncio

    import structlog

    app, token = server
    body = iter(({"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.disconnect"}))

    async def receive():
        return next(body, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    for path in ("/captions/caption", "/captions/corrections"):
        body, sent = iter(({"type": "http.request", "body": b"abc", "more_body": True},)), []
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"x"), (b"authorization", f"Bearer {token('admin')}".encode())],
            "state": {},
        }
        with structlog.testing.capture_logs() as logs:
            asyncio.run(app(scope, receive, send))
        assert [(each["event"], each["status_code"]) for each in logs] == [("request finished", 400)]
    assert caplog.records == []


def test_the_icon_is_visible_wherever_it_is():
    """Some part of it contrasts with each background of Airflow's navigation: at rest, under the mouse and selected."""
    import airflow

    [bundle] = Path(airflow.__file__).with_name("ui").glob("dist/assets/index-*.js")
    brand = re.search(r"brand:\{50:\{value:.*?\}\}", bundle.read_text())[0]
    shades = {
        int(shade): tuple(map(float, value.split()))
        for shade, value in re.findall(r"(\d+):\{value:`oklch\((.*?)\)", brand)
    }
    static = Path(gallery.__file__).with_name("static")
    for name, backgrounds in (("icon.svg", (200, 300, 600)), ("icon-dark.svg", (800, 700, 600))):
        colours = {_light(colour) for colour in re.findall("#[0-9a-f]+", (static / name).read_text())}
        for shade in backgrounds:
            assert max(_contrast(_light(shades[shade]), colour) for colour in colours) >= 4.5, (name, shade)


def _light(colour):
    """The relative luminance of a colour of WCAG 2: hexadecimal, or lightness, chroma and hue of OKLCH."""
    if isinstance(colour, str):
        digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
        values = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        channels = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    else:
        lightness, chroma, hue = colour
        a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
        to_cones = ((0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480))
        cones = [(lightness + x * a + y * b) ** 3 for x, y in to_cones]
        to_channels = (
            (4.0767416621, -3.3077115913, 0.2309699292),
            (-1.2684380046, 2.6097574011, -0.3413193965),
            (-0.0041960863, -0.7034186147, 1.7076147010),
        )
        channels = [sum(map(operator.mul, row, cones)) for row in to_channels]
    return sum(map(operator.mul, channels, (0.2126, 0.7152, 0.0722)))


def _contrast(*lights):
    darker, lighter = sorted(lights)
    return (lighter + 0.05) / (darker + 0.05)


def test_a_store_that_is_down_has_a_page(visit, monkeypatch):
    """It says no more than that; the details are in the log."""
    monkeypatch.setattr(LocalBucket, "list", lambda *_: (_ for _ in ()).throw(ConnectionError("10.0.0.7 is away")))
    page = visit("/", headers={"Accept": "text/html"})
    assert (page.status_code, "is not readable" in html.unescape(page.text), "10.0.0.7" in page.text) == (
        500,
        True,
        False,
    )


def test_a_report_is_shown_and_runs_nothing(visit, trained, buckets):
    """The report of the newest evaluation, in a sandbox, in a frame below the gallery's navigation."""
    store, _, _ = buckets
    version = trained.model.version
    for path in ("report", "report/page"):
        missing = visit(f"/models/m2/{path}")
        assert (missing.status_code, "There is no model 'm2'" in missing.json()["detail"]) == (404, True)
    toy.copy(trained.store, store, layout.MODELS)
    for path in ("report", "report/page"):
        missing = visit(f"/models/{version}/{path}")
        assert (missing.status_code, "was not evaluated" in missing.json()["detail"]) == (404, True)
    for decoding in (DecodingConfig(beam_width=2), DecodingConfig(beam_width=1)):
        write_evaluation(version, store, cider=0.4, dataset=trained.model.dataset, decoding=decoding)
        report = f"<h1>{decoding}</h1><script>alert(1)</script>".encode()
        store.put(layout.evaluation(version, trained.model.dataset, decoding).report, report)
        answer = visit(f"/models/{version}/report/page")
        assert (answer.status_code, answer.content) == (200, report)
        assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        models = visit("/models").text
        assert f">{decoding}<" in models and f">{trained.model.dataset}<" in models
    answer = visit(f"/models/{version}/report")
    assert '<iframe class="report" src="report/page"' in answer.text and 'href="../../models"' in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy == visit("/models").headers["content-security-policy"] + "; frame-src 'self'"


def test_the_list_of_models(visit, buckets):
    """A name that can be said beside each version, how it was made, what it scored, and what became of it."""
    store, _, _ = buckets
    for version in ("m1", "m2"):
        write_model(version, store)
    assert "Promote …" in visit("/models").text
    registry.promote("m1", store, reason="the first")
    write_evaluation("m2", store, cider=0.4)
    page = visit("/models").text
    assert f'<a href="./?version=m2">{spoken_name("m2")}</a></span> <span class="model-version">m2<' in page
    assert page.count(">champion<") == 1
    for text in ("encoder encoder-1", "attention, 4 heads", "last stage of the encoder tuned", "seed 0", ">0.400<"):
        assert f"<p>{text}</p>" in page or text in page.replace("<p>", ""), text
    assert "self-critical" not in page and "ensemble" not in page
    assert (page.count(">Promote …<"), "Roll back …" in page, "MLflow" in page) == (1, False, False)
    assert f'href="compare?b=m2" aria-label="Compare {spoken_name("m2")} with the champion"' in page
    registry.promote("m2", store, reason="better")
    registry.roll_back(store, reason="ann rolled it back: it repeats itself")
    page = visit("/models").text
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert f"{today}: the first<" in page and f"{today}: ann rolled it back: it repeats itself<" in page


def test_links_to_mlflow(visit, buckets):
    """To the run of a model that a server has recorded, for those who may train, as it tells where the server is."""
    store, _, _ = buckets
    address = "https://mlflow.example/#/experiments/1/runs/2a"
    metadata = write_model("m1", store).model_copy(update={"tracking_page": address})
    write_json(metadata, layout.model_metadata("m1"), store)
    assert f'class="outside" href="{address}"' in visit("/models").text
    assert "mlflow.example" not in visit("/models", role="viewer").text


@pytest.fixture
def promote(visit):
    """A function that posts the reason for another champion."""

    def post(path, reason="it is better", seen="", **options):
        return visit(path, method="POST", content=json.dumps({"reason": reason, "seen": seen}), **options)

    return post


def test_a_model_is_promoted(visit, promote, buckets):
    """After a page that says what follows; who did it, and why, is in the history. It is what the command does."""
    store, _, _ = buckets
    for version, encoder in (("m1", "encoder-1"), ("m2", "encoder-2")):
        write_model(version, store, encoder_id=encoder)
    page = visit("/models/m1/promote").text
    assert f'Promote <span class="model-name">{spoken_name("m1")}' in page and "every photograph" in page
    answer = promote("/models/m1/promote", " it is\tbetter ")
    assert (answer.status_code, "a line of text" in answer.json()["detail"]) == (422, True)
    answer = promote("/models/m1/promote", " it is better ")
    summary = f"{spoken_name('m1')} (m1) is the champion. The next night captions with it."
    assert (answer.status_code, answer.json()) == (201, {"champion": "m1", "summary": summary})
    [entry] = registry.read_champion(store).history
    assert (entry.version, entry.run, entry.reason) == ("m1", "", "someone promoted it: it is better")
    assert "is the champion" in visit("/models/m1/promote").text
    assert (
        "Its encoder is another one" in visit("/models/m2/promote").text,
        "<form" in visit("/models/m1/promote").text,
    ) == (True, False)
    assert not any(item.key.startswith(layout.RUNS) for item in store.list()), "no night starts"


def test_a_champion_is_rolled_back(visit, promote, buckets):
    """To the one before; the rollback is kept with its reason, and without an earlier champion it is refused."""
    store, _, _ = buckets
    assert "no earlier champion" in visit("/rollback").text
    answer = promote("/rollback")
    assert (answer.status_code, "no earlier champion" in answer.json()["detail"]) == (409, True)
    for version in ("m1", "m2"):
        write_model(version, store)
        registry.promote(version, store, reason=f"the reason of {version}")
    page = visit("/rollback").text
    assert "the reason of m2" in page and spoken_name("m1") in page
    assert promote("/rollback", "it repeats itself", seen="m2").json()["champion"] == "m1"
    champion = registry.read_champion(store)
    assert (champion.version, champion.rollbacks[0].reason) == ("m1", "someone rolled it back: it repeats itself")


def test_what_the_registry_refuses(visit, promote, buckets):
    """Another champion than the one on the page, and a model that is not there; nothing changes."""
    store, _, _ = buckets
    for version in ("m1", "m2", "m3"):
        write_model(version, store)
    for version in ("m1", "m2"):
        registry.promote(version, store)
    for path in ("/models/m3/promote", "/rollback"):
        answer = promote(path, seen="m1")
        assert (answer.status_code, "the champion is now m2" in answer.json()["detail"]) == (409, True)
    for answer in (promote("/models/m9/promote", seen="m2"), visit("/models/m9/promote")):
        assert (answer.status_code, "There is no model 'm9'" in answer.json()["detail"]) == (404, True)
    for content in (b"", b"{}", b'{"reason": "", "seen": "m2"}', b'{"reason": 1, "seen": "m2"}'):
        assert visit("/rollback", method="POST", content=content).status_code == 422
    assert registry.read_champion(store).version == "m2"


def compared(page):
    """The pictures' names and the captions of each pair on a page, in their order."""
    pairs = re.findall(r'<li class="pair.*?</li>', page, re.DOTALL)
    found = [(re.search('alt="(.*?)"', pair)[1], re.findall("<dd>(.*?)[<]", pair)) for pair in pairs]
    return [(html.unescape(name), list(map(html.unescape, captions))) for name, captions in found]


def test_two_models_are_compared(visit, buckets):
    """Both captions of each photograph, different ones first, and what a person said; the scores, and warnings."""
    store, inbox, etag = buckets
    for version, captions, cider in (("m1", ("a ball", HOSTILE), 0.6), ("m2", ("a red ball", HOSTILE), 0.4)):
        write_model(version, store)
        write_evaluation(version, store, cider=cider)
        rows = [
            {**row(key, caption), "image_etag": inbox.etag(key)}
            for key, caption in zip(("red.jpg", f"{HOSTILE}.jpg"), captions, strict=True)
        ]
        write(store, rows, night="2026-01-02", shard="s", version=version)
    registry.promote("m1", store)
    corrections.add(
        inbox.get("red.jpg"), corrected_by="ann", store=store, image_key="red.jpg", image_etag=etag, **WORDS
    )
    answer = visit("/compare?b=m2")
    assert answer.text == visit("/compare?a=m1&b=m2").text
    assert compared(answer.text) == [
        ("red.jpg", ["a ball", "a red ball", "a red ball"]),
        (f"{HOSTILE}.jpg", [HOSTILE, HOSTILE]),
    ]
    assert "<img src=x" not in answer.text
    text = " ".join(html.unescape(re.sub("<.*?>", " ", answer.text)).split())
    assert "Of 2 photographs in the inbox, 1 have different captions; these come first." in text
    assert f"People have corrected 1 of them. Of these, {spoken_name('m2')} now describes 1 in the person's" in text
    assert "closer to the person's words" in text
    assert "Its CIDEr is 0.200 lower" in text and "−0.200" in text
    assert "as the person wrote" in text and "ann corrected" in text
    swapped = visit("/compare?a=m2&b=m1").text
    assert ("lower. Another seed" in swapped, "and 1 no longer." in swapped) == (False, True)
    assert compared(visit("/compare?b=m2&start=1").text)[0][0] == f"{HOSTILE}.jpg"
    [(name, captions)] = compared(visit("/compare?b=m2&of=test").text)
    assert (name, captions) == ("toy/0123456789abcdef.jpg", ["a dog", "a dog", "a human caption"])


def test_pages_of_a_comparison(visit, buckets, monkeypatch):
    """Each has a part of the photographs, and leads to the next and back."""
    from captioning.gallery import models

    store, _, _ = buckets
    monkeypatch.setattr(models, "PAIRS", 2)
    for version in ("m1", "m2"):
        write_model(version, store)
        write(store, [row(f"{name}.jpg", version) for name in "abc"], night="2026-01-02", shard="s", version=version)
    seen, path = [], "compare?a=m1&b=m2"
    while path:
        page = visit(f"/{path}").text
        seen.append([name for name, _ in compared(page)])
        following = re.search(r'rel="next" href="(.*?)"', page)
        path = following and html.unescape(following[1])
    assert seen == [["a.jpg", "b.jpg"], ["c.jpg"]]
    assert 'rel="prev" href="compare?a=m1&amp;b=m2&amp;of=inbox&amp;start=0#photographs"' in page


def test_what_cannot_be_compared(visit, buckets):
    """A page says why: there is no champion, no such model, one model twice, or nothing that both have done."""
    store, _, _ = buckets
    for version in ("m1", "m2"):
        write_model(version, store)
    for path, status, text in (
        ("/compare?b=m2", 404, "There is no champion yet"),
        ("/compare?a=m1&b=m9", 404, "There is no model 'm9'"),
        ("/compare?a=m1&b=m1", 422, "one model twice"),
        ("/compare?a=m1", 422, "b: "),
    ):
        answer = visit(path)
        assert (answer.status_code, text in answer.json()["detail"]) == (status, True), path
    page = visit("/compare?a=m1&b=m2").text
    assert "no evaluations on the same test photographs" in page and "have not captioned the same photographs" in page


def test_a_test_photograph_is_shown(visit, buckets, tmp_path, caplog):
    """One of the test split, from its source, whose address no answer names; no other."""
    store, _, _ = buckets
    source = open_bucket(str(tmp_path / "source"))
    toy.draw(source)
    dataset = ingest([source.url("captions.csv")], store, name="toy").dataset
    found = visit("/datasets/picture", params={"dataset": dataset, "image": "red-5.jpg"})
    assert (found.headers["content-type"], "immutable" in found.headers["cache-control"]) == ("image/jpeg", True)
    source.delete("pictures/blue-5.jpg")
    for name, image in (
        (dataset, "red-0.jpg"),
        (dataset, "../captions.csv"),
        (dataset, "blue-5.jpg"),
        ("toy/0123456789abcdef", "red-5.jpg"),
        ("../x", "red-5.jpg"),
    ):
        answer = visit("/datasets/picture", params={"dataset": name, "image": image})
        assert (answer.status_code, "can't be shown" in answer.json()["detail"]) == (404, True)
        assert str(tmp_path) not in answer.text


def test_a_card_is_shown(visit, trained, buckets):
    """Its headings, lists and tables; all else is text, so that nothing in it can be followed or run."""
    store, _, _ = buckets
    version = trained.model.version
    missing = visit("/models/m2/card")
    assert (missing.status_code, "There is no model 'm2'" in missing.json()["detail"]) == (404, True)
    toy.copy(trained.store, store, layout.MODELS)
    assert (
        f'<a href="models/{version}/card" aria-label="Card of {spoken_name(version)}">Card</a>' in visit("/models").text
    )
    page = visit(f"/models/{version}/card").text
    assert f"<h1>Model {version}</h1>" in page and "<h2>Limits</h2>" in page
    assert f"<li>Dataset: {trained.model.dataset}</li>" in page
    assert "<th>best epoch</th>" in page and str(store.root.parent) not in page
    store.put(layout.model_card(version), f"# {HOSTILE}\n\n[a](b) ![c](d) <i>e</i> https://f.example\n".encode())
    page = visit(f"/models/{version}/card").text
    assert "onerror" in page and "<img" not in page
    assert "[a](b) ![c](d) &lt;i&gt;e&lt;/i&gt; https://f.example" in page
    store.delete(layout.model_card(version))
    missing = visit(f"/models/{version}/card")
    assert (missing.status_code, f"`captioning evaluate {version}` writes it" in missing.json()["detail"]) == (
        404,
        True,
    )


def test_the_list_of_datasets(visit, buckets):
    """Their counts, and what goes into the form: their names and, for those who may train, the addresses of sources."""
    store, _, _ = buckets
    source = toy.draw(store)
    report = ingest([source], store, name="toy")
    page = html.unescape(visit("/datasets").text)
    for text in (f'data-copy="{report.dataset}"', f'data-copy="{next(iter(report.sources))}"', f">{report.captions}<"):
        assert text in page
    assert str(store.root.parent) not in visit("/datasets", role="viewer").text
    store.put(layout.ingest_report(report.dataset), b"{")
    page = visit("/datasets").text
    assert (report.dataset in page, "ingest.json is damaged" in page) == (True, True)


def test_filters_of_a_form_come_through(visit):
    """A form sends empty values for the fields that are not used."""
    for view in ("?review=&order=newest", "by-model?night="):
        page = visit(f"/{view}&words=ball&version=&status=&source=&unsure=").text
        assert ("red.jpg" in page, "onerror" in page, ">Clear<" in page) == (True, False, True)
        assert "Nothing found" in visit(f"/{view}&unsure=0.01").text


def test_how_sure_the_model_is(visit, buckets):
    """In percent, on the pages of captions and of a picture; of a novel photograph, and without calibration, not."""
    store, _, _ = buckets
    judged = [("sure.jpg", 0.724, False), ("novel.jpg", 0.9, True), ("unknown.jpg", None, None)]
    rows = [{"key": key, "confidence": confidence, "novel": novel} for key, confidence, novel in judged]
    write(store, [row(**each) for each in rows], night="2026-01-02", shard="s")
    write_current(store, [current_row(**each, review=bool(each["novel"])) for each in rows])
    for key, shown in {
        "sure.jpg": (True, False),
        "novel.jpg": (False, True),
        "unknown.jpg": (False, False),
    }.items():
        for path in (f"/?words={key}", f"/by-model?words={key}", f"/image?key={key}"):
            page = visit(path).text.partition("<h1")[2]
            assert (">72 % sure<" in page, ">unlike the photographs it learned from<" in page) == shown, path
            assert "90 %" not in page
            assert "probability" not in page
    for view, all_there_are in (("", 3), ("by-model", 6)):
        for limit, shown in {"0.8": 2, "0": 1, "": all_there_are}.items():
            page = visit(f"/{view}?unsure={limit}").text
            assert page.count('class="card') == shown, limit
            assert not limit or f'value="{limit}" selected' in page, limit
    assert ">below 50 %: to review<" in visit("/by-model").text
    assert visit("/?review=true").text.count('class="card') == 1
    write(store, [row(f"{number}.jpg", novel=True) for number in range(30)], night="2026-01-03", shard="s")
    following = re.search(r'rel="next" href="([^"]*)"', visit("/by-model?unsure=0").text)[1]
    assert visit(f"/{html.unescape(following)}").text.count('class="card') == 7


def test_the_pages_of_the_current_captions(visit, buckets):
    """How many there are, which page this is, and links to the others, with the filters and the order."""
    store, _, _ = buckets
    rows = [current_row(f"{number:03}.jpg", "a dog", confidence=number / 100) for number in range(60)]
    write_current(store, [*rows, current_row("x.jpg", "a cat")])

    def shown(path):
        page = html.unescape(visit(path).text)
        links = dict(reversed(link) for link in re.findall(r'<a[^>]*href="(\./\?[^"]*)">([^<]*)</a>', page))
        return page, re.findall(r'class="key" title="(.*?)"', page), links

    page, keys, links = shown("/?words=dog&order=unsure")
    assert "60 photographs, page 1 of 3." in page
    assert keys == [f"{number:03}.jpg" for number in range(24)]
    assert (set(links), "First" in page) == ({"Next →", "Last"}, False)
    page, keys, links = shown(links["Next →"].removeprefix("."))
    assert ("page 2 of 3" in page, keys[0], set(links)) == (True, "024.jpg", {"First", "← Previous", "Next →", "Last"})
    page, keys, links = shown(links["Last"].removeprefix("."))
    assert ("Page 3 of 3" in page, len(keys), set(links)) == (True, 12, {"First", "← Previous"})
    assert shown("/?words=dog&order=unsure&page=99")[1] == keys
    assert "1 photograph." in shown("/?words=cat")[0]
    assert visit("/?page=0").status_code == visit("/?order=best").status_code == 422


def test_what_waits_and_what_failed(visit, buckets):
    """An image that waits has its picture and says so; a failed one its error."""
    write_current(buckets[0], [current_row("red.jpg", None, etag=buckets[2]), current_row("x.jpg", error="too slow")])
    page = visit("/?status=waiting").text
    assert ("The next night captions this picture." in page, "thumbnail?key=red.jpg" in page) == (True, True)
    assert ("too slow" in page, "too slow" in visit("/?status=failed").text) == (False, True)


def test_the_filtered_captions_as_csv(visit, post_correction, buckets):
    """All that the page's filters find, with what people said, and texts that are no formulas."""
    store, _, etag = buckets
    write_current(
        store,
        [
            current_row("red.jpg", "a ball", etag=etag),
            current_row("=1.jpg", "two balls"),
            current_row("b.jpg", "a dog"),
        ],
    )
    assert post_correction({**WORDS, "image_key": "red.jpg", "image_etag": etag}).status_code == 201
    assert '<button class="link" form="search" formaction="captions.csv">' in visit("/?words=ball%20a").text
    # As the form sends it.
    answer = visit("/captions.csv?words=ball%20a&under=&version=&status=&source=&unsure=&review=&order=newest")
    assert (answer.headers["content-type"], answer.headers["content-disposition"]) == (
        "text/csv; charset=utf-8",
        "attachment; filename=captions.csv",
    )
    [only] = csv.DictReader(io.StringIO(answer.text))
    assert (only["image_key"], only["caption"], only["source"]) == ("red.jpg", "a red ball", "person")
    rows = list(csv.DictReader(io.StringIO(visit("/captions.csv").text)))
    assert [each["image_key"] for each in rows] == ["'=1.jpg", "b.jpg", "red.jpg"]
    assert list(rows[0]) == current.SCHEMA.names
    nothing = visit("/captions.csv?words=zebra").text
    assert nothing.strip().count("\n") == 0
    assert "image_key" in nothing
    store.put(layout.correction("2026-01-01", "c"), b"{")
    assert visit("/captions.csv").status_code == 409


def test_an_empty_page_leads_on(visit, tmp_path, monkeypatch):
    """To the DAG that trains if there is no champion, to that of nights, and to the inbox; viewers miss its address."""
    from captioning.gallery.app import app

    store = open_bucket(str(tmp_path / "empty store"))
    monkeypatch.setenv("CAPTION_STORE", store.uri)
    monkeypatch.setenv("CAPTION_INBOX", str(tmp_path / "my inbox"))
    for path in ("/", "/by-model"):
        page = html.unescape(visit(path).text)
        assert 'dags/retrain_captioner"' in page
        assert 'dags/caption_new_images"' in page
        assert f"cp -r photographs/. '{tmp_path}/my inbox/'" in page
        assert (tmp_path / "my inbox").as_uri() in page
        page = visit(path, role="viewer").text
        assert ("dags/caption_new_images" in page, str(tmp_path) in page, "inbox" in page) == (True, False, True)
    write_model("m1", store)
    registry.promote("m1", store)
    assert "retrain_captioner" not in visit("/").text
    far = MemoryBucket("inbox")
    far.uri = "s3://my-bucket/inbox"
    monkeypatch.setitem(app.dependency_overrides, dependencies.inbox, lambda: far)
    assert "aws s3 sync photographs/ s3://my-bucket/inbox/" in visit("/").text


def test_a_night_is_one_of_captions_by_models(visit):
    """Links to a night, which Airflow and old pages have, lead to captions by models, with all filters."""
    answer = visit("/?night=2026-01-01&words=a%26b", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "./by-model?night=2026-01-01&words=a%26b")
    assert "a ball" in visit("/?night=2026-01-01").text


def test_current_captions_that_are_damaged(visit, buckets):
    """The page says so and what to do, and leads to the captions by models."""
    buckets[0].put(layout.CURRENT_CAPTIONS, b"{")
    answer = visit("/")
    assert (answer.status_code, "the next night writes it again" in answer.text) == (200, True)
    assert "can't be read" in html.unescape(answer.text)


def test_the_end_of_the_pages(visit):
    """If a full page was the last, the next one does not say that nothing was found at all."""
    end = {"words": "ball", "after": f"{shard_key('2026-01-01', 's')}:1"}
    page = visit("/by-model", params=end).text
    assert ("No older captions match" in page, "No captions match" in page) == (True, False)


def test_drift_is_plotted(visit, buckets):
    """A dot per night and reference, those beyond the limit among them; warnings and errors are in the table."""
    from captioning.gallery import nights

    assert drift.CHANCE.keys() <= nights.DRIFT_TITLES.keys()
    store, _, _ = buckets
    first = NightRecord(
        run="n1",
        status="succeeded",
        started_at=datetime(2026, 1, 1, 2, tzinfo=UTC),
        version="m1",
        listed=1200,
        captioned=3,
        failed=1,
        already_done=4,
        images_per_second=2.5,
        errors={"the file is empty": 1},
        drift={"the model's test": {"features": 0.1, "failed": 0.0}},
    )
    update = {
        "run": "n2",
        "started_at": datetime(2026, 1, 2, 2, tzinfo=UTC),
        "drift": {**first.drift, "earlier nights": {"features": -2.0, "failed": 0.0}},
        "warnings": [HOSTILE],
    }
    for record in (first, first.model_copy(update=update)):
        runs.write_record(record, store)
    text = visit("/nights").text
    assert (text.count("<circle"), text.count(' beyond"')) == (6, 1)
    assert "2026-01-02: -2.00 from earlier nights" in text
    for path, name in (("night=2026-01-01", "3 captions"), ("status=failed&amp;night=2026-01-01", "1 failed images")):
        assert f'href="by-model?{path}&amp;version=m1" aria-label="{name} of 2026-01-01 02:00"' in text
    for label in (">2026-01-01</text>", ">2026-01-02</text>", ">−2.00</text>", ">+0.10</text>", ">+0.5</text>"):
        assert label in text, "it can be read without a mouse"
    assert 'href="./../dags/caption_new_images/runs/n2"' in text
    assert 'href="models/m1/card"' in text
    assert "night=2026-01-02" not in text, "nothing was written under this date"
    assert "1,200" in text
    assert "1 × the file is empty" in text
    assert "<img src=x" not in text


def test_nights_that_failed_or_run(visit, buckets):
    """The table shows the status and the error message; counts that are not known yet stay empty."""
    store, _, _ = buckets
    started = datetime(2026, 1, 3, 2, tzinfo=UTC)
    runs.write_record(NightRecord(run="n1", started_at=started), store)
    text = visit("/nights").text
    assert (">running<" in text, "/card" in text, "clear the failed task" in text) == (True, False, False)
    runs.end_run(runs.NIGHT, "n1", f"extract[3]: {HOSTILE}", store)
    text = visit("/nights").text
    assert (">failed<" in text, ">running<" in text, ">0<" in text) == (True, False, False)
    assert f"extract[3]: {HOSTILE}" in html.unescape(text)
    assert "fix the problem, then clear the failed task in" in text
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
    assert "far.jpg" in visit("/by-model").text
    assert visit("/thumbnail", params={"key": "far.jpg", "etag": etag}).status_code == 200
    profiles = Path(dependencies.child().environment["AWS_CONFIG_FILE"])
    assert s3_server in profiles.read_text()
    # Something cleans up /tmp.
    shutil.rmtree(profiles.parent)
    dependencies._open.cache_clear()
    assert "far.jpg" in visit("/by-model").text
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
    dependencies._open.cache_clear()
    answer = visit("/", headers={"Accept": "text/html"})
    assert (answer.status_code, "credentials" in answer.text) == (409, True)
    dependencies._open.cache_clear()
    boto3.setup_default_session()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/by-model",
        "/review",
        "/review/count",
        "/corrections",
        "/nights",
        "/models",
        "/compare?a=20251101T020000-0000&b=20251221T020000-0000",
        "/models/20251101T020000-0000/promote",
        "/try",
        "/image?key=2024/01/05/c.jpg&night=2024-01-05",
    ],
)
def test_a_page_of_a_store_of_years(visit, monkeypatch, path):
    """What a page asks the store for does not grow with the number of nights; the search of a picture ends in time."""
    from captioning.gallery.app import app

    store = write_history()
    monkeypatch.setitem(app.dependency_overrides, dependencies.store, lambda: store)
    answer = visit(path)
    assert answer.status_code == 200
    assert store.requests <= 50


def test_damaged_objects_are_named(visit, buckets):
    """Each page shows what can be read, and a note on what can't."""
    store, _, _ = buckets
    for key in (
        shard_key("2026-01-02", "s"),
        layout.run_record("night", "n1"),
        layout.model_metadata("m1"),
        layout.correction("2026-01-01", "c"),
    ):
        store.put(key, b"{")
    assert "corrections/2026-01-01/c.parquet is damaged" in visit("/image?key=red.jpg").text
    assert "corrections/2026-01-01/c.parquet" in visit("/corrections.csv").json()["detail"]
    pages = {
        "/by-model": "captions/model=m1",
        "/": "corrections/2026-01-01/c.parquet",
        "/review": "corrections/2026-01-01/c.parquet",
        "/corrections": "corrections/2026-01-01/c.parquet",
        "/nights": "runs/night/n1.json",
        "/models": "models/m1/metadata.json",
    }
    for path, name in pages.items():
        page = visit(path)
        assert page.status_code == 200
        assert f"{name}" in page.text
        assert "is damaged" in page.text
    assert "a ball" in visit("/").text


def test_what_a_night_passed_over(visit, buckets):
    """It is counted by kind, and so is what was gone or postponed."""
    store, _, _ = buckets
    record = runs.NightRecord(
        run="n1",
        started_at=datetime(2026, 1, 2, tzinfo=UTC),
        status="succeeded",
        listed=1234,
        postponed=1000,
        gone=3,
        passed_over={".mov": 12, "hidden": 1},
    )
    runs.write_record(record, store)
    page = visit("/nights").text
    assert "<p>12 .mov</p><p>1 hidden</p>" in page
    assert "1,000" in page
    assert "3 × removed or replaced after they were listed" in page


class HangingBucket(MemoryBucket):
    """A bucket whose readers wait until they may go on."""

    def __init__(self, name):
        super().__init__(name)
        self.readers, self.go_on = Semaphore(0), Event()

    def list(self, prefix="", *, passed_over=None):
        """Wait."""
        self.readers.release()
        self.go_on.wait()
        return iter(())

    def get(self, key, *, etag=None, limit=None):
        """Wait."""
        return next(self.list())


@pytest.mark.parametrize(("path", "threads"), [("/", limits.pages), ("/thumbnail?key=a", limits.thumbnails)])
def test_airflow_answers_while_the_gallery_hangs(visit, monkeypatch, path, threads):
    """A flood takes none of the threads that answer heartbeats, and what the queue does not hold is refused at once."""
    from captioning.gallery.app import app

    hanging, flood = HangingBucket("hanging"), 200
    for bucket in (dependencies.store, dependencies.inbox):
        monkeypatch.setitem(app.dependency_overrides, bucket, lambda: hanging)
    with ThreadPoolExecutor(flood + 1) as users:
        try:
            answers = [users.submit(visit, path) for _ in range(flood)]
            for _ in range(threads.count):
                assert hanging.readers.acquire(timeout=60)
            assert users.submit(visit.airflow, "/api/v2/version").result(timeout=60).status_code == 200
            refused = list(islice(as_completed(answers, timeout=60), flood - threads.count - threads.waiting))
            assert {answer.result().status_code for answer in refused} == {503}
            assert {answer.result().headers["retry-after"] for answer in refused} == {"10"}
        finally:
            hanging.go_on.set()
    assert visit("/static/gallery.css").status_code == 200


def test_a_request_ends_with_its_time(visit, buckets, monkeypatch):
    """The page says that the storage is slow, and what its function still reads is refused."""
    monkeypatch.setattr(limits, "PAGE_SECONDS", -1)
    for path in ("/", "/nights", "/image?key=red.jpg", "/thumbnail?key=red.jpg"):
        answer = visit(path)
        assert (answer.status_code, "storage is slow" in answer.json()["detail"]) == (504, True), path


def test_pictures_that_are_no_files(visit, buckets):
    """A named pipe in a local inbox, and a link to a device without end, are not read."""
    _, inbox, _ = buckets
    os.mkfifo(inbox.root / "pipe.jpg")
    (inbox.root / "zero.jpg").symlink_to("/dev/zero")
    for key in ("pipe.jpg", "zero.jpg"):
        answer = visit("/thumbnail", params={"key": key})
        assert (answer.status_code, "put a regular file in its place" in answer.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    ("key", "data", "why"),
    [
        ("missing.jpg", None, "it was replaced or removed"),
        ("empty.jpg", b"", "the file is empty"),
        ("bomb.png", encoded(Image.new("1", (9500, 9500)), "PNG"), "more than 90 million pixels; scale it down"),
    ],
    ids=["missing", "empty", "bomb"],
)
def test_why_there_is_no_thumbnail(visit, buckets, key, data, why):
    """The answer says why, which the page of the picture shows in its place."""
    _, inbox, _ = buckets
    if data is not None:
        inbox.put(key, data)
    answer = visit("/thumbnail", params={"key": key})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    assert f"The picture can't be shown: {why}" in answer.json()["detail"]
    assert inbox.uri not in answer.text


def test_the_page_of_a_failed_picture(visit, buckets):
    """It says what failed, also where the picture would be, and not that the picture is no longer in the inbox."""
    store, inbox, _ = buckets
    inbox.put("bad.jpg", b"not a picture")
    write(store, [row("bad.jpg", error="not a picture in a known format")], night="2026-01-02", shard="s")
    page = visit("/image?key=bad.jpg").text
    assert '<p class="caption">not a picture in a known format</p>' in page
    assert "The picture can't be shown: not a picture in a known format." in html.unescape(page)
    assert "inbox" not in page
