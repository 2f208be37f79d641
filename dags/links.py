"""Addresses of pages: of Airflow's own, and of those of the gallery beside it, to which tasks link."""

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.configuration import conf
from airflow.sdk.types import TaskInstanceKey


def ui(path: str) -> str:
    """The address of a page of Airflow's server."""
    return f"{conf.get('api', 'base_url', fallback='http://localhost:8080').rstrip('/')}/{path}"


class PageLink(BaseOperatorLink):
    """A button of a task that leads to the page of this name among its ``pages``.

    Airflow asks for the address when a try has ended, in the task's process, and keeps it as an XCom: the server needs
    neither this class nor a plugin to show it.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """What the button says."""
        return self._name

    @property
    def xcom_key(self) -> str:
        """Under which the address is kept."""
        return f"_link_{self._name}"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The page's address."""
        return ui(operator.pages[self._name])
