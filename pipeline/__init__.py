"""Image captioning, from photographs in a bucket to captions in a bucket.

The package is a plain library with a command line, ``captioning``. It never imports Airflow, and importing it loads
nothing heavy: each module imports what it needs.
"""

import sys

__version__ = "0.1.0"

# OpenVINO and NNCF send usage telemetry unless this package is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
