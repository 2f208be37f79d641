"""Everything of Airflow that the project uses and that is not Airflow's public interface.

A new version of Airflow may change or remove any of it without notice: this module is the list of what to check. A test
holds that no other module imports such names. Import it where it is needed, in functions of listeners for example: it
loads Airflow's models and its API server.

* The gallery is an application within the API server, and Airflow documents no way to use its login and permissions:
  hence ``airflow.api_fastapi``.
* Listeners get the scheduler's own objects, and no public way leads from them to notes, XComs and pools: hence
  ``airflow.models`` and ``airflow.settings``.

Public are ``airflow.sdk`` and ``airflow.sdk.exceptions``, the base classes of plugins, listeners and triggers, and
Airflow's providers
(https://airflow.apache.org/docs/apache-airflow/stable/public-airflow-interface.html);
and, by the word of its maintainers, ``airflow.sdk.observability``
(https://github.com/apache/airflow/discussions/69096).
"""

from airflow import settings
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, bearer_scheme, get_user, requires_access_dag
from airflow.models import DagRun, Pool, TaskInstance
from airflow.models.xcom import XComModel

__all__ = [
    "BaseUser",
    "DagAccessEntity",
    "DagDetails",
    "DagRun",
    "GetUserDep",
    "Pool",
    "TaskInstance",
    "XComModel",
    "bearer_scheme",
    "get_auth_manager",
    "get_user",
    "requires_access_dag",
    "settings",
]
