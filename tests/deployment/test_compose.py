"""docker-compose.yaml, the Dockerfile and .env.example agree with the code and with Airflow.

No container is started here.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.settings import Settings
from scripts import prepare
from tests.support.compose_file import COMPOSE, DOCKERFILE, IMAGE_ENV, SECRET, SERVICES, TEXT, known_options
from tests.support.paths import PROJECT
from tests.support.variables import DEFAULTS

EXAMPLE = (PROJECT / ".env.example").read_text()

IN_IMAGE = Path(IMAGE_ENV["PYTHONPATH"])
"""Where the image has the checkout."""

AIRFLOW = {name: service for name, service in SERVICES.items() if service.get("command", [""])[0] == "airflow"}
WORKERS = {name: service for name, service in AIRFLOW.items() if service["command"][1] == "celery"}

VARIABLES = dict(re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", TEXT))
"""The variables taken from .env, each with the text behind its name."""

PASSED_ON = {name for service in SERVICES.values() for name, value in service["environment"].items() if value is None}

by_service = pytest.mark.parametrize("name", SERVICES)


def option(service: str, name: str) -> str:
    """The value of an option of a service's command, where .env sets no variable."""
    command = SERVICES[service]["command"]
    return re.sub(r"\$\{\w+:-(\w*)\}", r"\1", command[command.index(name) + 1])


def mounts(service: str) -> dict[str, str]:
    """A service's volumes by where they are mounted."""
    return {path: volume for volume, path in (mount.split(":") for mount in SERVICES[service].get("volumes", []))}


@by_service
def test_a_service_is_confined(name):
    """It has a user who is not root, a read-only file system, no capability, and limits of memory and processes."""
    service = SERVICES[name]
    assert str(service["user"]).split(":")[0] not in ("", "0", "root")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\d+[gm]", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert "privileged" not in service
    # Those that compute may take all cores.
    assert ("cpus" in service) == (name not in ("worker-cpu", "worker-gpu"))


@by_service
def test_a_service_has_a_health_check(name):
    """It has one with time-outs, and starts again by itself; the one that ends does neither."""
    service = SERVICES[name]
    if name == "init":
        assert service["healthcheck"] == {"disable": True}
        assert service["restart"] == "no"
        return
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} < service["healthcheck"].keys()
    assert service["restart"] == "unless-stopped"


@by_service
def test_an_image_is_pinned_or_built_here(name):
    """An image from elsewhere has a tag and a digest; one of ours is a target of the Dockerfile, under its name."""
    service = SERVICES[name]
    if "build" in service:
        target = service["build"]["target"]
        assert service["image"] == f"captioning:{target}"
        assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE)
    else:
        assert re.fullmatch(r"[\w./]+:\d[\w.-]+@sha256:[0-9a-f]{64}", service["image"])


def test_only_airflow_and_the_bucket_are_published():
    """Both on 127.0.0.1 unless .env says otherwise, and at the port that the service listens on."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "api-server": ["${PUBLISH_ADDRESS:-127.0.0.1}:8080:8080"],
        "bucket": ["${PUBLISH_ADDRESS:-127.0.0.1}:8333:8333"],
    }
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "redis", "mlflow"):
        assert SERVICES[name]["networks"] == ["inside"]


def test_every_setting_can_be_set():
    """Airflow's parts are given each setting, and no other; those with a value are valid."""
    for service in [*AIRFLOW.values(), SERVICES["init"]]:
        given = {key: value for key, value in service["environment"].items() if key.startswith("CAPTION_")}
        assert given.keys() == DEFAULTS.keys()
    fixed = {name.removeprefix("CAPTION_").lower(): value for name, value in given.items() if value is not None}
    Settings(**fixed)


def test_every_option_is_known_to_airflow():
    """Each AIRFLOW__… variable is an option of Airflow or of the Celery provider."""
    known = known_options()
    names = {name for service in AIRFLOW.values() for name in service["environment"]} | IMAGE_ENV.keys()
    names = {name for name in names if name.startswith("AIRFLOW__")}
    assert len(names) > 10
    for name in names:
        _, section, option = name.lower().split("__", 2)
        assert (section, option) in known, name


def test_parts_of_airflow_share_their_environment():
    """All have the same keys and issuer, without which they don't understand each other."""
    first, *others = (service["environment"] for service in AIRFLOW.values())
    assert all(other == first for other in others)
    assert first["AIRFLOW__API_AUTH__JWT_ISSUER"]
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET"):
        assert re.fullmatch(r"\$\{\w+:\?.+\}", first[name])


@pytest.mark.parametrize("name", AIRFLOW)
def test_commands_are_airflows(name, parser):
    """Airflow's command line takes each command, and each health check that is one."""
    assert parser.parse_args(SERVICES[name]["command"][1:]).func
    check = SERVICES[name]["healthcheck"]["test"][1:]
    if check[0] == "airflow":
        assert parser.parse_args(check[1:]).local


def test_mlflows_command_is_mlflows():
    """MLflow takes its command's options, and answers to the name by which trainings call it."""
    from mlflow.cli import server

    environment = SERVICES["worker"]["environment"]
    options = server.make_context("server", SERVICES["mlflow"]["command"][2:]).params
    tracking = urlsplit(environment["CAPTION_TRACKING_URI"])
    assert tracking.netloc in options["allowed_hosts"].split(",")
    assert (tracking.hostname, tracking.port) == ("mlflow", options["port"])
    folder = next(iter(mounts("mlflow")))
    assert options["backend_store_uri"].removeprefix("sqlite:///").startswith(f"{folder}/")
    assert options["artifacts_destination"].startswith(f"{folder}/")


def test_addresses_lead_to_services():
    """Every address names a service and the port at which its health is asked."""
    environment = SERVICES["worker"]["environment"]
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://api-server:8080/execution/"
    assert environment["AWS_ENDPOINT_URL"] == "http://bucket:8333"
    assert "@redis:6379/" in environment["AIRFLOW__CELERY__BROKER_URL"]
    user, database = SERVICES["postgres"]["environment"]["POSTGRES_USER"], "airflow"
    assert SERVICES["postgres"]["environment"]["POSTGRES_DB"] == database
    for name in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "AIRFLOW__CELERY__RESULT_BACKEND"):
        assert re.fullmatch(rf"\S+://{user}:\$\{{.+\}}@postgres:5432/{database}", environment[name])


def test_health_is_asked_where_airflow_listens():
    """The ports of health checks are Airflow's own, which nothing here changes."""
    from airflow.configuration import conf

    scheduler = conf.get_default_value("scheduler", "scheduler_health_check_server_port")
    api = conf.get_default_value("api", "port")
    assert f"127.0.0.1:{scheduler}/health'" in SERVICES["scheduler"]["healthcheck"]["test"][-1]
    assert f"127.0.0.1:{api}/api/v2/version'" in SERVICES["api-server"]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_each_queue_is_served_by_one_worker(profile, airflow_home):
    """With either profile each queue of the DAGs has exactly one worker, and gpu one that does one task at a time."""
    from airflow.dag_processing.dagbag import DagBag

    dags = DagBag(PROJECT / "dags").dags.values()
    queues = [
        queue
        for name, worker in WORKERS.items()
        if profile in worker.get("profiles", [profile])
        for queue in option(name, "--queues").split(",")
    ]
    assert sorted(queues) == sorted({task.queue for dag in dags for task in dag.tasks})
    assert option(f"worker-{profile}", "--queues") == "gpu"
    assert option(f"worker-{profile}", "--concurrency") == "1"
    longest = max(task.execution_timeout for dag in dags for task in dag.tasks if task.execution_timeout)
    visible = WORKERS["worker"]["environment"]["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"]
    assert int(visible) > longest.total_seconds()


def test_what_the_tasks_of_the_worker_need(airflow_home):
    """The table of packages names each task that the worker of the queue gpu runs, and no other."""
    from airflow.dag_processing.dagbag import DagBag

    page = (PROJECT / "docs" / "operations.md").read_text()
    table = re.search(r"^\| tasks \| need \|\n\| --- \| --- \|\n((?:\|.*\n)+)", page, re.MULTILINE)
    named = re.findall(r"`(\w+)`", "".join(row.split(" | ")[0] for row in table[1].splitlines()))
    dags = DagBag(PROJECT / "dags").dags.values()
    assert sorted(named) == sorted({task.label for dag in dags for task in dag.tasks if task.queue == "gpu"})


def test_a_task_without_a_worker_fails_within_minutes():
    """Airflow queues it three times, and each time looks for it at intervals."""
    scheduler = SERVICES["scheduler"]["environment"]
    timeout = float(scheduler["AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT"])
    interval = float(scheduler["AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL"])
    assert 3 * (timeout + interval) <= 11 * 60
    # A worker that is replaced has started again by then.
    start = WORKERS["worker"]["healthcheck"]["start_period"]
    assert timeout > float(start.removesuffix("s"))


def test_the_gpu_worker_is_given_a_gpu():
    """It reserves as many as it does tasks at once, with the tool by which the pipeline finds them."""
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == int(option("worker-gpu", "--concurrency"))
    assert {"gpu", "compute", "utility"} == set(device["capabilities"])


def test_the_bucket_has_two_keys(tmp_path):
    """One may do all; the other may list and read the store's bucket, and nothing else."""
    (tmp_path / "weed").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "weed").chmod(0o755)
    (script,) = SERVICES["bucket"]["command"]
    script = script.replace("$$", "$").replace("/tmp/", f"{tmp_path}/")  # noqa: S108 - the container's own
    environment = {name: name.lower() for name in SERVICES["bucket"]["environment"]}
    started = subprocess.run(
        ["sh", "-euc", script],
        env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    (file,) = re.findall(r"-s3\.config=(\S+)", started.stdout)
    pipeline, analyst = json.loads(Path(file).read_text())["identities"]
    store = urlsplit(SERVICES["worker"]["environment"]["CAPTION_STORE"]).netloc
    assert pipeline["credentials"] == [{"accessKey": "s3_access_key", "secretKey": "s3_secret_key"}]
    assert pipeline["actions"] == ["Admin"]
    assert analyst["credentials"] == [{"accessKey": "s3_analyst_access_key", "secretKey": "s3_analyst_secret_key"}]
    assert analyst["actions"] == [f"Read:{store}", f"List:{store}"]
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    assert f"-dir={next(iter(mounts('bucket')))} " in started.stdout


@pytest.mark.parametrize("name", ["bucket", "redis"])
def test_a_script_gives_its_place_to_the_server(name):
    """Its last command is exec: a shell would pass no signal on, and the server would be killed at each stop."""
    *_, last = SERVICES[name]["command"][-1].replace("\\\n", "").splitlines()
    assert last.startswith("exec ")


def test_no_health_check_needs_a_variable_of_docker():
    """HOSTNAME is set by Docker, and not by Podman."""
    for service in SERVICES.values():
        assert "HOSTNAME" not in str(service["healthcheck"])


def test_volumes_are_mounted_where_the_image_has_folders():
    """Each volume is used; each place in our images is there beforehand, for the user whose it is to be."""
    used = {volume for name in SERVICES for volume in mounts(name).values()}
    assert used == COMPOSE["volumes"].keys()
    made = re.search(r"install --directory --owner (\d+) .*?(/opt/.*)", DOCKERFILE)
    for name, service in SERVICES.items():
        if "build" in service:
            assert set(mounts(name)) <= set(made[2].split())
            assert service["user"] == f"{made[1]}:0"
    assert mounts("api-server")["/opt/airflow/login"] == mounts("init")["/opt/airflow/login"] == "login"
    passwords = SERVICES["init"]["environment"]["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]
    assert Path(passwords).parent == Path("/opt/airflow/login")
    for name in WORKERS:
        assert option(name, "--pid").startswith("/tmp/")  # noqa: S108 - the container's own
        assert mounts(name).get(IMAGE_ENV["KERAS_HOME"]) == (None if name == "worker" else "keras")


def test_the_images_hold_what_the_commands_need():
    """The paths of the image's environment are the checkout's, and the build may copy all files that it needs."""
    allowed = re.findall(r"^!(.+)$", (PROJECT / ".dockerignore").read_text(), re.MULTILINE)
    assert all((PROJECT / path).exists() for path in allowed)
    for variable in ("AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__PLUGINS_FOLDER"):
        folder = Path(IMAGE_ENV[variable]).relative_to(IN_IMAGE).as_posix()
        assert (PROJECT / folder).is_dir()
        assert folder in allowed
    assert "pipeline" in allowed
    assert SERVICES["init"]["command"][1] in allowed
    for lock in re.findall(r"-r /(\S+)", DOCKERFILE):
        assert (PROJECT / lock).is_file()
        assert re.search(rf"^COPY {lock} /$", DOCKERFILE, re.MULTILINE)
    for line in re.findall(r"pip install (.+)$", DOCKERFILE, re.MULTILINE):
        assert line.startswith("--no-deps --require-hashes --only-binary :all: ")


def test_the_source_comes_without_locks():
    """The build may copy the source and the locks alone, and a changed lock does not change the layer of the source."""
    allowed = re.findall(r"^!(.+)$", (PROJECT / ".dockerignore").read_text(), re.MULTILINE)
    steps = re.search(r"^FROM base AS code\n((?:(?!FROM).*\n)*)", DOCKERFILE, re.MULTILINE)[1]
    folders = [source for source, _ in re.findall(r"^COPY (.+) (\S+)$", steps, re.MULTILINE)]
    locks = set(re.findall(r"-r /(\S+)", DOCKERFILE))
    assert sorted(folders) == sorted({path.split("/")[0] for path in allowed} - locks)
    assert locks < set(allowed)
    for folder in folders:
        assert (PROJECT / folder).is_dir()
        assert f"COPY {folder} {folder}\n" in steps


def test_no_layer_keeps_what_apt_has_downloaded():
    """The base may be a Debian whose apt keeps all packages, as it does outside Docker's own images."""
    installed = re.findall(r"^RUN .*apt-get install.*$", DOCKERFILE, re.MULTILINE)
    assert installed
    for line in installed:
        assert re.search(r"&& apt-get clean +&& rm -rf /var/lib/apt/lists/\*$", line)


def test_the_images_have_the_command_line(tmp_path):
    """They have the command captioning, which the interpreter of the packages runs."""
    (line,) = re.findall(r"^RUN (printf .+)$", DOCKERFILE, re.MULTILINE)
    script = tmp_path / "captioning"
    subprocess.run(["sh", "-euc", line.replace("/usr/local/bin/captioning", str(script))], check=True)
    assert os.access(script, os.X_OK)
    interpreter = Path(script.read_text().splitlines()[0].removeprefix("#!"))
    assert f"RUN {interpreter.name} -m venv --without-pip {interpreter.parents[1]}\n" in DOCKERFILE
    assert IMAGE_ENV["PIP_PYTHON"] == str(interpreter)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, script, "--help"], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "Usage: captioning" in done.stdout


def test_a_changed_line_of_source_ships_nothing_else():
    """The source is the last that comes into each image; before it comes all that is large."""
    for target in ("light", "train", "gpu"):
        _, steps = re.search(rf"^FROM (\S+) AS {target}\n((?:(?!FROM).*\n)*)", DOCKERFILE, re.MULTILINE).groups()
        assert steps.split("\n")[:2] == ["COPY --from=code /opt/captioning /opt/captioning", "USER 50000"]


def test_the_images_have_labels():
    """With the project's version and licence."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="(.+?)"', DOCKERFILE))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert (labels["version"], labels["licenses"]) == (project["version"], project["license"])


def test_only_the_workers_that_train_have_tensorflow():
    """With either profile one worker has an image with it; every other part of Airflow has the light one."""
    images = {name: SERVICES[name]["image"] for name in [*AIRFLOW, "init"]}
    assert images.pop("worker-cpu") == "captioning:train"
    assert images.pop("worker-gpu") == "captioning:gpu"
    assert set(images.values()) == {"captioning:light"}


def test_the_locks_agree():
    """The lock of training adds packages to the light one, and that of GPUs replaces TensorFlow and adds CUDA."""

    def pins(lock: str) -> set[tuple[str, str, str]]:
        """Names, versions and markers."""
        found = re.findall(r"^([\w.-]+)==(\S+)(?: ; (.+))? \\$", (PROJECT / lock).read_text(), re.MULTILINE)
        assert len(found) > 100
        return set(found)

    light, training, gpu = pins("requirements.txt"), pins("requirements-training.txt"), pins("requirements-gpu.txt")
    assert light < training
    assert not {"keras", "mlflow-skinny", "nncf", "tensorflow", "tensorflow-cpu"} & {name for name, *_ in light}
    [(_, version, small), (_, same, other)] = sorted(training - gpu, reverse=True)
    assert small == "platform_machine == 'x86_64' and sys_platform == 'linux'"
    assert other == "platform_machine != 'x86_64' or sys_platform != 'linux'"
    cuda = {pin for pin in gpu if pin[0].startswith("nvidia-")}
    assert gpu - training - cuda == {("tensorflow", version, "")}
    assert same == version


def test_secrets_have_no_default():
    """Each secret is asked for; no other variable is, but for the profile; and none is written down."""
    asked_for = {name for name, rest in VARIABLES.items() if rest.startswith(":?")}
    assert asked_for == {name for name in VARIABLES if SECRET.search(name)} | {"COMPOSE_PROFILES"}
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            # The settings of the pipeline name files of keys.
            if SECRET.search(name) and not name.endswith("_FILE") and name not in PASSED_ON:
                assert re.fullmatch(r"\$\{\w+:\?.+\}", value), name


def test_the_example_names_every_variable():
    """.env.example names exactly what is used: empty where it is asked for, otherwise a comment with the default."""
    named = dict(re.findall(r"^([A-Z]\w*)=(.*)$", EXAMPLE, re.MULTILINE))
    comments = dict(re.findall(r"^# ([A-Z]\w*)=(.*)$", EXAMPLE, re.MULTILINE))
    assert named.keys() == {name for name, rest in VARIABLES.items() if rest.startswith(":?")}
    assert {name for name, value in named.items() if value} == {"COMPOSE_PROFILES"}
    assert comments.keys() == VARIABLES.keys() - named.keys() | PASSED_ON
    for name, default in comments.items():
        if name in PASSED_ON:
            assert default == DEFAULTS[name]
        else:
            assert VARIABLES[name] == f":-{default}"


@pytest.fixture
def filled_in(tmp_path) -> Path:
    """A .env that is filled in."""
    file = tmp_path / ".env"
    file.write_text(re.sub(r"^([A-Z]\w*)=$", r"\1=made0up", EXAMPLE, flags=re.MULTILINE))
    return file


def config(env_file: Path) -> subprocess.CompletedProcess[str]:
    """Compose's check of the file."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        compose = ["docker", "compose"]
    elif shutil.which("docker-compose"):
        compose = ["docker-compose"]
    else:
        pytest.skip("there is no docker compose")
    environment = {"PATH": os.environ["PATH"]}
    command = [*compose, "--file", "docker-compose.yaml", "--env-file", str(env_file), "config", "--quiet"]
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


def test_compose_takes_it(filled_in):
    """Compose finds nothing wrong with the file."""
    done = config(filled_in)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name, rest in VARIABLES.items() if rest.startswith(":?")])
def test_compose_asks_for_what_is_missing(name, filled_in):
    """With an empty secret, or without a profile, nothing starts, and the message says where to look."""
    filled_in.write_text(re.sub(rf"^{name}=.*$", f"{name}=", filled_in.read_text(), flags=re.MULTILINE))
    done = config(filled_in)
    assert done.returncode != 0
    assert "see .env.example" in done.stderr


def test_what_is_needed_is_prepared(s3_server, tmp_path, monkeypatch):
    """Afterwards Airflow has its tables, the pool and the login, and the bucket its buckets; also the second time."""
    import boto3
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    passwords = tmp_path / "passwords.json"
    given = {name: value for name, value in SERVICES["init"]["environment"].items() if name.startswith("CAPTION_")}
    for name, value in given.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    home = tmp_path / "airflow"
    home.mkdir()
    # As in the image: an empty file, so that Airflow writes none.
    (home / "airflow.cfg").touch()
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "COMPOSE_PROFILES": "cpu",
    }
    for password in ("first", "second"):
        subprocess.run(
            [sys.executable, PROJECT / "scripts" / "prepare.py"],
            env={**environment, "AIRFLOW_ADMIN_PASSWORD": password},
            check=True,
            capture_output=True,
        )
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(passwords))
    assert SimpleAuthManager.get_passwords() == {"admin": "second"}
    assert stat.S_IMODE(passwords.stat().st_mode) == 0o600
    assert (home / "airflow.cfg").read_text() == ""
    airflow = Path(sys.executable).with_name("airflow")
    pools = subprocess.run(
        [airflow, "pools", "list", "--output", "json"], env=environment, check=True, capture_output=True, text=True
    )
    assert {pool["pool"]: pool["slots"] for pool in json.loads(pools.stdout)}["gpu"] == "1"
    buckets = {bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]}
    assert {"captioning", "inbox", "training"} <= buckets


@pytest.mark.parametrize("profiles", ["", "debug", "cpu,gpu"])
def test_one_of_the_two_profiles_is_needed(profiles, monkeypatch):
    """Where no worker would serve the queue gpu, or two, nothing is prepared, and the message says what to correct."""
    monkeypatch.setenv("COMPOSE_PROFILES", profiles)
    with pytest.raises(SystemExit, match=rf"either cpu or gpu.*'{profiles}'.*\.env"):
        prepare.main()
