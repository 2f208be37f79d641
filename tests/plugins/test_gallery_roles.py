"""The gallery under the auth manager of Flask-AppBuilder (FAB): what each role may do, and the way to the login."""

import json
import re

import pytest

from captioning.names import NIGHT_DAG
from pipeline.captioner import registry
from pipeline.data import corrections
from pipeline.serving.server import Answer, ScoredCaption
from pipeline.storage import open_bucket
from tests.support import toy
from tests.support.caption_tables import current_row, row, write, write_current
from tests.support.gallery import routes
from tests.support.models import write_model

# Those of packages that only FAB needs.
pytestmark = pytest.mark.filterwarnings("ignore")

READER, OUTSIDER = "Reader", "Outsider"
"""Roles that may see one DAG each: that of nights, and another one."""

UPLOADER = "Uploader"
"""A role that may report an upload, and nothing else."""

MAY_SEE = dict.fromkeys(("Public", OUTSIDER, UPLOADER), False)
MAY_SEE |= dict.fromkeys((READER, "Viewer", "User", "Op", "Admin"), True)
"""Roles, and whether they may see the DAG of nights; all but those three are FAB's own."""

MAY_TRIGGER = ("User", "Op", "Admin")

HOSTILE = "<img src=x onerror=alert(1)>"
"""The name of the administrator."""


@pytest.fixture(scope="module")
def server(airflow_home):
    """Airflow's API server with FAB, and its users by role."""
    from airflow.api_fastapi.app import create_app, get_auth_manager, purge_cached_app
    from airflow.providers.fab.auth_manager.models.db import FABDBManager
    from airflow.utils.session import create_session

    with pytest.MonkeyPatch.context() as patch:
        manager = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", manager)
        patch.setenv("AIRFLOW__FAB__CONFIG_FILE", str(airflow_home / "none.py"))
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "0" * 64)
        patch.setenv("AIRFLOW__API__SECRET_KEY", "0" * 64)
        with create_session() as session:
            FABDBManager(session).initdb()
        purge_cached_app()
        app = create_app("core")
        flask_app = get_auth_manager().flask_app
        with flask_app.app_context():
            security = flask_app.appbuilder.sm
            for role, dag in ((READER, NIGHT_DAG), (OUTSIDER, "retrain_captioner")):
                permission = security.create_permission("can_read", f"DAG:{dag}")
                security.add_permission_to_role(security.add_role(role), permission)
            uploader = security.add_role(UPLOADER)
            for action, resource in (("create", "Assets"), ("read", "Assets"), ("read", "Asset Aliases")):
                security.add_permission_to_role(uploader, security.create_permission(f"can_{action}", resource))
            users = {}
            for role in MAY_SEE:
                name = HOSTILE if role == "Admin" else role
                users[role] = security.add_user(
                    name, "Some", "One", f"{role}@example.org", security.find_role(role), "password"
                )
        yield app, users
    purge_cached_app()


@pytest.fixture
def client(server):
    """A browser."""
    from starlette.testclient import TestClient

    with TestClient(server[0], base_url="http://127.0.0.1:8080", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def visit(server, client):
    """A function that gets or posts as a user of some role, or of none."""
    from airflow.api_fastapi.app import get_auth_manager

    def ask(role, path, *, method="GET", headers=None, **options):
        token = {"Authorization": f"Bearer {get_auth_manager().generate_jwt(server[1][role])}"} if role else {}
        return client.request(method, path, headers={**token, **(headers or {})}, **options)

    return ask


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with a captioned picture of an inbox, and a captioning process that always answers the same."""
    from captioning.gallery import try_it

    store, inbox = open_bucket(str(tmp_path / "store")), open_bucket(str(tmp_path / "inbox"))
    etag = inbox.put("red.jpg", toy.picture("red"))
    write(store, [{**row("red.jpg", "a ball"), "image_etag": etag}], night="2026-01-01", shard="s")
    write_current(store, [current_row("red.jpg", "a ball", etag=etag)])
    monkeypatch.setenv("CAPTION_STORE", store.uri)
    monkeypatch.setenv("CAPTION_INBOX", inbox.uri)

    class Always:
        def caption(self, data, version):
            return Answer(version="m1", captions=[ScoredCaption(caption="a ball", log_prob=-0.5, probability=0.4)])

        def warm(self):
            pass

    monkeypatch.setattr(try_it, "worker", Always())
    form = {"caption": "a red ball", "model_caption": "a ball", "image_key": "red.jpg", "image_etag": etag}
    return store, json.dumps(form).encode() + b"\n"


@pytest.mark.parametrize("role", [None, *MAY_SEE])
def test_each_role_may_do_what_airflow_lets_it_do(visit, store, role):
    """Each route opens to those to whom Airflow's own API opens the DAG of nights, to see it and to trigger it."""
    bucket, form = store
    may_see, may_trigger = MAY_SEE.get(role, False), role in MAY_TRIGGER
    refused = 403 if role else 401
    api = f"/api/v2/dags/{NIGHT_DAG}"
    assert (visit(role, api).status_code != refused) == may_see
    triggered = visit(role, f"{api}/dagRuns", method="POST", json={"logical_date": None})
    assert (triggered.status_code != refused) == may_trigger
    for version in ("m0", "m1"):
        write_model(version, bucket)
    registry.promote("m0", bucket)
    contents = {
        "/models/m1/promote": {"reason": "better", "seen": "m0"},
        "/rollback": {"reason": "worse", "seen": "m1"},
    }
    for method, path in routes():
        content = json.dumps(contents[path]) if method == "POST" and path in contents else form
        status = visit(role, f"/captions{path}", method=method, content=content).status_code
        if method == "POST":
            assert (status in (200, 201), status == refused) == (may_trigger, not may_trigger), path
        else:
            assert (status in (200, 404, 422), status == refused) == (may_see, not may_see), path
    for path in (
        "/",
        "/review",
        "/corrections",
        "/nights",
        "/models",
        "/try",
        "/image?key=red.jpg",
        "/thumbnail?key=red.jpg",
    ):
        answer = visit(role, f"/captions{path}")
        assert answer.status_code == (200 if may_see else refused), path
        assert may_trigger or '<button name="action"' not in answer.text
    assert corrections.count(bucket) == may_trigger
    assert len(registry.read_champion(bucket).rollbacks) == may_trigger


@pytest.mark.parametrize("role", [None, *MAY_SEE])
def test_who_may_report_an_upload(visit, role):
    """Those who may trigger a night, and a role that may do only this."""
    found = visit(role, "/api/v2/assets?name_pattern=captioning_inbox")
    reported = visit(role, "/api/v2/assets/events", method="POST", json={"asset_id": 2**31 - 1})
    if role in (UPLOADER, *MAY_TRIGGER):
        assert (found.status_code, reported.status_code) == (200, 404)  # there is no such asset here
    else:
        assert reported.status_code == (403 if role else 401)


def test_each_deployment_has_readers_of_its_own(visit, store, monkeypatch):
    """With a prefix, the DAG of nights is another, and who may see that of another deployment sees nothing."""
    assert visit(READER, "/captions/").status_code == 200
    monkeypatch.setenv("CAPTION_DAG_PREFIX", "team_a_")
    refused = visit(READER, "/captions/", headers={"Accept": "text/html"})
    assert (refused.status_code, "<code>team_a_caption_new_images</code>" in refused.text) == (403, True)
    assert visit("Admin", "/captions/").status_code == 200
    assert "<code>team_a_retrain_captioner</code>" in visit("Admin", "/captions/models").text


def test_a_name_of_a_user_is_text(visit, store):
    """FAB takes any name; a page shows it as it is written."""
    _, form = store
    assert visit("Admin", "/captions/corrections", method="POST", content=form).json()["corrected_by"] == HOSTILE
    for path in ("/captions/", "/captions/corrections", "/captions/image?key=red.jpg"):
        page = visit("Viewer", path).text
        assert ("<img src=x" in page, "&lt;img src=x" in page) == (False, True)


def test_the_login_leads_back_to_the_page(client, store):
    """From a page of the gallery to FAB's login and back, with the query; a login that was removed leads there, too."""
    wanted = "/captions/?words=red+%26+blue"
    client.cookies.set("_token", "of.another.server")
    login = client.get(wanted, headers={"Accept": "text/html"})
    assert (login.status_code, login.url.path) == (200, "/auth/login/")
    form = {
        "username": "Viewer",
        "password": "password",
        "csrf_token": re.search(r'csrf_token.*?value="(.+?)"', login.text)[1],
    }
    page = client.post(str(login.url), data=form, headers={"Accept": "text/html"})
    assert (page.status_code, page.url.raw_path.decode()) == (200, wanted)
    assert 'value="red &amp; blue"' in page.text


@pytest.mark.parametrize(
    "path",
    [
        "//evil.example/",
        "/%2F%2Fevil.example",
        "/\\evil.example",
        "/?next=https://evil.example",
        "/http://evil.example",
    ],
)
def test_the_login_leads_to_no_other_site(client, store, path):
    """Whatever is asked for."""
    login = client.get(f"/captions{path}", headers={"Accept": "text/html"})
    assert login.url.host == "127.0.0.1"
    form = {"username": "Viewer", "password": "password"}
    if found := re.search(r'csrf_token.*?value="(.+?)"', login.text):
        page = client.post(str(login.url), data=form | {"csrf_token": found[1]}, headers={"Accept": "text/html"})
        assert page.url.host == "127.0.0.1"


def test_a_user_who_was_deactivated_is_logged_out(server, client, visit, store):
    """Whatever their token says."""
    from airflow.api_fastapi.app import get_auth_manager

    flask_app = get_auth_manager().flask_app
    with flask_app.app_context():
        security = flask_app.appbuilder.sm
        gone = security.add_user("gone", "Some", "One", "gone@example.org", security.find_role("Admin"), "password")
        gone.active = False
        security.update_user(gone)
    client.cookies.set("_token", get_auth_manager().generate_jwt(gone))
    assert client.get("/captions/").status_code == 401
