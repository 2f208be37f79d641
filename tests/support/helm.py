"""Helm, in a process of its own: its Go runtime takes over signals, after which a broken pipe ends the process.

Run as ``python -m tests.support.helm CHART NAME`` with the values as JSON on standard input, it writes the texts of the
manifests to standard output, as JSON.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml

from tests.support.paths import PROJECT


class HelmError(Exception):
    """The chart's schema refuses the values, or a template fails; Helm's message says why."""


def render(chart: Path, values: dict[str, object], name: str) -> list[dict]:
    """The manifests that a chart makes of the values, for a release and a namespace of this name.

    Raises:
        HelmError: the schema or a template refuses the values.
    """
    run = subprocess.run(
        [sys.executable, "-m", __name__, chart, name],
        input=json.dumps(values),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise HelmError(run.stderr)
    return [manifest for text in json.loads(run.stdout) for manifest in yaml.safe_load_all(text) if manifest]


def _main() -> None:
    import helm_python

    chart, name = sys.argv[1:]
    values = json.load(sys.stdin)
    try:
        with helm_python.Chart.load(chart) as loaded:
            loaded.validate_schema(values)
            manifests = loaded.render(values, name=name, namespace=name)
    except helm_python.HelmError as error:
        sys.exit(str(error))
    json.dump([text for path, text in manifests.items() if path.endswith((".yaml", ".yml"))], sys.stdout)


if __name__ == "__main__":
    _main()
