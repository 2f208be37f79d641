"""Safety: no file that is loaded runs code of its own, or reads other files."""

import ast
import io
import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captioner.metadata import Epoch
from pipeline.errors import PipelineError
from pipeline.features import encoder, openvino
from pipeline.storage import keras_files, open_bucket
from pipeline.training.checkpoints import Checkpoint
from tests.support.paths import PROJECT

FOLDERS = ("pipeline", "dags", "scripts", "benchmarks", "plugins")
"""Folders of the sources that run outside of tests."""

SOURCES = sorted(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py"))

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}

FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "importlib.import_module"),
    *("torch.load", "yaml.load", "pd.read_pickle", "pandas.read_pickle"),
}


def unsafe(source):
    """The places in a source that would run code that comes with data, as ``line: module or function``."""
    nodes = [(node, called_or_imported(node)) for node in ast.walk(ast.parse(source))]
    return [f"{node.lineno}: {', '.join(found)}" for node, found in nodes if found]


def called_or_imported(node):
    """The unsafe modules that a node imports, or the unsafe function that it calls."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        return [name for name in modules if name.partition(".")[0] in FORBIDDEN_MODULES]
    if not isinstance(node, ast.Call):
        return []
    called = ast.unparse(node.func)
    named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    allows_pickle = named.get("allow_pickle", str(called in ("np.load", "numpy.load"))) != "False"
    loads_unsafely = "keras" in called and called.endswith("load_model") and named.get("safe_mode") != "True"
    return [called] if called in FORBIDDEN_CALLS or allows_pickle or loads_unsafely else []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import os, marshal",
        "def f():\n    from dill import loads",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=wanted)",
        "np.save(file, array, allow_pickle=True)",
        "torch.load(file)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "keras.saving.load_model(path)",
        "keras.saving.load_model(path, safe_mode=False)",
        "importlib.import_module('pickle')",
        "__import__(name)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    """Each way to run code that comes with data is found, so that the next test can fail."""
    assert len(unsafe(source)) == 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_source_loads_code_with_data(path):
    """None of our sources pickles, evaluates text, or loads arrays or models in a way that could run their content."""
    assert unsafe(path.read_text()) == []


def test_every_folder_of_sources_is_searched():
    """Except for the tests and what git ignores, no Python file is outside of the folders that are searched."""
    ignored = set(re.findall(r"^/(\w+)/$", (PROJECT / ".gitignore").read_text(), re.MULTILINE))
    assert "build" in ignored  # setuptools copies the sources there when it builds a wheel
    found = {path.relative_to(PROJECT).parts[0] for path in PROJECT.glob("*/**/*.py")}
    assert {folder for folder in found if not folder.startswith(".")} - {"tests"} - ignored <= set(FOLDERS)
    assert len(SOURCES) > 40


class Evil:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def trace(tmp_path):
    """The path that hostile code makes where it runs."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists()


def hostile_models(trace, folder):
    """Models by name, as ``.keras`` files, that run code or read other files if Keras lets them."""
    import keras
    from keras import layers

    pictures = keras.Input((8, 8, 3))
    plain = keras.Model(pictures, layers.GlobalAveragePooling2D()(pictures))
    plain.save(folder / "plain.keras")
    place = str(trace)
    evil = layers.Lambda(lambda x: (__import__("os").makedirs(place, exist_ok=True), x)[1])
    keras.Model(pictures, layers.GlobalAveragePooling2D()(evil(pictures))).save(folder / "lambda.keras")
    trace.rmdir()  # building the model ran it
    named = {
        "function": {"module": "os", "class_name": "function", "config": "mkdir", "registered_name": "mkdir"},
        "get_file": {
            "module": "keras.utils",
            "class_name": "function",
            "config": "get_file",
            "registered_name": "get_file",
        },
        "saved_model": {
            "module": "keras.layers",
            "class_name": "TFSMLayer",
            "config": {"filepath": str(folder), "name": "evil"},
            "registered_name": None,
        },
        "vocabulary": {
            "module": "keras.layers",
            "class_name": "StringLookup",
            "config": {"vocabulary": "/etc/passwd", "name": "evil"},
            "registered_name": None,
        },
    }
    models = {"lambda": (folder / "lambda.keras").read_bytes()}
    for name, layer in named.items():
        models[name] = with_layer((folder / "plain.keras").read_bytes(), layer)
    return models


def with_layer(data, layer):
    """A ``.keras`` file whose last layer is another."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    last = config["config"]["layers"][-1]
    config["config"]["layers"][-1] = {**layer, "name": last["name"], "inbound_nodes": last["inbound_nodes"]}
    files["config.json"] = json.dumps(config).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def unsafe_keras():
    """Keras with safe mode switched off for the whole process, as other code may do."""
    import keras
    from keras.src.backend.common import global_state

    before = global_state.get_global_attribute("safe_mode_saving")
    keras.config.enable_unsafe_deserialization()
    yield
    global_state.set_global_attribute("safe_mode_saving", before)


def test_a_hostile_model_is_hostile(unsafe_keras, tmp_path):
    """Loaded by Keras with its safe mode off, it runs."""
    import keras

    models = hostile_models(tmp_path / "it-ran", tmp_path)
    (tmp_path / "evil.keras").write_bytes(models["lambda"])
    assert not (tmp_path / "it-ran").exists()
    keras.saving.load_model(tmp_path / "evil.keras", safe_mode=True)
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("safe_mode", ["on", "off"])
@pytest.mark.parametrize("name", ["lambda", "function", "get_file", "saved_model", "vocabulary"])
def test_a_hostile_model_is_refused(name, safe_mode, trace, tmp_path, request):
    """Nothing of it runs, and the error names it and its kind; even where the process has switched safe mode off."""
    data = hostile_models(trace, tmp_path)[name]
    if safe_mode == "off":
        request.getfixturevalue("unsafe_keras")
    with pytest.raises(PipelineError, match=r"(?s)^evil\.keras can't be loaded as a Keras model in safe mode: "):
        keras_files.from_bytes(data, origin="evil.keras")


@pytest.fixture(scope="module")
def checkpoint():
    """The bytes of a checkpoint."""
    store = Memory()
    epoch = Epoch(epoch=1, phase="cross_entropy", loss=2.0, dev_loss=2.0, dev_cider=0.5, seconds=1)
    arrays = [np.arange(6.0).reshape(2, 3), np.array([1, 2], np.uint32)]
    Checkpoint([epoch], arrays, arrays, arrays[:1]).save("key", store)
    return store.data


class Memory:
    """A bucket of one object."""

    def __init__(self, data=b""):
        self.data = data

    def put(self, key, data):
        self.data = data

    def get(self, key):
        return self.data

    def url(self, key):
        return f"memory://{key}"


def archive(**arrays):
    """The bytes of a NumPy archive."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_a_hostile_checkpoint_is_refused(trace, tmp_path):
    """An array of objects, whose pickle would run code, is an error that names the file and says what to do."""
    store = open_bucket(str(tmp_path / "store"))
    hostile = np.array([Evil(trace)], dtype=object)
    for data in (archive(**{"epochs": np.array("[]"), "best/0": hostile}), archive(epochs=hostile)):
        assert pickle.dumps(Evil(trace))[:-1][-20:] in data  # it is hostile
        store.put("training/evil.npz", data)
        with pytest.raises(PipelineError, match=r"training/evil\.npz can't be read as a checkpoint: .*Delete it"):
            Checkpoint.load("training/evil.npz", store)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        b"PK\x03\x04 not quite",
        pickle.dumps([1]),
        archive(),
        archive(epochs=np.array("no JSON")),
        archive(epochs=np.array('[{"epoch": 1}]')),
        archive(**{"epochs": np.array("[]"), "other/0": np.zeros(1)}),
        # The first flag of a file in the table of contents says that it is encrypted.
        archive(epochs=np.array("[]")).replace(b"PK\1\2-\3-\0\0\0", b"PK\1\2-\3-\0\1\0"),
    ],
)
def test_other_data_is_no_checkpoint(data):
    """Bytes that are no archive, and archives of something else, are errors that say what to do."""
    with pytest.raises(PipelineError, match=r"(?s)memory://key can't be read as a checkpoint: .*Delete it"):
        Checkpoint.load("key", Memory(data))


def test_a_single_array_is_no_checkpoint():
    """Nor is a file of one array."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    with pytest.raises(PipelineError, match="single array"):
        Checkpoint.load("key", Memory(buffer.getvalue()))


@given(data=st.data())
def test_a_damaged_checkpoint_is_an_error_or_still_the_same(checkpoint, data):
    """Cut short, or with a byte changed anywhere, it gives what was saved or a ``PipelineError``, and nothing else."""
    place = data.draw(st.integers(0, len(checkpoint) - 1))
    cut = data.draw(st.booleans())
    changed = bytes([checkpoint[place] ^ data.draw(st.integers(1, 255))])
    damaged = checkpoint[:place] + (b"" if cut else changed + checkpoint[place + 1 :])
    try:
        loaded = Checkpoint.load("key", Memory(damaged))
    except PipelineError:
        return
    whole = Checkpoint.load("key", Memory(checkpoint))
    for name in ("best", "model", "optimizer"):
        for found, expected in zip(getattr(loaded, name), getattr(whole, name), strict=False):
            np.testing.assert_array_equal(found, expected)


def protobuf(*fields):
    """A message of (number, bytes or int) fields."""
    return b"".join(
        varint(number << 3 | 2) + varint(len(value)) + value
        if isinstance(value, bytes)
        else varint(number << 3) + varint(value)
        for number, value in fields
    )


def varint(number):
    """A number in groups of seven bits."""
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def onnx_that_reads(path):
    """An ONNX model x + c, whose c is the first 16 bytes of a file."""
    place, size = ((13, protobuf((1, key), (2, value))) for key, value in ((b"location", path), (b"length", b"16")))
    constant = protobuf((1, 1), (1, 4), (2, 1), (8, b"c"), place, size, (14, 1))
    shape = protobuf((1, protobuf((1, 1))), (1, protobuf((1, 4))))
    x, y = (protobuf((1, name), (2, protobuf((1, protobuf((1, 1), (2, shape)))))) for name in (b"x", b"y"))
    node = protobuf((1, b"x"), (1, b"c"), (2, b"y"), (4, b"Add"))
    graph = protobuf((1, node), (2, b"g"), (5, constant), (11, x), (12, y))
    return protobuf((1, 8), (7, graph), (8, protobuf((1, b""), (2, 13))))


def test_a_network_reads_no_other_file(tmp_path, monkeypatch):
    """Only OpenVINO's own XML is read: other formats, which may name files to be read, are refused."""
    import openvino as ov

    secret = tmp_path / "secret"
    secret.write_bytes(b"sixteen bytes 16")
    monkeypatch.chdir(tmp_path)
    hostile = onnx_that_reads(b"secret")
    # OpenVINO by itself reads the file.
    compiled = ov.Core().compile_model(ov.Core().read_model(hostile, b""), "CPU")
    assert compiled(np.zeros((1, 4), np.float32))[0].tobytes() == secret.read_bytes()
    store = open_bucket(str(tmp_path / "store"))
    for structure in (hostile, b" " + hostile, str(secret).encode()):
        encoder.save_network("evil", openvino.Network(structure, b""), store)
        with pytest.raises(PipelineError, match=r"is not OpenVINO XML\. Register"):
            encoder.load("evil", store)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'version="opset1"', b'version="extension"'),
        (b'type="Add"', b'type="Evil"'),
        (b'offset="0"', b'offset="4000000000"'),
        (b'offset="0"', b'offset="-16"'),
        (b'size="16"', b'size="18446744073709551600"'),
    ],
)
def test_a_network_of_unknown_parts_is_refused(old, new, tmp_path):
    """Operations of an extension, and weights beyond those that were given, are errors, and nothing is looked up."""
    with pytest.raises(PipelineError, match=r"(?s)A stored network can't be read: .*Register the encoder again"):
        openvino.EncoderNetwork(edited_network(tmp_path, old, new))


def test_a_network_includes_no_file(tmp_path):
    """A file that the XML declares as an entity is not read: its name stays what it is."""
    (tmp_path / "secret").write_text("secret text")
    entity = f'<!DOCTYPE net [<!ENTITY s SYSTEM "{(tmp_path / "secret").as_uri()}">]><net'.encode()
    network = edited_network(tmp_path, b"<net", entity)
    network = network._replace(structure=network.structure.replace(b'name="sum"', b'name="&s;"'))
    assert openvino.read(network, "").friendly_name == "&s;"


def edited_network(folder, old, new):
    """The network x + 1 with something in its XML replaced."""
    import openvino as ov
    from openvino import opset1

    x = opset1.parameter([1, 4], np.float32)
    model = ov.Model([opset1.add(x, opset1.constant(np.ones((1, 4), np.float32)))], [x], "sum")
    ov.save_model(model, folder / "n.xml", compress_to_fp16=False)
    structure = (folder / "n.xml").read_bytes()
    assert old in structure
    return openvino.Network(structure.replace(old, new), (folder / "n.bin").read_bytes())
