"""Image towers of Keras Hub, saved as docs/encoders.md says; the towers are small and untrained."""

import re

import numpy as np
import pytest

from pipeline.features import encoder, regions
from pipeline.storage import open_bucket
from tests.support.paths import PROJECT

CLIP, DINO, SIGLIP = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "encoders.md").read_text(), re.DOTALL)
"""The code of the document. That for DINOv2 has the lines that differ from that for CLIP."""

SIZES = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "intermediate_dim": 16}


def other_lines(code, others):
    """The code with some assignments replaced."""
    lines = {line.partition(" = ")[0]: line for line in others.splitlines()}
    return "\n".join(lines.get(line.partition(" = ")[0], line) for line in code.splitlines())


@pytest.mark.parametrize(
    ("code", "length", "places"),
    [(CLIP, 16, 196), (other_lines(CLIP, DINO), 16, 256), (SIGLIP, 8, 0)],
    ids=["clip", "dinov2", "siglip"],
)
def test_a_tower_is_an_encoder(tmp_path, monkeypatch, code, length, places):
    """It is registered, Keras and OpenVINO agree on its vectors, and its patches are regions if it pools them."""
    import keras_hub

    backbones = keras_hub.models
    text = backbones.CLIPTextEncoder(vocabulary_size=9, embedding_dim=8, **SIZES)
    vision = backbones.CLIPVisionEncoder(patch_size=16, **SIZES)
    siglip_text = backbones.SigLIPTextEncoder(vocabulary_size=9, embedding_dim=8, **SIZES)
    siglip_vision = backbones.SigLIPVisionEncoder(patch_size=16, **SIZES)
    converter = keras_hub.layers.ImageConverter(scale=[0.01, 0.02, 0.03], offset=[-1.0, -1.1, -1.2])
    for each, untrained in (
        (backbones.CLIPBackbone, lambda preset: backbones.CLIPBackbone(vision, text, projection_dim=8)),
        (backbones.SigLIPBackbone, lambda preset: backbones.SigLIPBackbone(siglip_vision, siglip_text)),
        (
            backbones.DINOV2Backbone,
            lambda preset, image_shape: backbones.DINOV2Backbone(patch_size=14, image_shape=image_shape, **SIZES),
        ),
        (keras_hub.layers.ImageConverter, lambda preset: converter),
    ):
        monkeypatch.setattr(each, "from_preset", untrained)
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # noqa: S102 - the code of the document

    store = open_bucket(str(tmp_path / "store"))
    encoder_id = encoder.register("tower.keras", store)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    loaded = encoder.load(encoder_id, store)
    assert (loaded.size, loaded.shape) == ((224, 224), (length,))
    found = encoder.load_model(encoder_id, store).predict_on_batch(pictures)
    np.testing.assert_allclose(loaded.encode(pictures).vectors, found, rtol=1e-3, atol=1e-4)
    if places:
        monkeypatch.setattr(regions, "training_pictures", lambda *_, **__: pictures)
        with_regions = encoder.load(regions.add_regions(encoder_id, "any/0123456789abcdef", store), store)
        assert with_regions.regions == (places, 8)
