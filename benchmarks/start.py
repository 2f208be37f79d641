"""What comes before the first caption: the start of a process, and its memory."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import alternate, wall, wall_spread
from benchmarks.night import KINDS, extract_alone, fill, register_encoder, save_champion
from pipeline.settings import PROJECT
from pipeline.storage import open_bucket
from pipeline.work import listing

PICTURES = 1000
"""Pictures of the caption task whose memory is measured."""

WITH_PEAK = """
import sys
from benchmarks.measure import peak
from pipeline.cli import main
try:
    main()
except SystemExit as stop:
    if stop.code:
        raise
print(f"{peak():.0f}", file=sys.stderr)
"""
"""A command of the pipeline that prints its peak of memory in MB, last of all."""


def start(rounds: int) -> dict[str, float]:
    """One picture captioned from the shell against the import of TensorFlow and Keras, and the memory of both tasks."""
    with tempfile.TemporaryDirectory() as folder:
        store, inbox = (open_bucket(f"{folder}/{name}") for name in ("store", "inbox"))
        environment = {
            **os.environ,
            "CAPTION_STORE": store.uri,
            "CAPTION_INBOX": inbox.uri,
            "CAPTION_SHARD_SIZE": str(PICTURES),
        }
        encoder_id = register_encoder(environment)
        fill(inbox, replace(KINDS["night"], pictures=PICTURES))
        _, features = extract_alone(listing.tabulate(inbox.list()), inbox, encoder_id, store)
        save_champion(encoder_id, features, store)

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, *command], env=environment, cwd=PROJECT, check=True, capture_output=True, text=True
            )

        def peak_mb(*command: str) -> float:
            return float(run("-c", WITH_PEAK, *command).stderr.split()[-1])

        picture = str(next(Path(folder, "inbox").rglob("*.jpg")))
        caption, imports = alternate(
            lambda: run("-m", "pipeline", "caption", picture),
            lambda: run("-c", "import tensorflow, keras"),
            rounds=rounds,
        )
        run("-m", "pipeline", "night", "list", "night")
        [shard] = json.loads(run("-m", "pipeline", "night", "plan-captions", "night").stdout)
        return {
            "one_picture_seconds": wall(caption),
            "one_picture_over_imports": wall(caption) / wall(imports),
            "one_picture_peak_mb": peak_mb("caption", picture),
            "caption_task_peak_mb": peak_mb("night", "caption", shard),
            "start_spread": max(map(wall_spread, (caption, imports))),
        }
