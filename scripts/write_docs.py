"""Write the reference documents from the code: docs/cli.md, docs/configuration.md, docs/sql.md and docs/store.md.

`make docs` runs it. A test fails if a document differs from what this script renders.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import typer
from pydantic import BaseModel
from pydantic_settings import BaseSettings
from typer.core import TyperGroup

from captioning.settings import AirflowSettings
from pipeline.captioner import bundle
from pipeline.cli import app
from pipeline.config import WORDING, DecodingConfig, TrainingConfig, describe_bounds
from pipeline.data import corrections
from pipeline.data.annotations import dataset_schema
from pipeline.evaluation import results
from pipeline.evaluation.promotion_gate import GateConfig
from pipeline.features import encoder as encoders
from pipeline.features import store as feature_store
from pipeline.nightly import captions, current, shadow
from pipeline.settings import PROJECT, Settings
from pipeline.storage import artifacts, layout

SETTINGS: dict[str, tuple[type[BaseModel], Sequence[str]]] = {
    "Store and inputs": (Settings, ["store", "inbox", "inbox_profile", "dataset", "encoder", "requester_pays"]),
    "Runs": (Settings, ["shard_size", "max_failed_fraction", "tracking_uri"]),
    "Listing of the inbox": (Settings, ["inbox_include", "inbox_exclude", "max_shrink_fraction"]),
    "Nightly captions": (
        Settings,
        ["night_limit", "beam_width", "mbr_samples", "neighbours", "review_below", "sidecars", "drift_limit"],
    ),
    "Wording of all captions": (Settings, ["forbidden_words", "neutral_wording"]),
    "Retraining": (Settings, ["retrain_after_corrections", "retrain_after_drift", "shadow"]),
    "Signatures": (Settings, ["signing_key", "verify_key", "verify_state"]),
    "Schedule": (AirflowSettings, ["night_schedule", "retraining_schedule", "timezone", "scheduled_promotion"]),
    "Maintenance": (AirflowSettings, ["maintenance_schedule", "backup"]),
    "Nights that uploads start": (AirflowSettings, ["arrival_delay", "inbox_queue"]),
    "Several deployments": (AirflowSettings, ["dag_prefix", "owner", "pool", "queue"]),
    "Interpreter": (AirflowSettings, ["python"]),
    "Connections": (AirflowSettings, ["store_connection", "inbox_connection"]),
    "Notifications": (AirflowSettings, ["notify_email", "notify_webhook", "night_deadline"]),
}
"""The settings in the groups in which the document shows them; a test checks that all have one."""

PLACEHOLDERS = {"dataset_id": "NAME/FINGERPRINT", "date": "YYYY-MM-DD"}
"""What stands for an argument in a key of the store. For other arguments it is their name in capitals."""

STORE = "data/store"
"""The address of the store in queries: that of the default store, from the root of the checkout."""

S3_STORE = "s3://my-bucket/captioning"
"""The address of a store in the definitions of tables for SQL engines, which read S3."""

MODEL = "20261125T032416-8c652ad7"
"""The version of a model in queries."""


@dataclass(frozen=True)
class Table:
    """A kind of Parquet table in the store.

    Attributes:
        title: the heading.
        files: pattern of the keys of its files.
        text: what a row is, and what the query returns.
        schema: its columns.
        query: an SQL query of DuckDB, with ``{files}`` in place of the files.
    """

    title: str
    files: str
    text: str
    schema: pa.Schema
    query: str


TABLES = (
    Table(
        "Current captions",
        layout.CURRENT_CAPTIONS,
        "Every image in the inbox has a row: with the caption that counts, with the error because of which it has "
        "none, or with neither if no night has tried it yet. The query counts the images by who wrote the caption, "
        "null if nobody did.",
        current.SCHEMA,
        "select source, count(*) as images\nfrom {files}\ngroup by source\norder by images desc",
    ),
    Table(
        "Captions",
        layout.shard_result(layout.captions_folder("*", "*"), "*"),
        "The history. Every image that a night lists has a row, whether it was captioned or failed. It gets a further "
        "row whenever it is tried again, or captioned again by a new champion or on request. The partitions are two "
        "more columns: `model` is the version of the model, and `date` the date of the night. The query returns all "
        "captions that an image has had.",
        captions.SCHEMA,
        "select image_key, captioned_at, model, caption, error\nfrom {files}\norder by image_key, captioned_at",
    ),
    Table(
        "Features",
        layout.shard_result(layout.features_folder("*"), "*"),
        "Every attempt to encode an image has a row. The types of `feature` and `regions` are shown for ResNet50: the "
        "lengths depend on the encoder, and an encoder with crops has a list of vectors. Only encoders with regions "
        "have the column `regions`, which takes up to 25 KB a row; whoever needs only the vectors need not read it. "
        "The query counts the failed attempts by error, so it returns nothing if none has failed.",
        feature_store.schema((2048,), (49, 256)),
        "select error, count(*) as attempts\n"
        "from {files}\n"
        "where status = 'failed'\n"
        "group by error\n"
        "order by attempts desc",
    ),
    Table(
        "Datasets",
        layout.dataset_table("*/*"),
        "Every image of a dataset has a row. The query counts the images and captions in each split of each dataset.",
        dataset_schema(),
        "select array_to_string(parse_path(filename)[-3:-2], '/') as dataset, split, count(*) as images,\n"
        "    sum(len(captions)) as captions\n"
        "from {files}\n"
        "group by dataset, split\n"
        "order by dataset, split",
    ),
    Table(
        "Captions of an evaluation",
        layout.EvaluationKeys(f"{layout.evaluations('*')}*").captions,
        "Every image of the test split has a row. `references` is a keyword of SQL and must be quoted. The query "
        "returns the captions beside the human captions.",
        results.CAPTIONS,
        'select parse_path(filename)[-4] as model, image_id, caption, "references"\n'
        "from {files}\n"
        "order by model, image_id",
    ),
    Table(
        "Captions before an approval",
        layout.shadow("*"),
        "Every photograph of the inbox that candidate and champion have captioned before an approval has a row. The "
        "query counts the photographs that would get another caption.",
        shadow.SCHEMA,
        "select parse_path(filename)[-2] as model, champion_version, count(*) as images,\n"
        "    count(*) filter (caption <> champion_caption) as other_captions\n"
        "from {files}\n"
        "group by all\n"
        "order by model",
    ),
    Table(
        "Corrections",
        layout.correction("*", "*"),
        "Every correction has a row. The query returns all of them, the newest first.",
        corrections.SCHEMA,
        "select corrected_at, image_key, model_caption, caption\nfrom {files}\norder by corrected_at desc",
    ),
    Table(
        "Shards",
        layout.shard("*"),
        "Every image of a shard has a row. A shard of captions has all these columns, a shard of features only the "
        "first three. If a night captions images again, `requested_at` says when that was requested. The query counts "
        "the images of each shard.",
        feature_store.INDEX,
        "select parse_filename(filename, true) as shard, count(*) as images\n"
        "from {files}\n"
        "group by all\n"
        "order by images desc",
    ),
)


TIME = pa.timestamp("us", tz="UTC")
ATHENA = {
    pa.bool_(): "boolean",
    pa.string(): "string",
    pa.float32(): "float",
    pa.int32(): "int",
    pa.int64(): "bigint",
    TIME: "timestamp",
}
TRINO = {
    pa.bool_(): "boolean",
    pa.string(): "varchar",
    pa.float32(): "real",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    TIME: "timestamp(3)",
}
"""The types of SQL engines for those of the columns of captions."""


def main() -> None:
    """Write all documents."""
    for name, render in DOCUMENTS.items():
        (PROJECT / "docs" / name).write_text(render())


def render_configuration() -> str:
    """The settings, and the fields of the configuration of a retraining."""
    blocks = [
        "## Settings",
        "Settings are environment variables. Every command reads them, in a shell as well as in a task of Airflow. In "
        "the defaults, `…` stands for the folder of the checkout. An installed package has no checkout: its data is "
        "below `$XDG_DATA_HOME/captioning`, or `~/.local/share/captioning`, instead of `…/data`.",
        "A URI of a local folder begins with `file://`; the plain path of the folder works as well. A misspelled "
        "setting is an error, if its name is close enough to the right one.",
    ]
    for title, (model, names) in SETTINGS.items():
        blocks.append(f"### {title}")
        if model is AirflowSettings:
            blocks.append("Airflow itself reads these, so they must be set for all its parts and not only for workers.")
        blocks.append(_table(["variable", "default", "description"], _fields(model, names)))
    blocks += [
        "### Variables of libraries",
        _table(
            ["variable", "default", "description"],
            [
                ["`AWS_…`", "", "as boto3 reads them; in Airflow, its connections take precedence"],
                ["`KERAS_BACKEND`", "`tensorflow`", "backend of Keras; `jax` works too, if it is installed"],
                ["`MLFLOW_TRACKING_…`", "", "as MLflow reads them: the credentials of a tracking server"],
            ],
        ),
        "### Variables of make",
        "Set them in the environment, or after the target: `make demo DATA=$HOME/Flickr8k`.",
        _table(
            ["variable", "default", "description"],
            [
                ["`DATA`", "", "path of captioned photographs for `make demo`; empty for drawn pictures"],
                ["`LANGUAGE`", "", "language of their captions; only after the target, where it is not gettext's"],
                [
                    "`ENCODER`",
                    "`random`",
                    "[encoder](encoders.md) for `make demo`, such as `resnet50`, or a `.keras` file",
                ],
                [
                    "`PYTHON`",
                    "`python3`",
                    "the Python from which `.venv`, `.venv-mlflow` and `.venv-sbom` are made: 3.11 to 3.13",
                ],
                ["`AIRFLOW_HOME`", "`…/data/airflow`", "folder of Airflow's database and logs"],
                ["`AIRFLOW__API__PORT`", "`8080`", "port of `make up`"],
                ["`MLFLOW_PORT`", "`5000`", "port of `make mlflow`"],
            ],
        ),
        "## Configuration of a retraining",
        "The form of the DAG `retrain_captioner` has these fields and those that choose the data. On the command line, "
        "[`captioning train`](cli.md#captioning-train) takes the fields of the training as `--set NAME=VALUE`. "
        "[`captioning evaluate`](cli.md#captioning-evaluate) and [`captioning gate`](cli.md#captioning-gate) have an "
        "option for each of the other fields.",
    ]
    for title, text, model in (
        ("Training", "", TrainingConfig),
        (
            "Decoding of the evaluation",
            "The nightly captions are decoded as `CAPTION_BEAM_WIDTH`, `CAPTION_MBR_SAMPLES` and "
            "`CAPTION_NEIGHBOURS` say.",
            DecodingConfig,
        ),
        ("Promotion gate", "In the form, `policy` is called *Promotion*.", GateConfig),
    ):
        rows = _fields(model, [name for name in model.model_fields if name not in WORDING])
        blocks += [f"### {title}", text, _table(["field", "default", "description"], rows)]
    return _document("Configuration", blocks)


def render_cli() -> str:
    """Every command with its arguments and options, in the groups and as ``--help`` shows them."""
    root = typer.main.get_group(app)
    panels: dict[str, list[typer.Context]] = {}
    for context in _commands(root, typer.Context(root, info_name="captioning")):
        panels.setdefault(getattr(context.command, "rich_help_panel", ""), []).append(context)
    blocks = [
        f"{root.help} `captioning COMMAND --help` shows the section of a command.",
        "Commands write their log to standard error and their result to standard output. The result is one line of "
        "JSON, except that `caption` and `status` print text. The exit status is 0 after success. It is 2 if the input "
        "or the configuration is wrong or a package is missing, so that the same command would fail again. After any "
        "other status, the command can be repeated, with one exception: after status 1, `caption` has printed all "
        "captions, and some pictures could not be read.",
    ]
    for title, commands in panels.items():
        rows = [
            [
                f"[`{context.command_path}`](#{context.command_path.replace(' ', '-')})",
                str(context.command.help).partition("\n")[0],
            ]
            for context in commands
        ]
        blocks += [f"**[{title}](#{title.lower().replace(' ', '-')})**", _table(["command", "description"], rows)]
    for title, commands in panels.items():
        blocks.append(f"## {title}")
        for context in commands:
            command = context.command
            usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
            records = (parameter.get_help_record(context) for parameter in command.params)
            rows = [[f"`{name}`", " ".join(text.split())] for name, text in filter(None, records)]
            blocks += [f"### {context.command_path}", str(command.help), f"```\n{usage}\n```"]
            blocks += [_table(["argument or option", "description"], rows)] if rows else []
    return _document("Command line", blocks)


def render_store() -> str:
    """The layout of the store, and the schema and a query of each table."""
    keys = _keys()
    blocks = [
        _paragraph(inspect.getdoc(layout), 1),
        "## Folders",
        "Names in capitals stand for what varies.",
    ]
    for folder, text in layout.FOLDERS.items():
        rows = [[f"`{key}`", description] for key, description in keys.items() if key.startswith(folder)]
        blocks += [f"### {folder}", text, _table(["key", "description"], rows)]
    blocks += [
        "## Tables",
        "The queries are for [DuckDB](https://duckdb.org) and the default store. Install it with "
        "`.venv/bin/pip install duckdb`, and run a query from the root of the checkout, in the place of the dots:",
        '```sh\n.venv/bin/python - <<\'END\'\nimport duckdb\nduckdb.sql("""\n…\n""").show(max_width=150)\nEND\n```',
        f"For another store, replace `{STORE}` by its address. For an address on S3, such as "
        "`s3://my-bucket/captioning`, add a line before the query: "
        '`duckdb.sql("create secret (type s3, provider credential_chain)")` lets DuckDB use your AWS credentials, and '
        "its extensions `httpfs` and `aws`, which it downloads. A query fails if the store has no file of its table "
        "yet.",
    ]
    for table in TABLES:
        rows = [[f"`{column.name}`", f"`{column.type}`", describe(column)] for column in table.schema]
        query = table.query.format(files=f"'{STORE}/{table.files}'")
        blocks += [
            f"### {table.title}",
            f"`{table.files}`",
            table.text,
            _table(["column", "type", "description"], rows),
            f"```sql\n{query}\n```",
        ]
    return _document("The store", blocks)


def render_sql() -> str:
    """The definitions of the tables of captions for SQL engines that read S3, with queries."""
    current_folder, history = f"{S3_STORE}/{layout.CURRENT}", f"{S3_STORE}/{layout.CAPTIONS}"
    partitions = f"{S3_STORE}/{layout.captions_folder('${model}', '${date}')}"
    blocks = [
        "These statements define the tables of captions where a table is a folder on S3. Replace "
        f"`{S3_STORE}` by the address of the store. [The store](store.md#tables) describes the columns; "
        "[Reading captions](captions.md) shows other ways to read them, and how to export an Iceberg table.",
        f"`{layout.CURRENT}` holds one file, which a night replaces in one step. A query that was reading the old one "
        "at this moment fails: repeat it.",
        "## Athena",
        "Athena runs one statement at a time.",
        "### Current captions",
        _code(
            f"CREATE EXTERNAL TABLE current_captions (\n{_definitions(current.SCHEMA, ATHENA)}\n)\n"
            f"STORED AS PARQUET\nLOCATION '{current_folder}'"
        ),
        _code(
            "SELECT image_key, caption, source\nFROM current_captions\nWHERE caption IS NOT NULL\nORDER BY image_key"
        ),
        "### History",
        "Athena computes the partitions from the query, so that a new night needs no statement. A query must therefore "
        "name the models that it is about: `WHERE model = '…'` or `WHERE model IN ('…', '…')`. Let the range begin at "
        "your first night.",
        _code(
            f"CREATE EXTERNAL TABLE captions (\n{_definitions(captions.SCHEMA, ATHENA)}\n)\n"
            "PARTITIONED BY (model string, `date` string)\n"
            f"STORED AS PARQUET\nLOCATION '{history}'\n"
            "TBLPROPERTIES (\n"
            "    'projection.enabled' = 'true',\n"
            "    'projection.model.type' = 'injected',\n"
            "    'projection.date.type' = 'date',\n"
            "    'projection.date.format' = 'yyyy-MM-dd',\n"
            "    'projection.date.range' = '2026-01-01,NOW',\n"
            f"    'storage.location.template' = '{partitions}'\n)"
        ),
        _code(
            'SELECT "date", status, count(*) AS images\nFROM captions\n'
            f'WHERE model = \'{MODEL}\'\nGROUP BY "date", status\nORDER BY "date", status'
        ),
        "## Trino",
        "The catalogue `hive` stands for one with the Hive connector, and `captioning` for a schema in it.",
        "### Current captions",
        _code(
            f"CREATE TABLE hive.captioning.current_captions (\n{_definitions(current.SCHEMA, TRINO)}\n)\n"
            f"WITH (format = 'PARQUET', external_location = '{current_folder}')"
        ),
        _code(
            "SELECT image_key, caption, source\nFROM hive.captioning.current_captions\n"
            "WHERE caption IS NOT NULL\nORDER BY image_key"
        ),
        "### History",
        _code(
            f"CREATE TABLE hive.captioning.captions (\n{_definitions(captions.SCHEMA, TRINO)},\n"
            '    model varchar,\n    "date" varchar\n)\n'
            f"WITH (format = 'PARQUET', external_location = '{history}', partitioned_by = ARRAY['model', 'date'])"
        ),
        "After each night, let it find the new partitions:",
        _code("CALL hive.system.sync_partition_metadata('captioning', 'captions', 'ADD')"),
        _code(
            'SELECT model, "date", status, count(*) AS images\nFROM hive.captioning.captions\n'
            'GROUP BY model, "date", status\nORDER BY model, "date", status'
        ),
    ]
    return _document("SQL engines", blocks)


def describe(column: pa.Field) -> str:
    """The description of a column of a schema."""
    return str(column.metadata[b"description"].decode())


DOCUMENTS: dict[str, Callable[[], str]] = {
    "cli.md": render_cli,
    "configuration.md": render_configuration,
    "sql.md": render_sql,
    "store.md": render_store,
}
"""The functions that render the documents, by file."""


def _fields(model: type[BaseModel], names: Iterable[str]) -> Iterator[list[str]]:
    """A row for each of these fields of a model: name or environment variable, default, and description."""
    properties = model.model_json_schema()["properties"]
    for name in names:
        field = model.model_fields[name]
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        # The document must not depend on the place of the checkout.
        default = default.replace(PROJECT.as_uri(), "file://…").replace(str(PROJECT), "…")
        bounds = describe_bounds(properties[name])
        yield [
            f"`CAPTION_{name.upper()}`" if issubclass(model, BaseSettings) else f"`{name}`",
            f"`{default}`" if default else "",
            f"{field.description} ({bounds})" if bounds else str(field.description),
        ]


def _commands(group: TyperGroup, context: typer.Context) -> Iterator[typer.Context]:
    """The contexts of all commands of a group and of the groups in it."""
    for name, command in group.commands.items():
        child = typer.Context(command, info_name=name, parent=context)
        yield child
        if isinstance(command, TyperGroup):
            yield from _commands(command, child)


def _keys() -> dict[str, str]:
    """What each key of the store holds, from the docstrings of the layout."""
    found = {}
    for function in filter(inspect.isfunction, vars(layout).values()):
        signature = inspect.signature(function)
        if signature.return_annotation is str:
            required = [name for name, each in signature.parameters.items() if each.default is each.empty]
            arguments = [PLACEHOLDERS.get(name, name.upper()) for name in required]
            found[function(*arguments)] = _paragraph(inspect.getdoc(function), 0)
    evaluation = layout.EvaluationKeys(f"{layout.evaluations_on('VERSION', PLACEHOLDERS['dataset_id'])}DECODING")
    for name, member in vars(layout.EvaluationKeys).items():
        if isinstance(member, property):
            found[getattr(evaluation, name)] = _paragraph(inspect.getdoc(member), 0)
    encoder, model = layout.encoder_folder("ENCODER_ID"), layout.model_folder("VERSION")
    for folder, name, text in (
        (encoder, encoders.MODEL, "The Keras model of the encoder, for GPUs."),
        (encoder, encoders.NETWORK[0], "The structure of the OpenVINO network of the encoder, for CPUs."),
        (encoder, encoders.NETWORK[1], "The weights of this network."),
        (encoder, encoders.GRID, "The rows and columns of the map whose places are its regions, if it has them."),
        (encoder, encoders.LAST_STAGE, "The last stage of the encoder, if this reads the regions."),
        (model, bundle.model_name(0), "A Keras model of the ensemble, for GPUs; they are counted from 0."),
        (model, bundle.network_names(0)[0], "The structure of this model's OpenVINO network of images, for CPUs."),
        (model, bundle.network_names(0)[1], "The weights of this network."),
        (model, bundle.network_names(0)[2], "The structure of its network of a decoding step, for CPUs."),
        (model, bundle.network_names(0)[3], "The weights of this network."),
        (model, bundle.VOCABULARY, "The vocabulary of the model."),
        (model, bundle.NEIGHBOURS, "The vectors and captions of the training photographs, which vote on captions."),
        (model, bundle.CONFIDENCE, "How its confidence is computed, and what it takes for a novel photograph."),
    ):
        found[artifacts.artifact_key(folder, name, {name: "CHECKSUM"})] = text
    found[layout.CHAMPION] = "The pointer to the model that captions the nights, and its history."
    for key, text in (
        (layout.encoder_files("ENCODER_ID"), "Its signature, 64 bytes of Ed25519, if `CAPTION_SIGNING_KEY` is set."),
        (layout.model_metadata("VERSION"), "The signature of the metadata, likewise."),
        (layout.CHAMPION, "The signature of the pointer, likewise; those of earlier states are kept."),
    ):
        found[layout.signature(key, "CHECKSUM")] = text
    found[layout.CURRENT_CAPTIONS] = "The captions that count: one row for each image in the inbox."
    found[layout.CORRECTION_LOG] = "All corrections in one table, as of the last fold."
    found[layout.REVIEW_STATE] = "Who reviews which caption at the moment, and which captions were skipped."
    found[layout.TOMBSTONES] = "Salted hashes of the photographs that were forgotten, and the salt."
    picture = layout.correction_picture("CONTENT_HASH", ".jpg")
    found[f"{layout.CORRECTIONS}{picture}"] = "The copy of a corrected picture, with the suffix of its format."
    # A text with which another key begins is a folder or a prefix. A text outside of all folders is a part of a key.
    return {
        key: text
        for key, text in found.items()
        if key.startswith(tuple(layout.FOLDERS)) and not any(other.startswith(key) for other in found if other != key)
    }


def _paragraph(docstring: str | None, number: int) -> str:
    """A paragraph of a docstring as one line of Markdown."""
    return " ".join(str(docstring).split("\n\n")[number].split()).replace("``", "`")


def _definitions(schema: pa.Schema, types: Mapping[pa.DataType, str]) -> str:
    """The columns of a table as lines of its definition in an SQL engine with these types."""
    return ",\n".join(f"    {field.name} {types[field.type]}" for field in schema)


def _code(statement: str) -> str:
    """A statement in SQL as a block of Markdown."""
    return f"```sql\n{statement};\n```"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _document(title: str, blocks: Iterable[str]) -> str:
    """A document of these blocks, with a comment that says how it is made; empty blocks are left out."""
    comment = "<!-- Written by scripts/write_docs.py. Change the code that it reads, and run `make docs`. -->"
    return "\n\n".join([comment, f"# {title}", *filter(None, blocks)]) + "\n"


if __name__ == "__main__":
    main()
