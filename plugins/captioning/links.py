"""URLs of pages on Airflow's server, its own and the gallery's, and the links from tasks to them."""

from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink, conf


def page_url(path: str) -> str:
    """The URL of a page on Airflow's server."""
    return f"{conf.get('api', 'base_url', fallback='http://localhost:8080').rstrip('/')}/{path}"


def run_url(dag_id: str, run_id: str) -> str:
    """The URL of a run in Airflow's UI."""
    return page_url(f"dags/{dag_id}/runs/{quote(run_id)}")


def task_url(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """The URL of a task in a run; ``map_index`` is -1 where it is not mapped."""
    mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
    return f"{run_url(dag_id, run_id)}/tasks/{task_id}{mapped}"


class PageLink(BaseOperatorLink):
    """A button on a task's page that opens the page of this name among the operator's ``pages``.

    Airflow calls `get_link` in the task's process when a try has ended, and stores the URL as an XCom: the API server
    needs neither this class nor a plugin to show the button.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """The button's label."""
        return self._name

    @property
    def xcom_key(self) -> str:
        """The XCom key of the URL."""
        return f"_link_{self._name}"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The page's URL."""
        return page_url(operator.pages[self._name])
