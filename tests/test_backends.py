"""A gallery without PyTorch: the same answers by vectors of queries alone, and one sentence for what it cannot do."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from conftest import ROOT
from fastapi.testclient import TestClient
from serving import make_films
from sides import Side
from test_export import grown
from test_gallery import two_stage_release

from distill import catalogue
from distill.errors import ArtefactError, ExpectedError
from distill.model.contract import ANSWER_TEMPERATURE, RetrievalModel
from distill.release.release import load
from distill.retrieval import Gallery, backend, upkeep
from distill.retrieval.indexing import build_gallery
from distill.retrieval.where import Where
from distill.serving import application

QUERIES = ["a red square", "a blue circle", "the green star falls", "something " * 90]
WITHOUT = ("torch", "open_clip", "timm", "torchvision", "transformers", "av")
ASKED = {
    "plain": {},
    "by file": {"by_file": True},
    "in a folder": {"where": Where("many")},
    "short": {"where": Where(max_seconds=4.0)},
}
ASKED |= {"few": {"where": Where("holiday/beach")}, "not calibrated": {"calibrated": False}}

ANSWERED = """
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from sides import Side

from distill.retrieval import Gallery
from distill.retrieval.where import Where
from distill.serving.application import application

folder = Path(sys.argv[1])
gallery = Gallery.open(folder / "gallery", Side(folder))
queries = list(json.loads((folder / "side.json").read_text())["vectors"])
hits = [[asdict(hit) for hit in found] for found in gallery.search(queries, 4, where=Where(max_seconds=30.0))]
assert application(gallery) and gallery.poster(hits[0][0]["video"])[:2] == b"\\xff\\xd8"
assert "torch" not in sys.modules
print(json.dumps(hits))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A gallery of eleven films, one of them in spans, calibrated; and the vectors of some queries."""
    folder = make_films(tmp_path_factory.mktemp("backends")).parent
    loaded = load(folder / "release")
    known = {query: vector.tolist() for query, vector in zip(QUERIES, loaded.embed_text(QUERIES), strict=True)}
    (folder / "side.json").write_text(json.dumps({"id": loaded.manifest.id, "vectors": known}))
    upkeep.calibrate(folder / "gallery", loaded, QUERIES[:3])
    return folder


@pytest.fixture(scope="module")
def galleries(folder):
    """The same gallery by its release, and by the vectors of queries alone."""
    return Gallery.open(folder / "gallery", load(folder / "release")), Gallery.open(folder / "gallery", Side(folder))


def same(found, expected):
    """Whether hits are equal but for the rounding of their numbers."""
    assert [hit.video for hit in found] == [hit.video for hit in expected] and len(found) > 0
    for one, other in zip(found, expected, strict=True):
        ours, theirs = asdict(one), asdict(other)
        for name in ("score", "weights"):
            assert ours.pop(name) == pytest.approx(theirs.pop(name), abs=1e-4)
        assert [hit["video"] for hit in ours.pop("others")] == [hit["video"] for hit in theirs.pop("others")]
        assert ours == theirs


@pytest.mark.parametrize("how", ASKED)
def test_answers_are_those_of_the_release(how, galleries):
    by_model, by_vectors = (gallery.search(QUERIES, 6, **ASKED[how]) for gallery in galleries)
    for ours, theirs in zip(by_vectors, by_model, strict=True):
        same(ours, theirs)
        assert {hit.weighed_by for hit in ours} == {"query"}


def test_videos_like_a_video_are_those_of_the_release(galleries):
    by_model, by_vectors = galleries
    for name in ("holiday/blue", "films/long@0-10"):
        same(by_vectors.like(name, 5), by_model.like(name, 5))


@pytest.mark.parametrize("vectors", ["float16", "int8"])
def test_fewer_bytes_answer_alike(vectors, folder, tmp_path):
    loaded = load(folder / "release")
    build_gallery(loaded, folder / "videos", tmp_path / "gallery", vectors=vectors, frames="float16", workers=1)
    by_model, by_vectors = (Gallery.open(tmp_path / "gallery", one) for one in (loaded, Side(folder)))
    for ours, theirs in zip(by_vectors.search(QUERIES, 6), by_model.search(QUERIES, 6), strict=True):
        same(ours, theirs)


def test_an_approximate_index_answers_alike(folder, tmp_path):
    pytest.importorskip("faiss", reason="the extra [index] is not installed")
    loaded = load(folder / "release")
    build_gallery(loaded, folder / "videos" / "many", tmp_path / "many", workers=1)
    grown(Gallery.open(tmp_path / "many", loaded), tmp_path / "gallery", upkeep.LEAST, 64)
    upkeep.approximate(tmp_path / "gallery")
    by_model, by_vectors = (Gallery.open(tmp_path / "gallery", one) for one in (loaded, Side(folder)))
    assert by_vectors.table.approximate is not None
    for ours, theirs in zip(by_vectors.search(QUERIES, 6), by_model.search(QUERIES, 6), strict=True):
        same(ours, theirs)


def test_a_process_answers_without_importing_pytorch(folder, galleries, tmp_path):
    (tmp_path / "script.py").write_text(ANSWERED)
    line = [
        sys.executable,
        ROOT / "tests/without.py",
        ",".join(WITHOUT),
        tmp_path / "script.py",
        folder,
        ROOT / "tests",
    ]
    result = subprocess.run(line, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    expected = galleries[1].search(QUERIES, 4, where=Where(max_seconds=30.0))
    assert json.loads(result.stdout) == json.loads(json.dumps([[asdict(hit) for hit in hits] for hits in expected]))


def test_what_takes_the_model_is_refused_in_one_sentence(folder, galleries, tmp_path):
    gallery = galleries[1]
    with pytest.raises(ExpectedError, match=r"second look: .*opened without its weights.*--backend onnx"):
        gallery.search(["a red square"], 3, second_look=True)
    with pytest.raises(ExpectedError, match="encodes queries alone, and no files to search by"):
        gallery.like(folder / "videos" / "holiday" / "blue.mp4", 3)
    with pytest.raises(ExpectedError, match=r"candidates: .*nothing to rerank"):
        gallery.search(["a red square"], 3, 20)
    side = Side(folder)
    side.id = "0" * 64
    with pytest.raises(ArtefactError, match=r"made by release .* but .* is 000000000000"):
        Gallery.open(folder / "gallery", side)
    loaded = two_stage_release(tmp_path / "release", kind="eercf", frames=4)
    build_gallery(loaded, folder / "videos" / "many", tmp_path / "gallery", workers=1)
    side.path, side.id = tmp_path / "release", loaded.manifest.id
    with pytest.raises(ExpectedError, match="is searched in two stages, which takes the model"):
        Gallery.open(tmp_path / "gallery", side)


def test_the_server_answers_words_and_refuses_files(galleries):
    with TestClient(application.application(galleries[1]), base_url="http://localhost") as client:
        answer = client.post("/search", json={"query": QUERIES[0], "k": 3}).json()["results"][0]
        assert [hit["video"] for hit in answer["hits"]] == [
            hit.video for hit in galleries[0].search(QUERIES[:1], 3, by_file=True)[0]
        ]
        about = client.get("/about").json()
        assert (about["max_file"], about["second_look"], about["weighed_by"]) == (0, False, "query")
        assert "without its weights" in about["no_second_look"] and "/" not in about["no_second_look"]
        refused = client.post("/search/file", content=b"\xff\xd8 a picture")
        assert refused.status_code == 409 and "no files to search by" in refused.json()["error"]


def test_kinds_that_weigh_frames_by_cosine_are_those_of_the_contract():
    assert backend.ANSWER_TEMPERATURE == ANSWER_TEMPERATURE
    kinds = {config.model_fields["kind"].annotation.__args__[0]: model for config, model in catalogue.MODELS.items()}
    own = {kind for kind, model in kinds.items() if model.relevance is not RetrievalModel.relevance}
    # Prompt Switch has its own relevance where it reranks, and such galleries are refused; PIG reads frames otherwise.
    assert own & set(backend.COSINE) == {"prompt_switch"} and "pig" in own
    assert set(kinds) - own - set(catalogue.INTERACTIONS) - {"eercf"} == {"clip4clip", "teachclip"}
