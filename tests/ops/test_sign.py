"""Signed stores: a night runs, and whatever is exchanged in one is refused wherever it would be used."""

from datetime import UTC, datetime

import pytest

from pipeline.captioner import registry
from pipeline.captioner.metadata import list_models, load_metadata
from pipeline.config import DecodingConfig
from pipeline.errors import PipelineError
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.features import encoder
from pipeline.nightly import night as nights
from pipeline.ops import backup, import_model, prune, sign
from pipeline.serving import on_demand, server
from pipeline.storage import artifacts, json, layout, signatures
from pipeline.storage.artifacts import Checksums
from pipeline.storage.signatures import SignatureError
from tests.support import toy
from tests.support.loading import load_once
from tests.support.models import BEAM, write_model
from tests.support.nights import night
from tests.support.signing import Keys

NO_BEAM = DecodingConfig(beam_width=1)


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """A pair of keys, with which documents are signed and verified."""
    keys = Keys.make(tmp_path / "keys", monkeypatch)
    keys.use(sign=True, verify=True)
    return keys


@pytest.fixture
def unsigned(new_bucket, trained):
    """A store with the model of the toy world as champion, as it was made before there were keys."""
    store = new_bucket()
    toy.copy(trained.store, store, "")
    registry.promote(trained.model.version, store)
    return store


@pytest.fixture
def store(unsigned, keys):
    """The same, signed."""
    sign.sign([], unsigned)
    return unsigned


def encoder_in(store):
    """The id of the only encoder."""
    [encoder_id] = filter(None, (layout.encoder_of_files(item.key) for item in store.list(layout.ENCODERS)))
    return encoder_id


def champion_of(store):
    """The metadata of the champion."""
    return load_metadata(registry.read_champion(store).version, store)


def load(store):
    """Load the champion and its encoder, as every command that captions does."""
    return on_demand.load(registry.read_champion(store).version, store)


@pytest.mark.all_buckets
def test_a_signed_night(store, inbox, keys, monkeypatch):
    """It runs from the listing to the record with the public key alone, and so does a repeated one."""
    keys.use(verify=True, machine="worker")
    load_once(monkeypatch)
    assert night("n1", inbox, store, max_failed_fraction=0).captioned == 4
    assert night("n2", inbox, store, max_failed_fraction=0).already_done == 4


def test_what_is_made_is_signed(new_bucket, keys, toy_encoder):
    """An encoder, a model and the champion's pointer, from the retraining to the evaluation."""
    store = new_bucket()
    inputs = toy.prepare(new_bucket(), store, toy_encoder)
    version = toy.train(inputs, store, toy.CONFIG.model_copy(update={"epochs": 1})).version
    assert registry.promote(version, store).counter > 0
    assert len([item for item in store.list() if item.key.endswith(".sig")]) == 3
    assert load(store).version == version
    evaluate_model(version, store=store, decoding=BEAM, max_failed_fraction=0)


def change_encoder_file(store):
    """Other weights, in a file under the old name."""
    [place] = [item.key for item in store.list(layout.ENCODERS) if item.key.endswith(".bin")]
    store.put(place, b"other weights")


def exchange_encoder(store):
    """Other weights, with their checksum in the encoder's document."""
    encoder_id = champion_of(store).encoder_id
    key, folder = layout.encoder_files(encoder_id), layout.encoder_folder(encoder_id)
    json.write(json.read(Checksums, key, store) | artifacts.put(folder, {"network.bin": b"other"}, store), key, store)


def change_model_file(store):
    """Other weights, in a file under the old name."""
    [place] = [item.key for item in store.list(layout.MODELS) if "/step-" in item.key and item.key.endswith(".bin")]
    store.put(place, b"other weights")


def exchange_model(store):
    """Other weights, with their checksum in the model's metadata."""
    metadata = champion_of(store)
    files = artifacts.put(layout.model_folder(metadata.version), {"step-0.bin": b"other"}, store)
    metadata = metadata.model_copy(update={"files": metadata.files | files})
    json.write(metadata, layout.model_metadata(metadata.version), store)


def change_metadata(store):
    """Longer captions, with the same files."""
    metadata = champion_of(store)
    changed = metadata.model_copy(update={"max_length": metadata.max_length + 1})
    json.write(changed, layout.model_metadata(metadata.version), store)


def exchange_signature(store):
    """The model's signature, for one of the same length."""
    [place] = [
        item.key for item in store.list(layout.model_folder(champion_of(store).version)) if item.key.endswith(".sig")
    ]
    store.put(place, bytes(64))


def put_old_model_in_its_place(store):
    """All that belongs to an older model, its signature too, under the version of the champion."""
    version = registry.read_champion(store).version
    old = write_model("old", store).version
    signatures.sign(layout.model_metadata(old), store)
    for item in list(store.list(f"{layout.model_folder(old)}/")):
        store.put(item.key.replace(old, version, 1), store.get(item.key))


def name_another_champion(store):
    """Another signed model, in a pointer that nobody has signed."""
    write_model("other", store)
    signatures.sign(layout.model_metadata("other"), store)
    champion = registry.read_champion(store).model_copy(update={"version": "other"})
    json.write(champion, layout.CHAMPION, store)


def put_old_champion_back(store):
    """A pointer that was once the newest; its signature is still there, and fits."""
    old = store.get(layout.CHAMPION)
    write_model("other", store, encoder_id=encoder_in(store))
    signatures.sign(layout.model_metadata("other"), store)
    registry.promote("other", store)
    store.put(layout.CHAMPION, old)


def raise_counter(store):
    """An old pointer with the counter of a new one."""
    champion = registry.read_champion(store)
    json.write(champion.model_copy(update={"counter": champion.counter + 1}), layout.CHAMPION, store)


def remove_champion(store):
    """The pointer, so that whoever promotes next begins anew."""
    registry.read_champion(store)
    store.delete(layout.CHAMPION)


@pytest.mark.parametrize(
    ("exchange", "why"),
    [
        (change_encoder_file, r"network-\w+\.bin is not the file that was saved"),
        (exchange_encoder, r"encoders/.*/files\.json is not signed as it is"),
        (change_model_file, r"step-0-\w+\.bin is not the file that was saved"),
        (exchange_model, r"models/.*/metadata\.json is not signed as it is"),
        (change_metadata, r"models/.*/metadata\.json is not signed as it is"),
        (exchange_signature, r"models/.*/metadata\.json is not signed with a key of CAPTION_VERIFY_KEY"),
        (put_old_model_in_its_place, r"models/.*/metadata\.json is not signed with a key of CAPTION_VERIFY_KEY"),
        (name_another_champion, r"models/champion\.json is not signed as it is"),
        (put_old_champion_back, r"models/champion\.json is older than one seen here: its counter is \d+, not \d+"),
        (raise_counter, r"models/champion\.json is not signed as it is"),
        (remove_champion, r"models/champion\.json is missing; somebody may have"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_exchanged_is_not_loaded(store, exchange, why):
    """The error names the object and says why."""
    exchange(store)
    with pytest.raises(PipelineError, match=why):
        load(store)


USES = {
    "night": lambda store, version: nights.choose_images(store, store, nights.NightOptions(), None),
    "caption": lambda store, version: on_demand.caption(
        ["x.jpg"], version=version, decoding=NO_BEAM, alternatives=0, store=store
    ),
    "try it": lambda store, version: server._Models(store, decoding=NO_BEAM, alternatives=0).load(version),
    "evaluate": lambda store, version: evaluate_model(version, store=store, decoding=BEAM, max_failed_fraction=0),
    "encoder": lambda store, version: encoder.load(encoder_in(store), store),
    "fine-tuning": lambda store, version: encoder.load_last_stage(encoder_in(store), store),
    "promote": lambda store, version: registry.promote(version, store),
    "roll back": lambda store, version: registry.roll_back(store),
    "prune": lambda store, version: list_models(store),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_nothing_unsigned_is_used(unsigned, trained, keys, use):
    """Wherever an encoder, a model or the pointer is read, the same error says what to do."""
    with pytest.raises(SignatureError, match=r"is not signed as it is: .* run `captioning sign` on the machine that"):
        use(unsigned, trained.model.version)


def test_nothing_unsigned_is_imported(unsigned, new_bucket, trained, keys):
    """Neither model nor encoder; what is signed there keeps its signatures here, where there is no private key."""
    production, version = new_bucket(), trained.model.version
    options = {"source": unsigned, "target": production, "promote": False}
    with pytest.raises(SignatureError, match=r"metadata\.json is not signed as it is"):
        import_model.import_model(version, **options)
    signatures.sign(layout.model_metadata(version), unsigned)
    with pytest.raises(SignatureError, match=r"files\.json is not signed as it is"):
        import_model.import_model(version, **options)
    assert list_models(production) == []
    sign.sign([], unsigned)
    keys.use(verify=True, machine="production")
    with pytest.raises(PipelineError, match=r"^Can't promote the imported model: .*CAPTION_SIGNING_KEY names no"):
        import_model.import_model(version, source=unsigned, target=production)
    assert list(production.list()) == []
    assert import_model.import_model(version, **options).champion is None
    assert on_demand.load(version, production).version == version
    assert import_model.import_model(version, **options).copied == 0


def test_a_model_that_was_copied_before_it_was_signed(unsigned, new_bucket, trained, keys):
    """Repeated, the import brings the signatures."""
    production, version = new_bucket(), trained.model.version
    keys.use()
    import_model.import_model(version, source=unsigned, target=production, promote=False)
    keys.use(sign=True, verify=True)
    sign.sign([], unsigned)
    assert import_model.import_model(version, source=unsigned, target=production, promote=False).copied > 0
    assert on_demand.load(version, production).version == version


@pytest.mark.parametrize(
    ("change", "action"),
    [
        (lambda store: registry.promote("other", store), "promote other"),
        (registry.roll_back, "roll back the champion"),
    ],
    ids=["promote", "roll back"],
)
def test_who_promotes_has_the_private_key(store, keys, change, action):
    """Without it, a promotion is an error that says where to do it, and the champion stays."""
    write_model("other", store)
    signatures.sign(layout.model_metadata("other"), store)
    before = registry.read_champion(store)
    keys.use(verify=True)
    with pytest.raises(
        PipelineError, match=rf"^Can't {action}: CAPTION_VERIFY_KEY is set.*Do it on a machine that has"
    ):
        change(store)
    assert registry.read_champion(store) == before


def test_promotions_are_signed_one_after_the_other(store):
    """Each has a higher counter than the one before, also the way back."""
    counters = [registry.read_champion(store).counter]
    for version in ("a", "b"):
        write_model(version, store)
        signatures.sign(layout.model_metadata(version), store)
        counters.append(registry.promote(version, store).counter)
    counters.append(registry.roll_back(store).counter)
    assert counters == sorted(set(counters))
    assert registry.read_champion(store).version == "a"


def test_a_damaged_pointer_is_not_replaced_unseen(store, trained):
    """Without keys a promotion replaces a damaged one; with keys a person looks first, as it may be an attack."""
    store.put(layout.CHAMPION, b"{}")
    with pytest.raises(SignatureError, match=r"champion\.json is not signed as it is"):
        registry.promote(trained.model.version, store)
    assert store.get(layout.CHAMPION) == b"{}"


def test_a_restored_store_is_signed_again(store, new_bucket):
    """Its pointer is older than what was seen, until a person who has the key says that it is right."""
    safe = new_bucket()
    backup.back_up(store, safe)
    put_old_champion_back(store)
    with pytest.raises(SignatureError, match="is older than one seen here"):
        load(store)
    sign.sign([], store)
    load(store)
    # A machine that has seen none believes the first, wherever the copy is.
    load(safe)


def test_models_are_signed_by_version(unsigned, keys, trained):
    """With their encoders, and not the pointer; a version that there is not is an error."""
    signed = sign.sign([trained.model.version], unsigned)
    assert signed.encoders == [trained.inputs.encoder_id]
    assert str(signed) == "1 model and 1 encoder signed"
    assert on_demand.load(trained.model.version, unsigned).version == trained.model.version
    with pytest.raises(SignatureError, match=r"champion\.json is not signed"):
        load(unsigned)
    with pytest.raises(PipelineError, match="There is no model 'v9'"):
        sign.sign(["v9"], unsigned)


def test_only_whole_models_are_signed(unsigned, keys):
    """A damaged file is an error, and the pointer is not signed."""
    change_model_file(unsigned)
    with pytest.raises(PipelineError, match="is not the file that was saved"):
        sign.sign([], unsigned)
    with pytest.raises(SignatureError, match=r"champion\.json is not signed"):
        registry.read_champion(unsigned)


def test_prune_keeps_signatures(store):
    """Those of what is kept; what is removed takes its own along."""
    for version in ("a", "b"):
        write_model(version, store)
        signatures.sign(layout.model_metadata(version), store)
        registry.promote(version, store)
    now = datetime.now(UTC)
    removable = prune.find(store, keep=1, before=now, records_before=now)
    prune.remove(removable, before=now, store=store)
    assert registry.read_champion(store).version == "b"
    assert [model.version for model in list_models(store)] == ["b"]
    assert not list(store.list("models/a/"))
