"""Both DAGs on a cluster: Celery workers, PostgreSQL, Redis and an S3 server, which are killed in the middle of nights.

`make test-cluster` runs these; `make test` leaves them out. They build on one another, in this order.
"""

import secrets
import shutil
import sys
from collections import Counter
from datetime import datetime

import pytest

from captioning.failures import NO_MESSAGE
from pipeline.captioner import registry
from pipeline.storage import open_bucket, parquet
from pipeline.work import runs
from tests.support import cluster as machines
from tests.support import toy
from tests.support.waiting import wait_for

pytestmark = pytest.mark.cluster

RETRAINING, NIGHT = "/api/v2/dags/retrain_captioner", "/api/v2/dags/caption_new_images"

PICTURES = 24
"""That come before each night: eight shards of extraction and two of captions."""

QUICKLY = {
    # A machine that is silent so long is gone: five minutes by default, which is longer than a whole night here.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "CAPTION_SHARD_SIZE": "3",
    "CAPTION_TRACKING_URI": "",
}

COMPUTING = ("extract", "caption")


class World:
    """The cluster with what it works on: pictures come to the inbox, nights caption them, and are accounted for."""

    def __init__(self, cluster: machines.Cluster) -> None:
        self.cluster = cluster
        self.store, self.inbox = (open_bucket(f"s3://{name}") for name in ("captioning", "inbox"))
        self.pictures = 0

    def call(self, method, path, body=None):
        """What Airflow answers."""
        return self.cluster.airflow.call(method, path, body)

    def begin_night(self):
        """Bring new pictures, trigger a night, and return its address."""
        for _ in range(PICTURES):
            colour = list(toy.COLOURS)[self.pictures % len(toy.COLOURS)]
            self.inbox.put(f"{self.pictures:04}.jpg", toy.picture(colour, self.pictures))
            self.pictures += 1
        run = self.call("POST", f"{NIGHT}/dagRuns", {"logical_date": None})
        return f"{NIGHT}/dagRuns/{run['dag_run_id']}"

    def computing(self, run):
        """The instances of the night's tasks that compute."""
        instances = self.call("GET", f"{run}/taskInstances?limit=1000")["task_instances"]
        return [instance for instance in instances if instance["task_id"] in COMPUTING]

    def in_the_middle(self, run):
        """Wait until something is done and a worker has begun to compute a shard, and return that worker's name."""

        def begun():
            instances = self.computing(run)
            done = any(instance["state"] == "success" for instance in instances)
            at_work = {instance["hostname"] for instance in instances if instance["state"] == "running"}
            return done and next((name for name in at_work if self.cluster.parts[name].runs("pipeline")), None)

        return wait_for("a shard in work", begun)

    def end_night(self, run):
        """Wait for the night's end and hold it to account; return its seconds and which worker did how many shards."""

        def ended():
            try:
                answer = self.call("GET", run)
            except OSError:
                # It is away itself, or its database is.
                return None
            return answer["state"] in ("success", "failed") and answer

        ended_run = wait_for("the night's end", ended, 700)
        assert ended_run["state"] == "success", ended_run["note"]
        record = next(runs.list_records(runs.NIGHT, self.store))
        assert record.run == ended_run["dag_run_id"]
        assert record.listed == self.pictures
        assert record.listed == record.captioned + record.failed + record.already_done
        assert (record.captioned, record.failed) == (PICTURES, 0)
        self.each_is_captioned_once()
        queued, end = (datetime.fromisoformat(ended_run[name]) for name in ("queued_at", "end_date"))
        return (end - queued).total_seconds(), Counter(instance["hostname"] for instance in self.computing(run))

    def each_is_captioned_once(self):
        """Each picture of the inbox has one row with a caption, and there are no other rows."""
        keys = [item.key for item in self.store.list("captions/") if item.key.endswith(".parquet")]
        rows = [row for key in keys for row in parquet.read(key, self.store).to_pylist()]
        assert Counter(row["image_key"] for row in rows) == {f"{number:04}.jpg": 1 for number in range(self.pictures)}
        assert all(row["caption"] for row in rows)


@pytest.fixture(scope="module")
def world(s3_server, request):
    """A cluster with one computing worker; where a test failed, the ends of its logs are shown."""
    try:
        cluster = machines.Cluster(s3_server, QUICKLY)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    try:
        cluster.start()
        cluster.add_worker("worker-cpu", "gpu-1")
        yield World(cluster)
    finally:
        cluster.stop()
        if request.session.testsfailed:
            show_logs(cluster, request.config)
        shutil.rmtree(cluster.folder)


def show_logs(cluster, config):
    """Print what each part said last."""
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        for log in sorted(cluster.folder.glob("*.log")):
            print(f"\n==> {log.name}", *log.read_text().splitlines()[-40:], sep="\n")  # noqa: T201


def test_a_retraining_makes_the_first_champion(world, toy_encoder):
    """Celery's workers train, evaluate and promote; a task of each queue is done by a worker that serves that queue."""
    wait_for("all DAGs to be read", lambda: world.call("GET", "/api/v2/dags")["total_entries"] == 3)
    source = toy.draw(open_bucket("s3://training"))
    conf = {"dataset": source, "encoder": str(toy_encoder), "min_count": 1, **toy.CONFIG.model_dump()}
    world.call("PATCH", RETRAINING, {"is_paused": False})
    run = world.call("POST", f"{RETRAINING}/dagRuns", {"logical_date": None, "conf": conf})
    address = f"{RETRAINING}/dagRuns/{run['dag_run_id']}"
    ended = wait_for(
        "the retraining", lambda: (run := world.call("GET", address))["state"] in ("success", "failed") and run, 400
    )
    assert ended["state"] == "success", ended["note"]
    registry.read_champion(world.store)
    workers = {
        instance["queue"]: instance["hostname"]
        for instance in world.call("GET", f"{address}/taskInstances?limit=1000")["task_instances"]
        if instance["hostname"]
    }
    assert workers == {"default": "worker", "gpu": "gpu-1"}


def test_from_one_worker_to_four(world, capsys):
    """With one, it does all shards; with three more, and as many slots in the pool, each of the four does some."""
    # Switched on, the DAG runs for two o'clock and the champion: there are no pictures yet.
    world.call("PATCH", NIGHT, {"is_paused": False})
    wait_for(
        "the first night", lambda: [r for r in runs.list_records(runs.NIGHT, world.store) if r.status != "running"]
    )
    alone, shards = world.end_night(world.begin_night())
    assert shards == {"gpu-1": 10}
    for number in (2, 3, 4):
        world.cluster.add_worker("worker-cpu", f"gpu-{number}")
    world.cluster.run([machines.AIRFLOW, "pools", "set", "gpu", "4", "the computing workers"])
    together, shards = world.end_night(world.begin_night())
    assert shards.keys() == {"gpu-1", "gpu-2", "gpu-3", "gpu-4"}
    with capsys.disabled():
        print(f"\na night with 1 worker: {alone:.0f} s; with 4: {together:.0f} s")  # noqa: T201


def test_a_worker_is_lost(world):
    """A machine disappears while it computes: its shard is done by another, and nothing is done twice."""
    run = world.begin_night()
    lost = world.in_the_middle(run)
    world.cluster.parts.pop(lost).lose()
    world.end_night(run)
    tries = {instance["try_number"] for instance in world.computing(run)}
    assert tries == {1, 2}
    world.cluster.add_worker("worker-cpu", lost)


@pytest.mark.parametrize("server", ["redis", "postgres"])
def test_a_server_is_killed(world, server):
    """The broker or the database dies with all connections and recovers: all parts come back to it, if started anew."""
    run = world.begin_night()
    world.in_the_middle(run)
    world.cluster.parts[server].crash()
    world.end_night(run)
    assert world.cluster.parts[server].starts == 2


def test_the_api_server_is_away(world):
    """Tasks wait for it: none is lost, and none fails its first try."""
    run = world.begin_night()
    world.in_the_middle(run)
    world.cluster.parts["api-server"].crash()
    world.end_night(run)
    assert world.cluster.parts["api-server"].starts == 2
    assert {instance["try_number"] for instance in world.computing(run)} == {1}


def test_it_is_restored_under_new_keys(world):
    """Database and store are copied, wiped and restored, and all keys are changed: nothing that was kept is lost."""
    cluster, airflow, pipeline = world.cluster, machines.AIRFLOW, [sys.executable, "-m", "pipeline"]
    cluster.run([airflow, "connections", "add", "kept", "--conn-type", "http", "--conn-password", "a secret"])
    nights = world.call("GET", f"{NIGHT}/dagRuns")["total_entries"]
    champion, dump = registry.read_champion(world.store), cluster.folder / "airflow.dump"

    open_bucket("s3://backups").client.create_bucket(Bucket="backups")
    cluster.run([*pipeline, "backup", "s3://backups/captioning"])
    cluster.postgres("pg_dump", "-Fc", "-f", dump, "airflow")
    cluster.stop_airflow()
    for item in world.store.list():
        world.store.delete(item.key)
    cluster.postgres("dropdb", "airflow")
    cluster.postgres("createdb", "airflow")

    cluster.postgres("pg_restore", "--clean", "--if-exists", "-d", "airflow", dump)
    cluster.run([*pipeline, "backup", world.store.uri], CAPTION_STORE="s3://backups/captioning")

    old, new = cluster.secrets["AIRFLOW_FERNET_KEY"], machines.fernet_key()
    cluster.run([airflow, "rotate-fernet-key"], AIRFLOW__CORE__FERNET_KEY=f"{new},{old}")
    password = secrets.token_hex(24)
    cluster.postgres("psql", "-c", f"ALTER ROLE airflow PASSWORD '{password}'", "airflow")
    cluster.secrets |= {
        "AIRFLOW_FERNET_KEY": new,
        "AIRFLOW_JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW_SECRET_KEY": secrets.token_hex(32),
        "POSTGRES_PASSWORD": password,
        "REDIS_PASSWORD": secrets.token_hex(24),
    }
    cluster.parts.pop("redis").stop()
    cluster.start_broker()
    cluster.start()
    cluster.add_worker("worker-cpu", "gpu-1")

    assert "a secret" in cluster.run([airflow, "connections", "get", "kept", "--output", "json"])
    assert world.call("GET", f"{NIGHT}/dagRuns")["total_entries"] == nights
    assert registry.read_champion(world.store) == champion
    world.end_night(world.begin_night())


def test_a_queue_that_nobody_serves(world, toy_encoder):
    """A run without a computing worker and without the pool gets the pool, and fails with a note that says why.

    The connection that Airflow itself can create, without anything in it, is in nobody's way.
    """
    world.cluster.parts.pop("gpu-1").stop()
    world.cluster.run([machines.AIRFLOW, "pools", "delete", "gpu"])
    world.cluster.run([machines.AIRFLOW, "connections", "add", "aws_default", "--conn-type", "aws"])
    conf = {"dataset": toy.draw(open_bucket("s3://training")), "encoder": str(toy_encoder), "min_count": 1}
    world.call("PATCH", RETRAINING, {"is_paused": False})
    run = world.call("POST", f"{RETRAINING}/dagRuns", {"logical_date": None, "conf": conf})
    address = f"{RETRAINING}/dagRuns/{run['dag_run_id']}"
    ended = wait_for(
        "the retraining's end",
        lambda: (run := world.call("GET", address))["state"] in ("success", "failed") and run,
        400,
    )
    assert (ended["state"], ended["note"]) == ("failed", f"register_encoder: {NO_MESSAGE}")
    assert world.call("GET", "/api/v2/pools/gpu")["slots"] == 1
