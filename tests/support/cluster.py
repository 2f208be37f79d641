"""docker-compose.yaml without containers: the same parts by the same commands and settings, on 127.0.0.1.

PostgreSQL and Redis are those that are installed, the bucket is any S3 server. Addresses and folders differ, and what a
test sets otherwise.
"""

import base64
import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import yaml

from tests.support.airflow_server import Airflow, free_ports
from tests.support.paths import PROJECT
from tests.support.waiting import wait_for

AIRFLOW = Path(sys.executable).with_name("airflow")
SERVICES = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())["services"]


def server_programs() -> tuple[Path, Path]:
    """PostgreSQL's folder of programs, and Redis's server.

    Raises:
        FileNotFoundError: one of them is not installed.
    """
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    postgres = versions[-1] / "postgres" if versions else shutil.which("postgres")
    redis = shutil.which("redis-server")
    if not postgres or not redis:
        missing = " and ".join(name for name, found in (("PostgreSQL", postgres), ("Redis", redis)) if not found)
        raise FileNotFoundError(f"{missing} must be installed: apt-get install postgresql redis-server")
    return Path(postgres).resolve().parent, Path(redis)


def fernet_key() -> str:
    """A new key."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


class Part:
    """A process that is started again whenever it ends, as ``restart: unless-stopped`` does."""

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path, user: str | None = None
    ) -> None:
        self.log = log
        self.starts = 0
        self._how = {"args": command, "env": environment, "user": user, "group": user, "cwd": log.parent}
        self._ends_for_good = False
        self._deciding = threading.Lock()
        self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(**self._how, stdout=log, stderr=log, start_new_session=True)
        self.starts += 1

    def _keep(self) -> None:
        while True:
            self._process.wait()
            time.sleep(1)
            with self._deciding:
                if self._ends_for_good:
                    return
                self._start()

    def _not_again(self) -> None:
        with self._deciding:
            self._ends_for_good = True

    def processes(self) -> list[psutil.Process]:
        """Itself and all that it has started."""
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]

    def runs(self, argument: str) -> bool:
        """Whether it has started a command with such an argument that still runs."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if argument in process.cmdline():
                    return True
        return False

    def crash(self) -> None:
        """End the process without a warning; it starts again by itself."""
        self._process.kill()

    def lose(self) -> None:
        """End it and all that it has started, as where a machine loses its power, and for good."""
        self._not_again()
        # A suspended process can't start another before it is killed.
        for end in (psutil.Process.suspend, psutil.Process.kill):
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
        self._keeper.join()

    def stop(self) -> None:
        """Let it end as it does when it is asked to, and for good."""
        self._not_again()
        if self._process.poll() is None:
            processes = self.processes()
            self._process.terminate()
            _, left = psutil.wait_procs(processes, timeout=60)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._keeper.join()


class Cluster:
    """The services of docker-compose.yaml as processes; each can be killed, and workers can be added.

    Args:
        bucket: the URL of an S3 server.
        environment: what differs from docker-compose.yaml.

    Raises:
        FileNotFoundError: PostgreSQL or Redis is not installed.
    """

    def __init__(self, bucket: str, environment: Mapping[str, str]) -> None:
        self._programs, self._redis = server_programs()
        self.folder = Path(tempfile.mkdtemp(prefix="cluster-"))
        self._broker_port, self._database_port, port, health_port = free_ports(4)
        self.url = f"http://127.0.0.1:{port}"
        self._addresses = {
            "postgres:5432": f"127.0.0.1:{self._database_port}",
            "redis:6379": f"127.0.0.1:{self._broker_port}",
            "http://api-server:8080": self.url,
            "http://bucket:8333": bucket,
        }
        self._different = {
            **environment,
            "AIRFLOW_HOME": str(self.folder),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.folder / "passwords.json"),
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(health_port),
        }
        self.secrets = {name: secrets.token_hex(32) for name in re.findall(r"\$\{(\w+):\?", str(SERVICES))}
        self.secrets |= {"COMPOSE_PROFILES": "cpu", "AIRFLOW_FERNET_KEY": fernet_key()}
        self.parts: dict[str, Part] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Of all parts of Airflow, as docker-compose.yaml and the secrets have it."""
        filled = self._filled(SERVICES["init"]["environment"])
        client = {
            "PGHOST": "127.0.0.1",
            "PGPASSWORD": self.secrets["POSTGRES_PASSWORD"],
            "PGPORT": str(self._database_port),
            "PGUSER": "airflow",
        }
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**inherited, **filled, **client, **self._different}

    def _filled(self, environment: Mapping[str, str | None]) -> dict[str, str]:
        """An environment of docker-compose.yaml with the secrets, and the addresses that parts have here."""
        filled = {}
        for name, value in environment.items():
            # A variable without a value is passed on from .env, and not set where .env does not have it.
            if value is None:
                continue
            text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: self.secrets[found[1]], value)
            for inside, here in self._addresses.items():
                text = text.replace(inside, here)
            filled[name] = text
        return filled

    def start(self) -> None:
        """Start PostgreSQL, Redis and all of Airflow but the computing workers, and wait until it is well."""
        if "postgres" not in self.parts:
            self._start_database()
            self.start_broker()
        self.run([sys.executable, PROJECT / "scripts" / "prepare.py"])
        for service in ("api-server", "scheduler", "dag-processor", "triggerer"):
            self._start(service, SERVICES[service]["command"])
        self.add_worker("worker")
        wait_for("Airflow to be well", self.is_well)
        self.airflow = Airflow(self.url, "admin", self.secrets["AIRFLOW_ADMIN_PASSWORD"])

    def _start_database(self) -> None:
        """Start PostgreSQL with an empty database."""
        data, user = self.folder / "postgres", "postgres" if os.geteuid() == 0 else None
        # PostgreSQL refuses to run as root, and in a folder that it may not enter.
        self.folder.chmod(0o755)
        data.mkdir(mode=0o700)
        if user:
            shutil.chown(data, user, user)
        password = self.folder / "postgres.password"
        password.write_text(self.secrets["POSTGRES_PASSWORD"])
        # As the official image does it, Airflow's role may do everything.
        role = ["--username", "airflow", "--auth", "scram-sha-256", "--pwfile", password]
        initdb = [self._programs / "initdb", "--pgdata", data, *role]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, user=user, group=user, cwd=self.folder)
        command = [self._programs / "postgres", "-D", data, "-c", "listen_addresses=127.0.0.1", "-k", ""]
        command += ["-p", str(self._database_port)]
        self.parts["postgres"] = Part(command, self.environment, self._log("postgres"), user)
        ready = [self._programs / "pg_isready", "--quiet"]
        wait_for("PostgreSQL", lambda: subprocess.run(ready, env=self.environment, check=False).returncode == 0)
        self.postgres("createdb", "airflow")

    def start_broker(self) -> None:
        """Start Redis, with what it holds since it ran last."""
        data = self.folder / "redis"
        data.mkdir(exist_ok=True)
        settings = ["--requirepass", self.secrets["REDIS_PASSWORD"], "--appendonly", "yes", "--dir", data]
        command = [self._redis, "--bind", "127.0.0.1", "--port", str(self._broker_port), *settings]
        self.parts["redis"] = Part(command, self.environment, self._log("redis"))

    def add_worker(self, service: str, name: str | None = None) -> None:
        """Start a worker of a service, by a name that Airflow takes for its machine's, and wait until it listens."""
        name = name or service
        command = list(SERVICES[service]["command"])
        command[command.index("--pid") + 1] = str(self.folder / f"{name}.pid")
        # Airflow tells workers apart by their machines' names. Here that is one, but a user's may differ by process.
        machine = {"AIRFLOW__CORE__HOSTNAME_CALLABLE": "getpass.getuser", "LOGNAME": name}
        log = self._log(name)
        before = log.stat().st_size if log.exists() else 0
        self._start(name, [*command, "--celery-hostname", f"{name}@%h"], machine)
        wait_for(f"{name} to listen", lambda: re.search(rf"{name}@\S+ ready", log.read_text()[before:]))

    def _start(self, name: str, command: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        # As Compose does where .env does not have the variable.
        program, *arguments = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in command]
        assert program == "airflow"
        self.parts[name] = Part([AIRFLOW, *arguments], {**self.environment, **(more or {})}, self._log(name))

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def run(self, command: Sequence[str | Path], **more: str) -> str:
        """Run a command to its end in the environment of all parts, and return what it printed."""
        environment = {**self.environment, **more}
        done = subprocess.run(
            command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE, encoding="utf-8", check=True
        )
        return done.stdout

    def postgres(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's programs to its end."""
        self.run([self._programs / program, *arguments])

    def is_well(self) -> bool:
        """Whether all parts of Airflow say so."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v2/monitor/health", timeout=5) as answer:  # noqa: S310
                health = json.load(answer)
        except OSError:
            return False
        return all(part["status"] == "healthy" for part in health.values())

    def stop_airflow(self) -> None:
        """Stop all of Airflow as a shutdown does; PostgreSQL and Redis stay."""
        names = [name for name in self.parts if name not in ("postgres", "redis")]
        with ThreadPoolExecutor() as pool:
            list(pool.map(Part.stop, [self.parts.pop(name) for name in names]))

    def stop(self) -> None:
        """Stop everything."""
        self.stop_airflow()
        for name in list(self.parts):
            self.parts.pop(name).stop()
