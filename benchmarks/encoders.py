"""What the networks of keras.applications cost: `python -m benchmarks.encoders` writes the table in docs/encoders.md.

The numbers depend on no machine. It builds all networks, which takes some minutes and 8 GB of memory.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.features import applications, regions
from pipeline.features.encoder import dimensions

if TYPE_CHECKING:
    import keras

DOCUMENT = Path(__file__).parents[1] / "docs" / "encoders.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
HEAD = (
    "| name | pixels | million parameters | GFLOP a picture | length of a vector | KB a vector | KB of regions "
    "| million parameters of the last stage |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


def main() -> None:
    """Write a row for each network, the one with the fewest operations first."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    rows = [row for _, row in sorted(map(measure, applications.networks()))]
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    table = "".join(["\n\n", HEAD, *rows, "\n"])
    DOCUMENT.write_text(before + BEGIN + table + END + rest.partition(END)[2])


def measure(name: str) -> tuple[float, str]:
    """The billions of operations of a network for a picture, and its row in the table."""
    import keras

    model = applications.build(name, None)
    size, (length,), _ = dimensions(model, name)
    operations = gigaflop(model, size)
    found = regions.split(model, size)
    if found is None:
        raise ValueError(f"{name} pools no map.")
    _, rows, columns, channels = found.model.outputs[-1].shape
    places = rows * columns
    part = found.last_stage
    numbers = places * (channels if part else min(regions.NUMBERS // places, channels))
    cells = [
        f"`{name}`",
        "×".join(map(str, size)),
        f"{model.count_params() / 1e6:.1f}",
        f"{operations:.1f}",
        f"{length:,}",
        f"{length * 2 / 1000:.1f}",
        f"{numbers * 2 / 1000:.0f}" if places <= regions.LARGEST_MAP else "none",
        f"{part.count_params() / 1e6:.1f}" if part else "none",
    ]
    keras.utils.clear_session()
    return operations, f"| {' | '.join(cells)} |\n"


def gigaflop(model: "keras.Model", size: tuple[int, int]) -> float:
    """The operations for a picture as TensorFlow's profiler counts them: a multiplication and an addition are two."""
    import tensorflow as tf

    graph = tf.function(model).get_concrete_function(tf.TensorSpec((1, *size, 3))).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    return float(tf.compat.v1.profiler.profile(graph, options=options).total_float_ops) / 1e9


if __name__ == "__main__":
    main()
