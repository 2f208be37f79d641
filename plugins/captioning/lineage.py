"""OpenLineage: what a task has read and written, under the names by which other tools know it.

Airflow's provider for OpenLineage asks for it when a task has ended; without the provider nothing here is imported. All
of it follows from the command and its result, so nothing is read from the store.

A table in many files is one data set, by the prefix of their keys: what one task writes and another reads has one name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pipeline.settings import read_settings
from pipeline.storage import has_portable_names, layout, names

if TYPE_CHECKING:
    import pyarrow as pa
    from airflow.providers.openlineage.extractors import OperatorLineage

Result = Mapping[str, Any]
"""The result of a command."""


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        uri: its address, or a path.
        schema: of its rows, if it is a table.
        rows: how many were written, if any were.
        version: of a model.
    """

    uri: str
    schema: "pa.Schema | None" = None
    rows: int | None = None
    version: str = ""

    @property
    def name(self) -> tuple[str, str]:
        """The namespace and the name that OpenLineage gives to objects of S3, and to files."""
        scheme, separator, rest = self.uri.partition("://")
        if separator and scheme == "s3":
            bucket, _, key = rest.partition("/")
            return f"s3://{bucket}", key.strip("/") or "/"
        path = unquote(rest.removeprefix("localhost")) if separator else self.uri
        return "file", str(Path(path).absolute())


Lineage = tuple[list[Data], list[Data]]
"""Inputs and outputs."""


def operator_lineage(arguments: Sequence[str], result: Result) -> "OperatorLineage[Any, Any] | None":
    """What a command has read and written, for the provider; None for a command that reads and writes no datasets.

    Args:
        arguments: the command and its options.
        result: what it has printed.
    """
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset, output_statistics_output_dataset, schema_dataset

    def facets(data: Data) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if data.schema is not None:
            fields = [
                schema_dataset.SchemaDatasetFacetFields(
                    field.name, str(field.type), (field.metadata or {}).get(b"description", b"").decode() or None
                )
                for field in data.schema
            ]
            found["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields)
        if data.version:
            found["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=data.version)
        return found

    def statistics(data: Data) -> dict[str, Any]:
        if data.rows is None:
            return {}
        written = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=data.rows)
        return {"outputStatistics": written}

    if (found := describe(arguments, result)) is None:
        return None
    inputs, outputs = found
    return OperatorLineage(
        inputs=[InputDataset(*data.name, facets=facets(data)) for data in inputs],
        outputs=[OutputDataset(*data.name, facets=facets(data), outputFacets=statistics(data)) for data in outputs],
    )


def describe(arguments: Sequence[str], result: Result) -> Lineage | None:
    """What a command has read and written; None for one without datasets. Arguments as for ``operator_lineage``."""
    for command, of_command in _COMMANDS.items():
        if (*arguments[: len(command)],) == command:
            given = [each for each in arguments[len(command) :] if not each.startswith("--")]
            return of_command(given, result)
    return None


def _ingest(given: Sequence[str], result: Result) -> Lineage:
    sources = [_dataset(each) if names.DATASET_ID.matches(each) else Data(each) for each in given]
    if any(map(has_portable_names, result["sources"])):  # those of corrections
        sources.append(_in_store(layout.CORRECTIONS))
    return sources, [_dataset(result["dataset"], rows=sum(result["images"].values()))]


def _extract(given: Sequence[str], result: Result) -> Lineage:
    encoder_id = result["encoder_id"]
    return [Data(result["source"]), _encoder(encoder_id)], [_features(encoder_id, rows=result["images"] or None)]


def _train(given: Sequence[str], result: Result) -> Lineage:
    dataset_id, vocabulary, encoder_id = given
    inputs = [_dataset(dataset_id), _in_store(vocabulary), _features(encoder_id), _encoder(encoder_id)]
    return inputs, [_model(result["version"])]


def _evaluate(given: Sequence[str], result: Result) -> Lineage:
    from pipeline.evaluation.results import CAPTIONS

    keys = layout.EvaluationKeys(result["report"].rpartition("/")[0])
    outputs = [Data(keys.captions, CAPTIONS, rows=result["images"]), Data(keys.metrics), Data(keys.report)]
    return [_model(result["version"]), _dataset(result["dataset"])], outputs


def _caption(given: Sequence[str], result: Result) -> Lineage:
    version = result["version"]
    inputs = [_model(version), _features(result["encoder_id"])]
    return inputs, [_captions(version, rows=result["images"] or None)]


def _reconcile(given: Sequence[str], result: Result) -> Lineage:
    from pipeline.nightly import current

    inputs = [Data(read_settings().inbox), _captions(result["version"]), _in_store(layout.CORRECTIONS)]
    record = _in_store(layout.run_record(result["kind"], result["run"]))
    return inputs, [_in_store(layout.CURRENT_CAPTIONS, current.SCHEMA, rows=result["listed"]), record]


_COMMANDS: dict[tuple[str, ...], Callable[[Sequence[str], Result], Lineage]] = {
    ("ingest",): _ingest,
    ("extract",): _extract,
    ("train",): _train,
    ("evaluate",): _evaluate,
    ("night", "caption"): _caption,
    ("night", "reconcile"): _reconcile,
}
"""The commands that move data; each function gets the arguments without the options, and the result."""


def _in_store(key: str, schema: "pa.Schema | None" = None, *, rows: int | None = None, version: str = "") -> Data:
    return Data(f"{read_settings().store.rstrip('/')}/{key.rstrip('/')}", schema, rows, version)


def _dataset(dataset_id: str, *, rows: int | None = None) -> Data:
    from pipeline.data.annotations import dataset_schema

    return _in_store(layout.dataset_table(dataset_id), dataset_schema(), rows=rows)


def _encoder(encoder_id: str) -> Data:
    return _in_store(layout.encoder_folder(encoder_id))


def _features(encoder_id: str, *, rows: int | None = None) -> Data:
    """The features of an encoder; the schema leaves out the vectors, whose length depends on the encoder."""
    from pipeline.features.store import ROWS

    return _in_store(layout.features_folder(encoder_id), ROWS, rows=rows)


def _captions(version: str, *, rows: int | None = None) -> Data:
    from pipeline.nightly.captions import SCHEMA

    return _in_store(layout.captions_of_model(version), SCHEMA, rows=rows)


def _model(version: str) -> Data:
    return _in_store(layout.model_folder(version), version=version)
