"""A candidate and the champion caption the same photographs of the inbox, and a person sees the difference."""

from dataclasses import replace

import pytest

from pipeline.captioner import bundle, registry
from pipeline.captioner.metadata import load_metadata
from pipeline.config import DecodingConfig
from pipeline.data import corrections
from pipeline.data.vocabulary import Vocabulary
from pipeline.features import encoder
from pipeline.features import store as feature_store
from pipeline.nightly import current, shadow
from pipeline.ops.sweep import sweep
from pipeline.storage import LocalBucket, artifacts, json, layout, parquet
from pipeline.work import tombstones
from tests.support import toy
from tests.support.models import write_model
from tests.support.nights import night, promote_copy

BEAM = DecodingConfig(beam_width=2)

KEY = "déjà vu/100% blue + #1?.jpg"


def candidate(store, version="v2", words=("red", "blue"), **changes):
    """A candidate that writes the captions of the champion, but one of two words in place of the other."""
    champion = load_metadata(registry.read_champion(store).version, store)
    folder, names = layout.model_folder(champion.version), list(champion.files)
    files = dict(zip(names, artifacts.get(folder, names, champion.files, store, advice=""), strict=True))
    vocabulary = Vocabulary.from_json(files[bundle.VOCABULARY], origin="")
    swapped = dict(zip(words, reversed(words), strict=True))
    vocabulary = replace(vocabulary, words=tuple(swapped.get(word, word) for word in vocabulary.words))
    files[bundle.VOCABULARY] = vocabulary.to_json().encode()
    checksums = artifacts.put(layout.model_folder(version), files, store)
    metadata = champion.model_copy(update={"version": version, "files": checksums, **changes})
    json.write(metadata, layout.model_metadata(version), store)
    return version


def compare(version, store, inbox, *, size=100, picture_page=""):
    """The lines of the comparison."""
    return shadow.compare(
        version, size=size, decoding=BEAM, picture_page=picture_page, inbox_uri=inbox.uri, store=store
    ).splitlines()


def correct(inbox, store, key, caption):
    """Have a person write the caption of a photograph."""
    corrections.add(
        inbox.get(key),
        caption=caption,
        model_caption="a square",
        model_version="m",
        corrected_by="ada",
        image_key=key,
        image_etag=inbox.etag(key),
        store=store,
    )


@pytest.mark.all_buckets
def test_both_caption_the_inbox(store, inbox):
    """The photographs that would get another caption come first; nothing that readers see is written."""
    night("n1", inbox, store)
    version = candidate(store)
    before = toy.etags(store, "")
    lines = compare(version, store, inbox)
    assert lines[0] == "Of 6 photographs in the inbox, 4 would get another caption (beam 2, 20 neighbours):"
    assert lines[1:4] == ["", "| photograph | candidate | champion |", "| --- | --- | --- |"]
    cells = [line.strip("| ").split(" | ") for line in lines[4:]]
    assert [one != other for _, one, other in cells] == [True] * 4 + [False] * 2
    by_key = {key: (one, other) for key, one, other in cells}
    assert by_key["red.jpg"] == ("a blue square", "a red square")
    assert by_key["more/yellow.jpg"][0] == by_key["more/yellow.jpg"][1]
    after = toy.etags(store, "")
    assert after.keys() - before.keys() == {layout.shadow(version)}
    assert {key: after[key] for key in before} == before
    rows = {row["image_key"]: row for row in parquet.read(layout.shadow(version), store).to_pylist()}
    assert len(rows) == 6
    assert rows["red.jpg"] == {
        "image_key": "red.jpg",
        "image_etag": inbox.etag("red.jpg"),
        "caption": "a blue square",
        "champion_version": registry.read_champion(store).version,
        "champion_caption": "a red square",
        "person_caption": None,
    }
    assert compare(version, store, inbox) == lines


def test_captions_of_the_same_model(store, inbox):
    """None differs, and some are shown all the same."""
    night("n1", inbox, store)
    lines = compare(candidate(store, words=()), store, inbox)
    assert lines[0] == "Of 6 photographs in the inbox, 0 would get another caption (beam 2, 20 neighbours):"
    assert len(lines) == 4 + 6


def test_the_pages_of_pictures(store, inbox):
    """A photograph links to its page; its name, whatever it is, is text."""
    inbox.put("more/[x](y) <b> *a*_`|.jpg", toy.picture("red", 50))
    night("n1", inbox, store)
    text = "\n".join(compare(candidate(store), store, inbox, picture_page="http://airflow/captions/image?key="))
    page = "http://airflow/captions/image?key=d%C3%A9j%C3%A0%20vu%2F100%25%20blue%20%2B%20%231%3F.jpg"
    assert f"| [{KEY}]({page}) | a red square | a blue square |" in text
    assert r"| [more/\[x\](y) \<b\> \*a\*\_\`\|.jpg](http://airflow/captions/image?key=more%2F%5Bx%5D%28y%29" in text


def test_what_a_person_said(store, inbox):
    """A person's caption stands beside those of the models, which are shown although readers get the person's."""
    night("n1", inbox, store)
    correct(inbox, store, "red.jpg", "a very red square")
    version = candidate(store)
    lines = compare(version, store, inbox)
    assert lines[2] == "| photograph | candidate | champion | person |"
    assert "| red.jpg | a blue square | a red square | a very red square |" in lines
    assert f"| {KEY} | a red square | a blue square |  |" in lines
    said = parquet.read(layout.shadow(version), store).filter(shadow.pc.field("person_caption").is_valid())
    assert said["person_caption"].to_pylist() == ["a very red square"]


def test_a_sample(store, inbox, monkeypatch):
    """A quarter has the last words of people; the others stay the same for all candidates, and as the inbox grows."""
    for number in range(8):
        inbox.put(f"more/{number}.jpg", toy.picture("red", 100 + number))
    night("n1", inbox, store)
    for key in ("red.jpg", "green.JPG", "blue.jpeg"):
        correct(inbox, store, key, f"seen: {key}")

    def sampled(version):
        lines = compare(version, store, inbox, size=8)
        keys = parquet.read(layout.shadow(version), store)["image_key"].to_pylist()
        assert (len(keys), len(lines)) == (8, 4 + 8)
        return keys

    keys = sampled(candidate(store))
    assert keys[:2] == ["blue.jpeg", "green.JPG"]
    assert sampled(candidate(store, "v3")) == keys
    inbox.put("one more.jpg", toy.picture("red", 200))
    night("n2", inbox, store)
    assert len(set(sampled(candidate(store, "v4"))) & set(keys)) >= 7
    # What a person sees is bounded.
    monkeypatch.setattr(shadow, "SHOWN", 3)
    assert len(compare("v4", store, inbox, size=8)) == 4 + 3


def test_long_texts_are_cut(store, inbox):
    """A person's caption may be long."""
    night("n1", inbox, store)
    correct(inbox, store, "red.jpg", ("red " * 70).strip())
    [line] = [line for line in compare(candidate(store), store, inbox) if line.startswith("| red.jpg")]
    assert len(line) < 300
    assert line.endswith("… |")


def test_another_encoder(store, inbox, toy_encoder):
    """Only the sample is encoded, once; photographs that are gone by now are left out."""
    night("n1", inbox, store)
    compare(candidate(store), store, inbox, size=4)
    first, *_ = parquet.read(layout.shadow("v2"), store)["image_key"].to_pylist()
    encoder_id = encoder.register(str(toy_encoder), store, crops=True)
    version = candidate(store, "v3", encoder_id=encoder_id)
    inbox.delete(first)
    assert compare(version, store, inbox, size=4)[0].startswith("Of 3 photographs in the inbox, ")
    rows = feature_store.index(encoder_id, store)
    assert sorted(rows["status"].to_pylist()) == ["failed", "ok", "ok", "ok"]
    features = toy.etags(store, layout.FEATURES)
    compare(version, store, inbox, size=4)
    assert toy.etags(store, layout.FEATURES) == features
    registry.promote(version, store)
    assert night("n2", inbox, store).extracted == 3  # the others, one of them damaged


def test_there_is_nothing_to_compare(store, inbox, toy_encoder, tmp_path):
    """A sentence says why, and nothing fails."""

    def sentence(version, **options):
        [line] = compare(version, store, options.get("inbox", inbox))
        prefix = "No captions of photographs in the inbox are compared: "
        assert line.startswith(prefix)
        assert not store.exists(layout.shadow(version))
        return line.removeprefix(prefix)

    champion = registry.read_champion(store).version
    version = candidate(store)
    assert sentence(version) == "no night has captioned any yet."
    night("n1", inbox, store)
    assert sentence(champion) == "this model is the champion already."
    # Its encoder has not seen the inbox, which is not there.
    crops = candidate(store, "v3", encoder_id=encoder.register(str(toy_encoder), store, crops=True))
    assert "typo does not exist. Check the address" in sentence(crops, inbox=LocalBucket(tmp_path / "typo"))
    assert not list(store.list(layout.features_folder(load_metadata(crops, store).encoder_id)))
    write_model("v4", store)
    assert "v4" in sentence("v4")
    data = store.get(layout.CURRENT_CAPTIONS)
    store.put(layout.CURRENT_CAPTIONS, data[:99])
    assert "current/captions.parquet is damaged" in sentence(version)
    store.put(layout.CURRENT_CAPTIONS, data)
    store.delete(layout.CHAMPION)
    assert sentence(version) == "there is no champion yet."


def test_lost_features_are_extracted_again(store, inbox):
    """They are those of the sample alone."""
    night("n1", inbox, store)
    version = candidate(store)
    for item in list(store.list(layout.FEATURES)):
        store.delete(item.key)
    assert compare(version, store, inbox)[0].startswith("Of 6 photographs")


def test_a_forgotten_photograph_is_forgotten_here_too(store, inbox):
    """Its row goes, and the others stay."""
    night("n1", inbox, store)
    version = candidate(store)
    compare(version, store, inbox)
    forgotten = tombstones.add([("key", "red.jpg")], store)
    key = layout.shadow(version)
    assert key in sweep(forgotten, store, remove=False)
    assert key in sweep(forgotten, store, remove=True)
    assert key not in sweep(forgotten, store, remove=False)
    keys = parquet.read(key, store)["image_key"].to_pylist()
    assert "red.jpg" not in keys and len(keys) == 5


def test_later_champions_change_nothing(store, inbox):
    """What was shown before an approval stays as it was."""
    night("n1", inbox, store)
    version = candidate(store)
    compare(version, store, inbox)
    before = store.get(layout.shadow(version))
    promote_copy("v9", store)
    night("n2", inbox, store)
    assert store.get(layout.shadow(version)) == before
    assert set(current.read(store)["model_version"].to_pylist()) == {"v9", None}
    assert load_metadata(version, store).version == version
