"""Files for Airflow's DAG folder that import the DAGs of the installed package."""

import pkgutil
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import PipelineError

PACKAGE = "captioning_dags"

# Airflow reads only files that contain the words "airflow" and "dag".
CONTENT = """\
# This file shows Airflow a DAG of the installed package, and is replaced by `captioning install-dags`.
from {package}.{name} import dag
"""


def write(folder: Path) -> list[Path]:
    """Write a file for each DAG, and return the files. Existing files of these names are replaced.

    Raises:
        PipelineError: the package of the DAGs is not installed, or ``folder`` is not a folder.
    """
    spec = find_spec(PACKAGE)
    if spec is None:
        raise PipelineError(
            f"The package {PACKAGE} is not installed in this environment. In a checkout, Airflow reads dags/ itself."
        )
    if not folder.is_dir():
        raise PipelineError(f"There is no folder {folder}. Create Airflow's DAG folder first.")
    files = []
    for module in pkgutil.iter_modules(spec.submodule_search_locations):
        files.append(folder / f"{module.name}.py")
        files[-1].write_text(CONTENT.format(package=PACKAGE, name=module.name))
    return files
