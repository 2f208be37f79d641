"""kubernetes/values.yaml agrees with the code, Airflow, docker-compose.yaml and docs/kubernetes.md.

Where Airflow's chart is at hand (``CAPTION_TEST_CHART``), it is rendered with the values.
"""

import json
import pkgutil
import re
import shlex

import pytest
import yaml

from pipeline.settings import Settings
from tests.support import helm
from tests.support.compose_file import COMPOSE, DOCKERFILE, IMAGE_ENV, SECRET, SERVICES, known_options
from tests.support.paths import PROJECT
from tests.support.variables import DEFAULTS

TEXT = (PROJECT / "kubernetes" / "values.yaml").read_text()
VALUES = yaml.safe_load(TEXT)
ACCOUNT = yaml.safe_load((PROJECT / "kubernetes" / "service-account.yaml").read_text())
PAGE = (PROJECT / "docs" / "kubernetes.md").read_text()
COMMANDS = [
    shlex.split(command)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for command in block.replace("\\\n", " ").splitlines()
    if command.strip()
]

DEFAULT_WORKER = VALUES["workers"]["celery"]
(GPU_WORKER,) = DEFAULT_WORKER["sets"]

PARTS = {
    "migrateDatabaseJob": "init",
    "apiServer": "api-server",
    "scheduler": "scheduler",
    "dagProcessor": "dag-processor",
    "triggerer": "triggerer",
    "redis": "redis",
}
"""The chart's parts, by the services of docker-compose.yaml that do the same."""

WITH_SERVICE = {name: (VALUES[name], SERVICES[service]) for name, service in PARTS.items()} | {
    "workers": (DEFAULT_WORKER, SERVICES["worker"]),
    "gpu": (GPU_WORKER, SERVICES["worker-gpu"]),
}
by_part = pytest.mark.parametrize("name", WITH_SERVICE)


def option(worker: dict, name: str) -> str:
    """The value of an option of a worker's command."""
    return worker["args"][worker["args"].index(name) + 1]


def entries(node: object) -> list[tuple[str, object]]:
    """Every key at any depth, with what it holds."""
    if isinstance(node, list):
        return [pair for item in node for pair in entries(item)]
    if isinstance(node, dict):
        return [pair for key, value in node.items() for pair in [(key, value), *entries(value)]]
    return []


def secrets_named() -> dict[str, set[str]]:
    """The keys that are asked for, of each Secret that the values name."""
    named = [
        (VALUES["fernetKeySecretName"], "fernet-key"),
        (VALUES["apiSecretKeySecretName"], "api-secret-key"),
        (VALUES["jwtSecretName"], "jwt-secret"),
        (VALUES["data"]["metadataSecretName"], "connection"),
        (VALUES["data"]["brokerUrlSecretName"], "connection"),
        (VALUES["redis"]["passwordSecretName"], "password"),
        *((secret["secretName"], secret["secretKey"]) for secret in VALUES["secret"]),
    ]
    (copy,) = VALUES["apiServer"]["extraInitContainers"]
    (login,) = (v["secret"]["secretName"] for v in VALUES["apiServer"]["extraVolumes"] if "secret" in v)
    named.append((login, copy["command"][-2].removeprefix("/secret/")))
    return {secret: {key for name, key in named if name == secret} for secret, _ in named}


def test_the_version_is_the_locks():
    """The chart gets the version of Airflow that is in the image."""
    lock = (PROJECT / "requirements.txt").read_text()
    assert re.search(rf"^apache-airflow=={re.escape(VALUES['airflowVersion'])} ", lock, re.MULTILINE)


def test_every_setting_is_there():
    """Each setting is set, or a comment with its default; those that are set are valid."""
    given = {
        variable["name"]: variable["value"] for variable in VALUES["env"] if variable["name"].startswith("CAPTION_")
    }
    comments = dict(re.findall(r'^  # - \{name: (CAPTION_\w+), value: "(.*)"\}$', TEXT, re.MULTILINE))
    assert given.keys() | comments.keys() == DEFAULTS.keys()
    assert not given.keys() & comments.keys()
    Settings(**{name.removeprefix("CAPTION_").lower(): value for name, value in given.items()})
    assert comments == {name: DEFAULTS[name] for name in comments}


def test_options_are_airflows_and_those_of_compose():
    """Airflow knows each option. Each option that docker-compose.yaml sets to a value of its own has it here, too."""
    options = {(section, name): value for section, of in VALUES["config"].items() for name, value in of.items()}
    assert options.keys() <= known_options()
    compose = {
        tuple(name.lower().split("__")[1:]): value
        for name, value in SERVICES["worker"]["environment"].items()
        if name.startswith("AIRFLOW__") and not SECRET.search(name) and "${" not in value
    }
    assert compose.pop(("core", "executor")) == VALUES["executor"]
    elsewhere = ("core", "execution_api_server_url")
    assert compose.pop(elsewhere).split("api-server")[1] == ":8080/execution/"
    assert options[elsewhere].endswith("-api-server:{{ .Values.ports.apiServer }}/execution/")
    # A node may have to start first.
    queued = ("scheduler", "task_queued_timeout")
    assert float(compose.pop(queued)) < float(options[queued])
    assert compose == {name: options[name] for name in compose}
    login = SERVICES["init"]["environment"]["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]
    assert options["core", "simple_auth_manager_passwords_file"] == login
    assert VALUES["apiServer"]["extraInitContainers"][0]["command"][-1] == login
    # The image's environment goes before the chart's configuration.
    assert not {name.lower() for name in IMAGE_ENV} & {f"airflow__{'__'.join(name)}" for name in options}


def test_what_is_named_in_the_options_exists():
    """The classes and functions that options name can be imported, and this is the auth manager of docker-compose."""
    from airflow.configuration import conf

    core = VALUES["config"]["core"]
    assert pkgutil.resolve_name(core["hostname_callable"])()
    assert pkgutil.resolve_name(core["auth_manager"])
    assert core["auth_manager"] == conf.get_default_value("core", "auth_manager")


def test_each_queue_of_the_dags_is_served(airflow_home):
    """By one kind of worker each; the one with accelerators does one task at a time."""
    from airflow.dag_processing.dagbag import DagBag

    queues = {task.queue for dag in DagBag(PROJECT / "dags").dags.values() for task in dag.tasks}
    workers = (DEFAULT_WORKER, GPU_WORKER)
    assert {worker["queue"] for worker in workers} == queues
    for worker in workers:
        assert option(worker, "--queues") == worker["queue"]
        assert option(worker, "--pid").startswith(f"{VALUES['volumeMounts'][0]['mountPath']}/")
    for worker, service in ((DEFAULT_WORKER, "worker"), (GPU_WORKER, "worker-gpu")):
        command = SERVICES[service]["command"]
        assert option(worker, "--concurrency") == command[command.index("--concurrency") + 1]


def test_a_slot_a_pod_an_accelerator():
    """The pool has as many slots as there can be pods, and each pod a GPU, with what shows it to the pipeline."""
    (slots,) = re.findall(r"pools set gpu (\d+)", VALUES["migrateDatabaseJob"]["args"][-1])
    keda = GPU_WORKER["keda"]
    assert int(slots) == keda["maxReplicaCount"] == GPU_WORKER["replicas"]
    assert keda["minReplicaCount"] == 0
    assert f"queue = '{GPU_WORKER['queue']}'" in keda["query"]
    assert GPU_WORKER["resources"]["limits"]["nvidia.com/gpu"] == option(GPU_WORKER, "--concurrency")
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    (variable,) = GPU_WORKER["env"]
    assert set(variable["value"].split(",")) < set(device["capabilities"])
    (cache,) = GPU_WORKER["extraVolumeMounts"]
    assert cache["mountPath"] == IMAGE_ENV["KERAS_HOME"]


def test_the_count_of_keda_is_the_databases(airflow_home):
    """The query that scales the pool is one for Airflow's tables and states."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import TaskInstanceState

    query = GPU_WORKER["keda"]["query"]
    assert re.search(r"FROM (\w+)", query)[1] == TaskInstance.__tablename__
    assert {"queue", "state"} <= set(TaskInstance.__table__.columns.keys())
    assert set(re.findall(r"'(\w+)'", query)) - {"gpu"} == {TaskInstanceState.QUEUED, TaskInstanceState.RUNNING}


def test_commands_are_airflows(parser):
    """Airflow's command line takes the commands of workers, of the job, and of health checks that are its own."""
    checks = [VALUES[name]["livenessProbe"]["command"] for name in ("dagProcessor", "triggerer")]
    job = [shlex.split(part.replace("exec ", "")) for part in VALUES["migrateDatabaseJob"]["args"][-1].split("&&")]
    for command in [DEFAULT_WORKER["args"], GPU_WORKER["args"], *checks, *job]:
        assert command[0] == "airflow"
        assert parser.parse_args(command[1:]).func


@pytest.mark.parametrize("name", ["scheduler", "dagProcessor", "triggerer"])
def test_health_is_asked_as_by_compose(name):
    """The same command in both: the chart's own is one of an image that ours is not."""
    probe, service = VALUES[name]["livenessProbe"], SERVICES[PARTS[name]]["healthcheck"]
    assert probe["command"] == service["test"][1:]
    if "timeoutSeconds" in probe:
        assert f"{probe['timeoutSeconds']}s" == service["timeout"]


def test_workers_are_asked_as_by_compose():
    """The same; in docker-compose.yaml a dollar is written twice."""
    command = DEFAULT_WORKER["livenessProbe"]["command"][-1]
    assert command.replace("$", "$$") == SERVICES["worker"]["healthcheck"]["test"][-1]


def test_no_value_is_deprecated():
    """The chart moved the values of Celery's workers, and Airflow 3 has no webserver."""
    assert VALUES["workers"].keys() == {"celery"}
    assert not {"webserver", "webserverSecretKeySecretName", "securityContext", "registry"} & VALUES.keys()
    parts = [part for part, _ in WITH_SERVICE.values()]
    assert not any("securityContext" in part for part in parts)


@by_part
def test_a_part_has_its_room(name):
    """The limits are those of docker-compose.yaml, and less is reserved."""
    part, service = WITH_SERVICE[name]
    requests, limits = part["resources"]["requests"], part["resources"]["limits"]
    assert limits["memory"].lower() == f"{service['mem_limit']}i"
    assert limits.get("cpu") == (str(service["cpus"]) if "cpus" in service else None)
    assert {"cpu", "memory"} == requests.keys()
    (scratch,) = VALUES["volumes"]
    assert f"/tmp:size={scratch['emptyDir']['sizeLimit'][:-1].lower()}" in SERVICES["worker"]["tmpfs"]  # noqa: S108


def test_nothing_is_root():
    """Each part is the image's user, without capabilities and with a read-only file system; Redis is its own."""
    made = re.search(r"install --directory --owner (\d+) ", DOCKERFILE)
    pod = VALUES["securityContexts"]["pod"]
    assert pod["runAsUser"] == int(made[1])
    redis = VALUES["redis"]["securityContexts"]
    for context in (pod, redis["pod"]):
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    init = VALUES["apiServer"]["extraInitContainers"][0]["securityContext"]
    for context in (VALUES["securityContexts"]["containers"], redis["container"], init):
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
    # No part has one of its own that would go before these.
    contexts = [value for key, value in entries(VALUES) if key in ("securityContexts", "securityContext")]
    assert all(context in (VALUES["securityContexts"], redis, init) for context in contexts)


def test_no_part_may_ask_kubernetes():
    """None has a token; those that need the bucket run as the account that has the role, and no other does."""
    assert VALUES["rbac"] == {"create": False}
    assert ACCOUNT["automountServiceAccountToken"] is False
    accounts = {name: part["serviceAccount"] for name, (part, _) in WITH_SERVICE.items() if "serviceAccount" in part}
    with_role = {name for name, account in accounts.items() if account.get("name") == ACCOUNT["metadata"]["name"]}
    assert with_role == {"apiServer", "scheduler", "triggerer", "workers"}
    # The chart makes the account of this job even if there is no job.
    assert VALUES["createUserJob"] == {"enabled": False, "serviceAccount": {"create": False}}
    for name, account in accounts.items():
        assert (
            account.get("create") is False if name in with_role else account == {"automountServiceAccountToken": False}
        )


def test_images_are_ours_and_that_of_compose():
    """Redis is the one of docker-compose.yaml; ours is built, in the page, with CUDA's libraries."""
    redis, ours = VALUES["images"]["redis"], VALUES["images"]["airflow"]
    assert f"{redis['repository']}:{redis['tag']}" == SERVICES["redis"]["image"]
    builds = [command for command in COMMANDS if command[:2] == ["docker", "build"]]
    (build,) = builds
    assert build[build.index("--target") + 1] == COMPOSE["services"]["worker-gpu"]["build"]["target"]
    assert build[build.index("--tag") + 1] == f"{ours['repository']}:{ours['tag']}"


def test_secrets_are_made_by_the_page():
    """The Secrets that are named are those that the page makes, with the same keys; the file holds no value."""
    made = {
        command[4]: {word.split("=")[1] for word in command if word.startswith("--from-literal=")}
        for command in COMMANDS
        if command[:4] == ["kubectl", "create", "secret", "generic"]
    }
    assert made == secrets_named()
    for key, value in entries(VALUES):
        if re.search(r"(?i)password|secret|fernet|token", key) and isinstance(value, str):
            assert re.search(r"(?i)(name|key|file)$", key), key
    assert not re.search(r"\w+://\w*:\w+@", TEXT)


def test_the_page_installs_the_chart_that_the_values_are_for():
    """Each helm command has the version that the values name, and the release by whose name Redis is found."""
    (version,) = re.findall(r"apache-airflow/airflow ([\d.]+)", TEXT)
    installing = [command for command in COMMANDS if command[0] == "helm" and "apache-airflow/airflow" in command]
    assert installing
    for command in installing:
        assert command[command.index("--version") + 1] == version
        assert command[command.index("--values") + 1] == "kubernetes/values.yaml"
        # Helm would wait for components that wait for the job, which the chart starts when all components are ready.
        assert "--wait" not in command
    assert "@captioning-redis:6379/" in PAGE


def test_the_chart_takes_the_values(airflow_chart):
    """Its schema accepts them, and every container of our image has all settings, and no other Secrets than ours."""
    image = "{repository}:{tag}".format_map(VALUES["images"]["airflow"])
    settings = {variable["name"]: variable["value"] for variable in VALUES["env"]}
    manifests = helm.render(airflow_chart, VALUES, "captioning")
    containers = [node for manifest in manifests for key, node in entries(manifest) if key == "containers"]
    ours = [container for each in containers for container in each if container["image"] == image]
    assert len(ours) >= len(WITH_SERVICE) - 1  # Redis has an image of its own
    for container in ours:
        given = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert settings.items() <= given.items()
    made = {manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == "Secret"}
    named = {node["name"] for manifest in manifests for key, node in entries(manifest) if key == "secretKeyRef"}
    assert named <= secrets_named().keys() | made


def test_a_chart_that_refuses_the_values_is_noticed(tmp_path):
    """A schema that does not know a key, and a template that needs another one."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text(json.dumps({"apiVersion": "v2", "name": "small", "version": "1.0.0"}))
    template, schema = tmp_path / "templates" / "one.yaml", tmp_path / "values.schema.json"
    template.write_text("kind: Secret\nmetadata: {name: {{ .Values.executor }}}\n")
    [manifest] = helm.render(tmp_path, VALUES, "captioning")
    assert manifest["metadata"]["name"] == VALUES["executor"]
    schema.write_text(json.dumps({"properties": {"executor": {"enum": ["LocalExecutor"]}}}))
    with pytest.raises(helm.HelmError, match="executor"):
        helm.render(tmp_path, VALUES, "captioning")
    schema.unlink()
    template.write_text('name: {{ required "no name" .Values.nothing }}\n')
    with pytest.raises(helm.HelmError, match="no name"):
        helm.render(tmp_path, VALUES, "captioning")
