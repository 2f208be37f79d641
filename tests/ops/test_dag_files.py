"""The files that show Airflow the DAGs of the installed package; ``test_wheel`` lets Airflow read them."""

import pytest

from pipeline.errors import PipelineError
from pipeline.ops import dag_files


def test_a_file_for_each_dag(tmp_path):
    """Each imports the DAG of its name; a file that is there is replaced."""
    (tmp_path / "retrain_captioner.py").write_text("an earlier version")
    files = dag_files.write(tmp_path)
    assert [file.name for file in files] == ["caption_new_images.py", "maintain_captioning.py", "retrain_captioner.py"]
    for file in files:
        assert file.read_text().splitlines()[1] == f"from captioning_dags.{file.stem} import dag"


def test_a_folder_that_is_not_there(tmp_path):
    """The error names it."""
    with pytest.raises(PipelineError, match=f"There is no folder {tmp_path}/dags"):
        dag_files.write(tmp_path / "dags")


def test_without_the_package(tmp_path, monkeypatch):
    """Where only the checkout is on the path, the error says that Airflow reads its folder."""
    monkeypatch.setattr(dag_files, "find_spec", lambda _: None)
    with pytest.raises(PipelineError, match="The package captioning_dags is not installed"):
        dag_files.write(tmp_path)
