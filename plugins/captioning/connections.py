"""The credentials of Airflow's connections, in the form in which the pipeline takes them."""

import logging

log = logging.getLogger(__name__)


def aws_environment() -> dict[str, str]:
    """The Airflow connection ``aws_default`` as the environment variables that boto3 reads; empty without one."""
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        Connection.get("aws_default")
    except AirflowNotFoundException:
        return {}
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook(aws_conn_id="aws_default")
    credentials = hook.get_credentials(region_name=hook.region_name)
    variables = {
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "AWS_SESSION_TOKEN": credentials.token,
        "AWS_DEFAULT_REGION": hook.region_name,
        "AWS_ENDPOINT_URL": hook.conn_config.endpoint_url,
    }
    log.info("Using the S3 credentials of the connection aws_default")
    return {name: value for name, value in variables.items() if value}
