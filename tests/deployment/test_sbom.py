"""The software bills of materials that `make sbom` writes."""

import json
import re
import subprocess

import pytest

from tests.support.paths import PROJECT

LOCKS = {"light": "", "train": "-training", "gpu": "-gpu", "mlflow": "-mlflow"}
"""The part of the name of each image's lock."""


@pytest.mark.by_hand
def test_a_bill_has_the_packages_of_its_lock():
    """Each by name and version, with the hashes of its files; and the project itself."""
    subprocess.run(["make", "--always-make", "sbom"], cwd=PROJECT, check=True)
    for image, name in LOCKS.items():
        lock = (PROJECT / f"requirements{name}.txt").read_text()
        bill = json.loads((PROJECT / "build" / f"sbom-{image}.cdx.json").read_text())
        assert bill["bomFormat"] == "CycloneDX"
        assert bill["metadata"]["component"]["name"] == "image-captioning-pipeline"
        pinned = re.findall(r"^([\w.-]+)(?:\[.*?\])?==([^ ]+)", lock, re.MULTILINE)
        assert sorted((each["name"], each["version"]) for each in bill["components"]) == sorted(pinned)
        hashes = [found["content"] for each in bill["components"] for found in each["externalReferences"][0]["hashes"]]
        assert sorted(hashes) == sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", lock))
