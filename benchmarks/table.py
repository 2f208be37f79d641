"""The table in README.md beside this file, written from the last results."""

import operator
import os
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

README = Path(__file__).with_name("README.md")
PACKAGES = (
    "tensorflow",
    "tensorflow-cpu",
    "jax",
    "torch",
    "keras",
    "openvino",
    "nncf",
    "apache-airflow",
    "pyarrow",
    "numpy",
)
"""The packages whose versions are reported, where they are installed."""

PRODUCT = "{extraction_roofline}'s product of matrices"
ROWS = (
    ("extraction, fp32", PRODUCT, "extraction_fp32_of_roofline", "at least 0.9"),
    ("… `predict` a picture", PRODUCT, "extraction_one_by_one_of_roofline", ""),
    ("… `predict` in batches of 32", PRODUCT, "extraction_batches_of_roofline", ""),
    (
        "… ONNX Runtime in batches of 32",
        "{onnx_roofline}'s product of matrices",
        "extraction_onnx_of_roofline",
        "",
    ),
    ("… from JPEG in a bucket to Parquet", PRODUCT, "extraction_end_to_end_of_roofline", "at least 0.85"),
    ("extraction, int8", "fp32", "extraction_int8_over_fp32", "at least 3"),
    ("decoding pool, 500 × 375, CPU seconds", "one thread's", "decoding_pool_500x375_over_one", "at least 0.85"),
    ("… by the clock", "one thread's, times the cores", "decoding_pool_500x375_by_the_clock_of_cores", "at least 0.85"),
    ("… waits of a decoder, a picture", "", "decoding_pool_500x375_waits_a_picture", "at most 0.1"),
    ("… 12 megapixels, CPU seconds", "one thread's", "decoding_pool_12mp_over_one", "at least 0.85"),
    ("… by the clock", "one thread's, times the cores", "decoding_pool_12mp_by_the_clock_of_cores", "at least 0.85"),
    ("… waits of a decoder, a picture", "", "decoding_pool_12mp_waits_a_picture", "at most 0.1"),
    ("training", "prefixes, one-hot, 3 pictures a batch", "training_over_prefix_expansion", "at least 25"),
    ("greedy", "`predict` a word", "greedy_over_per_word_predict", "at least 1,000"),
    ("beam 5, time", "greedy's", "beam5_time_over_greedy", "at most 4"),
    ("greedy with attention to regions, time", "greedy's without", "attending_greedy_time_over_greedy", ""),
    ("… beam 5, time", "greedy's with attention", "attending_beam5_time_over_greedy", ""),
    ("one picture from the shell, time", "importing TensorFlow and Keras", "one_picture_over_imports", "at most 0.5"),
    ("… peak of memory, MB", "", "one_picture_peak_mb", ""),
    ("captioning 1,000 pictures with features, peak of memory, MB", "", "caption_task_peak_mb", "at most 400"),
    ("a night of 5,000 through Airflow", "extraction alone", "night_over_extraction", "at least 0.9"),
    ("a first night of 20,000 small pictures", "extraction alone", "small_pictures_over_extraction", ""),
    ("a first night of 200 pictures of 12 megapixels", "extraction alone", "large_pictures_over_extraction", ""),
    ("a night with nothing new, seconds", "", "empty_night_seconds", "at most 15"),
    ("planning 1,000,000 keys, seconds", "", "plan_1m_seconds", "at most 60"),
    ("… peak of memory, MB", "", "plan_1m_peak_mb", "at most 400"),
    ("gallery of 1,000,000 captions, first page, seconds", "", "gallery_first_page_1m_seconds", "at most 1"),
    ("… first page", "all into pandas", "gallery_first_page_1m_over_pandas", ""),
    ("… last page, seconds", "", "gallery_last_page_1m_seconds", "at most 1"),
    ("… a search that finds nothing, seconds", "", "gallery_search_1m_seconds", "at most 2"),
    ("… a search that finds nothing", "all into pandas", "gallery_search_1m_over_pandas", ""),
    ("… a search among captions by models, seconds", "", "gallery_history_search_1m_seconds", "at most 2.5"),
    ("… a picture's own page, seconds", "", "gallery_picture_1m_seconds", ""),
    ("… memory that its pages add, MB", "", "gallery_1m_added_mb", ""),
)
"""Measurement, baseline (with names of results), key of the result, and aim."""


def machine() -> str:
    """The machine and the versions of the installed packages, in a line."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    packages = ", ".join(f"{name} {found[0].version}" for name in PACKAGES if (found := [*distributions(name=name)]))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores of {cpu[1] if cpu else platform.processor()}, "
        f"Python {platform.python_version()}, {packages}"
    )


def write(found: Mapping[str, float | str]) -> None:
    """Put the results between the two comments in README.md."""
    lines = [
        "",
        f"Measured {found['machine']}.",
        "",
        "| what | against | measured | aim |",
        "| --- | --- | --- | --- |",
    ]
    for what, baseline, name, aim in ROWS:
        if name in found:
            value = float(found[name])
            lines.append(f"| {what} | {baseline.format_map(found)} | **{value:,.4g}** | {aim}{missed(value, aim)} |")
    spreads = ", ".join(
        f"{name.removesuffix('_spread').replace('_', ' ')} {float(value):.0%}"
        for name, value in found.items()
        if name.endswith("_spread")
    )
    lines += ["", f"Spread of a figure's rounds, range over median: {spreads}.", ""]
    begin, end = "<!-- measured -->", "<!-- /measured -->"
    before, _, rest = README.read_text().partition(begin)
    README.write_text(before + begin + "\n".join(lines) + end + rest.partition(end)[2])


def missed(value: float, aim: str) -> str:
    """What to add to an aim, ``at least 0.9`` or ``at most 4``, that the value misses; empty for other values."""
    kind, _, bound = aim.rpartition(" ")
    misses = {"at least": operator.lt, "at most": operator.gt}.get(kind)
    return ", missed" if misses and misses(value, float(bound.replace(",", ""))) else ""
