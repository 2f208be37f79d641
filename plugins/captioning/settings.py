"""Settings that only Airflow uses, read from environment variables with the prefix ``CAPTION_``."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from captioning.names import MAINTENANCE_DAG, NIGHT_DAG, RETRAINING_DAG
from pipeline.settings import PREFIX, load_settings


class AirflowSettings(BaseSettings):
    """The connections, the receivers of notifications, when and with which Python the DAGs run, and their names."""

    # A wrong value may be an address with a password in it.
    model_config = SettingsConfigDict(env_prefix=PREFIX, hide_input_in_errors=True)

    store_connection: str = Field(
        "aws_default", description="Airflow connection of the store on S3, and of all other buckets but the inbox"
    )
    inbox_connection: str = Field("aws_default", description="Airflow connection of the inbox on S3")
    notify_email: str = Field(
        "",
        description="addresses that get mail about failures, late nights and warnings, separated by commas; the mail "
        "server is Airflow's connection smtp_default",
    )
    notify_webhook: str = Field(
        "",
        description="Airflow connection of a webhook (Slack, Teams, …) that gets the same messages; its host is the "
        "address, and its password the secret end of the address",
    )
    night_deadline: float = Field(
        5, gt=0, description="a night that has not ended this many hours after it was queued is reported as late"
    )
    night_schedule: str = Field("0 2 * * *", description="when nights run, as five cron fields")
    arrival_delay: int = Field(
        0,
        ge=0,
        description="seconds that a night waits after new photographs were reported to Airflow, for the rest of their "
        "upload; 0 if reports start no night",
    )
    inbox_queue: str = Field(
        "",
        pattern=r"^(https?://[^/\s]+/\S+)?$",
        description="URL of the SQS queue of the inbox's event notifications, which report new photographs; empty for "
        "none",
    )
    retraining_schedule: str = Field(
        "", description="when retrainings run by the clock, as five cron fields, such as `0 3 * * 0`; empty for never"
    )
    maintenance_schedule: str = Field("0 12 * * 0", description="when the maintenance runs, as five cron fields")
    backup: str = Field(
        "",
        pattern=r"^((file|s3)://\S+)?$",
        description="where the maintenance backs the store up, such as `s3://backups/captioning`; empty for no backup",
    )
    timezone: str = Field(
        "UTC", description="time zone of all schedules, by its name in the IANA database, such as `Europe/Berlin`"
    )
    scheduled_promotion: Literal["auto", "approve", "never"] = Field(
        "approve", description="promotion of a retraining that runs by the clock: `auto`, `approve` or `never`"
    )
    dag_prefix: str = Field(
        "",
        max_length=100,
        pattern=r"^[A-Za-z0-9_.-]*$",
        description="begins the ids of all DAGs and the names of their assets, such as `team_a_`; deployments that "
        "share an Airflow need different ones",
    )
    owner: str = Field(
        "captioning", min_length=1, max_length=500, description="owner of all DAGs, as Airflow's list of DAGs shows it"
    )
    pool: str = Field(
        "gpu", min_length=1, max_length=256, description="pool of the tasks that use the accelerator or all cores"
    )
    queue: str = Field("gpu", min_length=1, max_length=256, description="queue of the same tasks")
    python: str = Field(
        "",
        description="path of the Python that runs the pipeline's commands and captions uploads; its environment needs "
        "no Airflow, and that of Airflow then needs no extra of the package; empty for Airflow's own Python",
    )

    @field_validator("night_schedule", "retraining_schedule", "maintenance_schedule")
    @classmethod
    def _is_cron(cls, value: str, info: ValidationInfo) -> str:
        from croniter import croniter  # type: ignore[import-untyped]

        if value == cls.model_fields[str(info.field_name)].default:
            return value
        if len(value.split()) != 5 or not croniter.is_valid(value):
            raise ValueError("expected five cron fields (minute, hour, day, month, weekday), such as 30 2 * * *")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, value: str) -> str:
        import pendulum

        try:
            return pendulum.timezone(value).name
        except ValueError:
            raise ValueError("expected a name in the IANA database of time zones, such as Europe/Berlin") from None

    @field_validator("python")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        if value and not Path(value).is_absolute():
            raise ValueError("expected the absolute path of a Python, such as /opt/captioning/.venv/bin/python")
        return value

    @field_validator("inbox_queue")
    @classmethod
    def _has_delay(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("arrival_delay") == 0:
            raise ValueError("the queue's reports start no night, unless CAPTION_ARRIVAL_DELAY is above 0, such as 60")
        return value

    @property
    def night_dag(self) -> str:
        """The id of the DAG of nights."""
        return self.dag_prefix + NIGHT_DAG

    @property
    def retraining_dag(self) -> str:
        """The id of the DAG of retrainings."""
        return self.dag_prefix + RETRAINING_DAG

    @property
    def maintenance_dag(self) -> str:
        """The id of the DAG of the maintenance."""
        return self.dag_prefix + MAINTENANCE_DAG

    @property
    def accelerator(self) -> dict[str, Any]:
        """The pool and the queue as arguments of a task that uses the accelerator, or all cores if there is none."""
        return {"pool": self.pool, "queue": self.queue}


def read_settings() -> AirflowSettings:
    """The settings of this process. Raises ``PipelineError`` if the environment holds invalid ones."""
    return load_settings(AirflowSettings)
