"""Calibration: a gallery puts back what comes up for everything, in the order of evaluation's QB-Norm."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import grown, small  # noqa: F401 a fixture
from test_gallery import corpus  # noqa: F401 a fixture
from test_release import make, release

from distill.errors import ArtefactError, ExpectedError
from distill.evaluation.normalise import bank_of, query_bank_t2v
from distill.model.features import TextFeatures
from distill.release.release import load
from distill.retrieval import Gallery, upkeep
from distill.retrieval.calibration import Calibration
from distill.retrieval.indexing import build_gallery
from tools import gallery as gallery_tool

ROWS, DIM, BANK, ASKED = 150, 64, 40, 30


@pytest.fixture
def gallery(corpus, tmp_path, monkeypatch):  # noqa: F811
    """A gallery of random vectors; queries are numbers, and each is like one of the vectors."""
    release(tmp_path / "release", *make())
    loaded = load(tmp_path / "release")
    build_gallery(loaded, corpus / "videos", tmp_path / "three")
    grown(Gallery.open(tmp_path / "three", loaded), tmp_path / "gallery", ROWS, DIM)
    opened = Gallery.open(tmp_path / "gallery", loaded)
    like = torch.from_numpy(opened.table.vectors(np.arange(BANK + ASKED) * 3 % ROWS))
    words = like + 0.15 * torch.randn(like.shape, generator=torch.Generator().manual_seed(1)) + 0.05
    monkeypatch.setattr(
        type(loaded), "encode_text", lambda _, texts: TextFeatures(sentence=words[list(map(int, texts))])
    )
    return opened


def numbers(first, last):
    return [str(number) for number in range(first, last)]


def similarities(gallery, queries):
    """Similarities of queries with all rows, deleted ones too, in double precision."""
    vectors = torch.from_numpy(gallery.table.vectors(np.arange(ROWS))).double()
    return torch.nn.functional.normalize(gallery.release.encode_text(queries).sentence.double(), dim=1) @ vectors.T


def test_a_calibrated_gallery_answers_in_the_order_of_query_bank_normalisation(gallery):
    bank, asked = numbers(0, BANK), numbers(BANK, BANK + ASKED)
    plain = gallery.search(asked, 20)
    upkeep.calibrate(gallery.path, gallery.release, bank)
    found = gallery.refreshed()
    similarity, sums = similarities(gallery, asked), bank_of([similarities(gallery, bank)], ROWS)
    applies = sums.first[similarity.argmax(1)]
    assert 0 < applies.sum() < ASKED, "some queries are answered by the bank, some are not"
    expected = query_bank_t2v(similarity, sums).topk(20).indices
    hits = found.search(asked, 20)
    for query in range(ASKED):
        assert [hit.video for hit in hits[query]] == [f"v{row}" for row in expected[query].tolist()]
        scores = similarity[query, expected[query]].tolist()
        assert [hit.score for hit in hits[query]] == pytest.approx(scores, abs=1e-6), "scores stay similarities"
    unsaid = [[replace(hit, fits=None) for hit in hits] for hits in found.search(asked, 20, calibrated=False)]
    assert unsaid == plain and [[hit.video for hit in found] for found in hits] != [[h.video for h in p] for p in plain]
    assert found.like("v3", 5) == gallery.like("v3", 5)
    assert len(found.search(asked[:1], ROWS + 9)[0]) == ROWS


def test_something_fits_a_query_as_far_above_the_mean_as_for_98_in_100_of_the_bank(gallery):
    gone = [gallery.about(row)["id"] for row in range(0, ROWS, 5)]
    upkeep.delete(gallery.path, gone)
    upkeep.calibrate(gallery.path, gallery.release, numbers(0, BANK))
    live = torch.ones(ROWS, dtype=torch.bool)
    live[::5] = False
    above = {
        name: (found := similarities(gallery, asked)[:, live]) - found.mean(1, keepdim=True)
        for name, asked in (("bank", numbers(0, BANK)), ("asked", numbers(BANK, BANK + ASKED)))
    }
    above = {name: found.topk(3, 1).values.mean(1).numpy() for name, found in above.items()}
    expected = above["asked"] >= np.quantile(above["bank"], 0.02)
    assert 0 < expected.sum() < ASKED
    for calibrated, k in ((True, 10), (False, 10), (False, 1)):
        answers = gallery.refreshed().search(numbers(BANK, BANK + ASKED), k, calibrated=calibrated)
        assert [{hit.fits for hit in hits} for hits in answers] == [{bool(fits)} for fits in expected]
    assert {hit.fits for hits in gallery.search(["0"], 3) for hit in hits} == {None}, "not calibrated then"
    assert {hit.fits for hit in gallery.refreshed().like("v1", 3)} == {None}, "no words were asked"


def test_a_calibration_of_a_former_version_says_nothing_of_fitting(tmp_path):
    save_file({"log_sum": torch.zeros(3), "first": torch.zeros(3, dtype=torch.bool)}, tmp_path / "file")
    old = Calibration(tmp_path / "file", {"covers": 3, "queries": 2})
    assert old.fits(np.zeros((1, 4), np.float32), np.zeros((1, 3), np.float32)) is None


def test_what_is_deleted_or_comes_later_is_ranked_beside_it(gallery, corpus):  # noqa: F811
    path, asked = gallery.path, numbers(BANK, BANK + ASKED)
    first = gallery.search(numbers(0, 1), 1)[0][0].video
    upkeep.delete(path, [first])
    manifest = upkeep.calibrate(path, gallery.release, numbers(0, BANK))
    stored = load_file(path / manifest.config["calibration"]["file"])
    similarity = similarities(gallery, numbers(0, BANK))
    similarity[:, int(first[1:])] = -2
    assert sorted(stored["first"].nonzero()[:, 0].tolist()) == sorted(set(similarity.argmax(1).tolist()))
    upkeep.delete(path, ["v7"])
    build_gallery(gallery.release, corpus / "videos", path, append=True)
    found = gallery.refreshed()
    hits = found.search(asked, ROWS + 1)
    names = {hit.video for hit in hits[0]}
    assert len(names) == ROWS + 1 and {"red", "green", "blue"} < names and not {first, "v7"} & names
    upkeep.compact(path)
    assert "calibration" not in found.refreshed().manifest.config and not list((path / "calibration").iterdir())
    assert {hit.video for hit in found.refreshed().search(asked, ROWS + 1)[0]} == names


def test_the_door_takes_captions_or_a_list_and_says_what_it_cannot_take(
    gallery,
    corpus,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
    small,  # noqa: F811
):
    (tmp_path / "bank.txt").write_text("1\n\n 2 \n")
    gallery_tool.main([str(gallery.path), "calibrate", str(tmp_path / "bank.txt")])
    assert f"{ROWS} videos (0 deleted) in 1 segments, 0 captions, float32 vectors, calibrated by 2 queries" in (
        capsys.readouterr().out
    )
    monkeypatch.undo()
    gallery_tool.main([str(gallery.path), "calibrate", str(corpus / "frames4")])
    assert "calibrated by 6 queries" in capsys.readouterr().out
    (tmp_path / "bank.txt").write_text("\n")
    with pytest.raises(ExpectedError, match="0 queries for 150 videos, expected some of both; give"):
        gallery_tool.main([str(gallery.path), "calibrate", str(tmp_path / "bank.txt")])
    with pytest.raises(ArtefactError, match=r"none\.txt: no such file"):
        gallery_tool.main([str(gallery.path), "calibrate", str(tmp_path / "none.txt")])
    with pytest.raises(ExpectedError, match="ranks in two stages"):
        upkeep.calibrate(small.path, small.release, ["red"])
    with pytest.raises(ArtefactError, match="made by release"):
        upkeep.calibrate(gallery.path, small.release, ["red"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda stored: {"log_sum": stored["log_sum"][1:].contiguous()}, "holds .*log_sum"),
        (lambda stored: {"first": stored["log_sum"].clone()}, "holds "),
        (lambda stored: {"log_sum": stored["log_sum"] / 0}, "a sum is not finite"),
    ],
)
def test_a_damaged_calibration_says_how_to_mend_it(damage, words, gallery):
    facts = upkeep.calibrate(gallery.path, gallery.release, numbers(0, BANK)).config["calibration"]
    path = gallery.path / facts["file"]
    stored = load_file(path)
    whole = path.read_bytes()
    save_file(stored | damage(stored), path)
    rows = np.arange(5)[None]
    with pytest.raises(ArtefactError, match=f"{words}.*make it again with tools/gallery.py calibrate"):
        Calibration(path, facts).best(np.ones((1, 5), np.float32), rows, 3)
    path.write_bytes(whole[:-1])
    with pytest.raises(ArtefactError, match=r"not whole.*make it again"):
        Calibration(path, facts)
