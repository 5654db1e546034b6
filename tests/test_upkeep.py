"""Upkeep of a gallery: what is done already is left as it is, and nothing is made of vectors that are none."""

import math
import shutil

import pytest
from conftest import tree_bytes
from safetensors.torch import load_file, save_file
from test_export import grown
from test_gallery import corpus  # noqa: F401 a fixture
from test_release import make, release

from distill.errors import ArtefactError, ExpectedError
from distill.manifest import seal
from distill.release.release import load
from distill.retrieval import Gallery, generation, upkeep
from distill.retrieval.export import EXPORTERS, export
from distill.retrieval.indexing import build_gallery

BANK = ["a red square", "something blue", "a circle"]
CHANGES = {
    "approximate": upkeep.approximate,
    "calibrate": lambda path: upkeep.calibrate(path, load(path.parent / "release"), BANK),
}


@pytest.fixture(scope="module")
def kept(corpus, tmp_path_factory):  # noqa: F811
    """A gallery of enough videos for an approximate index, and its release."""
    pytest.importorskip("faiss", reason="the extra [index] is not installed")
    folder = tmp_path_factory.mktemp("kept")
    release(folder / "release", *make())
    build_gallery(load(folder / "release"), corpus / "videos", folder / "three")
    grown(Gallery.open(folder / "three", load(folder / "release")), folder / "gallery", upkeep.LEAST + 5, 64)
    return folder


@pytest.fixture
def gallery(kept, tmp_path):
    shutil.copytree(kept / "release", tmp_path / "release")
    return shutil.copytree(kept / "gallery", tmp_path / "gallery")


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_there_of_the_same_videos_stays_and_of_others_is_made_again(change, gallery):
    first = CHANGES[change](gallery)
    before = tree_bytes(gallery)
    assert CHANGES[change](gallery).id == first.id and tree_bytes(gallery) == before
    upkeep.delete(gallery, ["v3"])
    assert CHANGES[change](gallery).counts["generation"] == 4
    assert CHANGES[change](gallery).counts["generation"] == 4


def test_another_bank_calibrates_anew(gallery):
    CHANGES["calibrate"](gallery)
    other = upkeep.calibrate(gallery, load(gallery.parent / "release"), [*BANK, "a star"])
    assert (other.counts["generation"], other.config["calibration"]["queries"]) == (3, 4)


def test_what_is_deleted_already_stays_deleted_and_what_never_was_there_is_an_error(gallery):
    first = upkeep.delete(gallery, ["v1", "v2"])
    before = tree_bytes(gallery)
    assert upkeep.delete(gallery, ["v2", "v1"]).id == first.id and tree_bytes(gallery) == before
    assert upkeep.delete(gallery, ["v2", "v3"]).counts["videos"] == upkeep.LEAST + 5 - 3
    with pytest.raises(ExpectedError, match="has no video 'v9999'; nothing was deleted"):
        upkeep.delete(gallery, ["v4", "v9999"])
    assert "v4" in Gallery.open(gallery, load(gallery.parent / "release"))


@pytest.mark.parametrize("change", [*CHANGES, "delete", "compact"])
def test_what_a_change_left_that_was_killed_once_it_had_published_is_deleted_by_the_next(change, gallery, monkeypatch):
    make = (
        CHANGES.get(change) or {"delete": lambda path: upkeep.delete(path, ["v3"]), "compact": upkeep.compact}[change]
    )
    upkeep.delete(gallery, ["v1"])  # so that there is something to compact, and to replace
    before = {name for name in tree_bytes(gallery) if name not in generation.read(gallery).files}

    def killed(path, manifest):
        seal(path, manifest)
        (path / ".manifest.json.0.part").write_bytes(b"{")  # of another attempt
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(generation, "publish", killed)
        make(gallery)
    made = generation.read(gallery)
    assert make(gallery).id == made.id, "it is done already"
    assert tree_bytes(gallery).keys() == before | made.files.keys()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e38, 0.9])
def test_nothing_is_made_of_a_vector_that_is_not_one(number, gallery):
    file = gallery / "segments" / "00001" / "vectors.safetensors"
    found = load_file(file)
    found["vectors"][7, 5] = number
    save_file(found, file)
    made = [*CHANGES.values(), *(lambda path, to=to: export(path, to, path.parent / to) for to in EXPORTERS)]
    for make_of in made:
        with pytest.raises(ArtefactError, match=r"vectors\.safetensors: damaged .*vector of 'v7' has length .*, not 1"):
            make_of(gallery)
    assert not (gallery / "calibration").exists() and not (gallery / "approximate").exists()
    if math.isnan(number):
        with pytest.raises(ArtefactError, match="not finite"):
            Gallery.open(gallery, load(gallery.parent / "release")).search(["a red square"], 3)
