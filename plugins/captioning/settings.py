"""Settings that only Airflow uses, read from environment variables with the prefix ``CAPTION_``."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.settings import PREFIX, load_settings


class AirflowSettings(BaseSettings):
    """The connections of the buckets, the receivers of notifications, and the time after which a night is late."""

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


def read_settings() -> AirflowSettings:
    """The settings of this process. Raises ``PipelineError`` if the environment holds invalid ones."""
    return load_settings(AirflowSettings)
