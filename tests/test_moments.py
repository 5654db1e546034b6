"""Moments: the frames that answer a query, stored or not, of one video or of a film's spans; and a second look."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from closeness import same_hits
from test_gallery import ColourEncoder, corpus  # noqa: F401
from test_glscl import build as build_glscl

from distill.data.video import write_video
from distill.errors import ArtefactError, ExpectedError
from distill.model import inplace
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.second_look import SecondLook, second_look
from distill.retrieval import Gallery, frames, upkeep
from distill.retrieval.indexing import build_gallery
from distill.retrieval.sources import Cut
from distill.retrieval.table_features import table_frames
from tools import search

SECONDS = {"red": (0, 3), "green": (3, 6), "blue": (6, 8)}  # of the film, a shot each
SHOWN = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A film of three shots, and one of grey alone that is a little red at its end."""
    folder = tmp_path_factory.mktemp("films")
    film = np.zeros((80, 48, 64, 3), np.uint8)
    for name, (begin, end) in SECONDS.items():
        film[10 * begin : 10 * end] = SHOWN[name]
    write_video(folder / "film.mp4", film, fps=10)
    grey = np.full((80, 48, 64, 3), 128, np.uint8)
    grey[60:] = (160, 120, 120)
    write_video(folder / "grey.mp4", grey, fps=10)
    return folder


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def unit(rows):
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_the_seconds_of_a_hit_answer_the_query(kind, films, tmp_path):
    """The film's own weights cannot know what is asked: one video, three queries, three moments."""
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    build_gallery(encoder, films, tmp_path / "gallery", frames=kind)
    gallery = Gallery.open(tmp_path / "gallery", encoder)
    for name, (begin, end) in SECONDS.items():
        hits = {hit.video: hit for hit in gallery.search([f"something {name}"], 2)[0]}
        hit = hits["film"]
        assert hit.weighed_by == "query" and sum(hit.weights) == pytest.approx(1)
        best = hit.timestamps[int(np.argmax(hit.weights))]
        assert begin <= best < end and begin - 0.5 <= hit.seconds[0] and hit.seconds[1] <= end + 0.5
        stored = encoder.encode_video(films / "film.mp4")
        text = encoder.encode_text([name]).sentence.numpy()
        expected = softmax(unit(stored.frames[0].numpy()) @ unit(text)[0] / 0.1)
        assert np.allclose(hit.weights, expected[: len(hit.weights)] / expected[: len(hit.weights)].sum(), atol=0.02)


def test_without_stored_frames_seconds_are_what_weighs_most_and_are_called_so(films, tmp_path, capsys, monkeypatch):
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    build_gallery(encoder, films, tmp_path / "gallery", frames="none")
    gallery = Gallery.open(tmp_path / "gallery", encoder)
    answers = gallery.search(["red", "blue"], 2)
    moments = [{hit.video: hit.seconds for hit in hits} for hits in answers]
    assert moments[0] == moments[1] and {hit.weighed_by for hits in answers for hit in hits} == {"video"}
    assert {hit.weighed_by for hit in gallery.like("film", 1)} == {"video"}
    monkeypatch.setattr("distill.release.release.load", lambda _: encoder)
    search.main([str(tmp_path / "gallery"), "red", "--release", str(tmp_path)])
    assert "(seconds: what weighs most in the video, whatever is asked)" in capsys.readouterr().out


def test_spans_of_a_film_are_one_hit_with_its_other_moments(films, tmp_path):
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    build_gallery(encoder, films, tmp_path / "gallery", cut=Cut(2.0))
    gallery = Gallery.open(tmp_path / "gallery", encoder)
    every = gallery.search(["red"], 8)[0]
    hits = gallery.search(["red"], 2, by_file=True)[0]
    assert len(every) == 8 and [hit.video.partition("@")[0] for hit in hits] == ["film", "grey"]
    for hit in hits:
        file = hit.video.partition("@")[0]
        own = [row for row in every if row.video.startswith(file)]
        assert replace(hit, others=()) == own[0] and list(hit.others) == own[1:5]
    (best,) = gallery.search(["red"], 1, by_file=True)[0]
    assert best.video == hits[0].video and len(best.others) > 0 and best.others == hits[0].others[: len(best.others)]
    first = gallery.like("grey@0-2", 2, by_file=True)
    assert [hit.video.partition("@")[0] for hit in first] == ["film"], "other spans of its own file are left out"


def test_a_gallery_keeps_frames_as_it_began(films, tmp_path):
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    (tmp_path / "list.txt").write_text(f"{films / 'film.mp4'}\n")
    build_gallery(encoder, tmp_path / "list.txt", path, frames="float16")
    with pytest.raises(ArtefactError, match="holds float16 frames, not int8; leave --frames out"):
        build_gallery(encoder, films, path, append=True, frames="int8")
    build_gallery(encoder, films, path, append=True)
    before = Gallery.open(path, encoder)
    assert [part.frames.columns["frames"].dtype for part in before.table.parts] == [np.float16] * 2
    upkeep.compact(path)
    after = before.refreshed()
    assert len(after.table.parts) == 1
    for name in ("film", "grey"):
        old, new = (table_frames(one.table)[torch.tensor([one.row(name)])] for one in (before, after))
        assert torch.equal(old.frames, new.frames) and torch.equal(old.real, new.real)


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_stored_frames_change_a_cosine_by_no_more_than_is_said(kind):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(40, 12, 512, generator=generator)
    real = torch.rand(40, 12, generator=generator) < 0.9
    exact = unit(drawn.numpy())
    columns = frames.encode(exact, real.numpy(), kind)
    assert sum(column[0].nbytes for column in columns.values()) == {"int8": 12 * 517, "float16": 12 * 1025}[kind]
    found, counted = frames.Frames(columns).of(np.arange(40))
    queries = unit(torch.randn(50, 512, generator=generator).numpy())
    exact = exact * real.numpy()[..., None]
    off = np.abs(found @ queries.T - exact @ queries.T)
    if kind == "int8":
        half = np.abs(exact).max(-1, keepdims=True) / 127 / 2
        assert (off <= half * np.abs(queries).sum(1) + 1e-6).all()
    assert off.mean() < {"int8": 0.002, "float16": 2e-5}[kind]
    assert np.array_equal(counted, real.numpy())


def drawn_features(texts=6, videos=9, parts=5, dim=16):
    generator = torch.Generator().manual_seed(4)
    real = torch.rand(videos, parts, generator=generator) < 0.7
    real[:, 0] = True
    video = VideoFeatures(
        vector=torch.randn(videos, dim, generator=generator),
        frames=torch.randn(videos, parts, dim, generator=generator),
        real=real,
    )
    return TextFeatures(sentence=torch.randn(texts, dim, generator=generator)), video


@pytest.mark.parametrize(("temperature", "weight"), [(0.1, 1.0), (0.3, 0.25), (0.03, 0.0)])
def test_a_second_look_is_the_cosine_and_the_gated_mean_of_the_frames(temperature, weight):
    text, video = drawn_features()
    found = second_look(temperature, weight).score(text, video).numpy()
    sentence = unit(text.sentence.numpy())
    for t in range(len(text)):
        for v in range(len(video)):
            cosines = unit(video.frames[v][video.real[v]].numpy()) @ sentence[t]
            expected = unit(video.vector[v].numpy()) @ sentence[t]
            expected += weight * (softmax(cosines / temperature) * cosines).sum()
            assert found[t, v] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("vectors", "kept"), [("float32", "float16"), ("float16", "int8"), ("int8", "int8")])
def test_a_second_look_orders_the_candidates_of_a_gallery_anew(vectors, kept, films, corpus, tmp_path, monkeypatch):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    calls, attend = [], inplace._attend
    monkeypatch.setattr(inplace, "_attend", lambda *given: calls.append(given) or attend(*given))
    build_gallery(encoder, films, path, frames=kept, vectors=vectors)
    build_gallery(encoder, corpus / "videos", path, append=True, videos=corpus / "videos")
    plain = Gallery.open(path, encoder)
    with pytest.raises(ExpectedError, match=r"second look: .* carries none"):
        plain.search(["red"], 3, second_look=True)
    encoder.second_look = look = SecondLook(temperature=0.1, t2v=2.0, v2t=0.0)
    gallery = Gallery.open(path, encoder)
    for query in ("red", "green", "blue"):
        hits = gallery.search([query], 5, second_look=True)[0]
        every = torch.arange(5)
        scores = second_look(0.1, look.t2v).score(encoder.encode_text([query]), table_frames(gallery.table)[every])[0]
        order = scores.argsort(descending=True).tolist()
        assert [hit.video for hit in hits] == [gallery.about(row)["id"] for row in order]
        assert [hit.score for hit in hits] == pytest.approx(scores[order].tolist(), abs=1e-5)
        few = gallery.search([query], 2, candidates=2, second_look=True)[0]
        assert {hit.video for hit in few} == {hit.video for hit in plain.search([query], 2)[0]}
    assert bool(calls) == inplace.built(), "frames and vectors are read where they lie"
    together = gallery.search(["red", "green", "blue"], 5, second_look=True)
    alone = [gallery.search([query], 5, second_look=True)[0] for query in ("red", "green", "blue")]
    assert same_hits(together, alone, ulps=64)
    with pytest.raises(ExpectedError, match="candidates: they are what a second look reranks; take one too"):
        gallery.search(["red"], 2, candidates=2)
    build_gallery(encoder, films, tmp_path / "bare", frames="none")
    with pytest.raises(ExpectedError, match=r"stores no frames; index again with tools/index\.py --frames int8"):
        Gallery.open(tmp_path / "bare", encoder).search(["red"], 3, second_look=True)


def test_the_gate_of_glscl_pools_as_its_score_does():
    """Weighted by the softmax of its relevance, the frames have the cosine with the sentence that GLSCL scores."""
    model = build_glscl().float().eval()
    generator = torch.Generator().manual_seed(2)
    text = TextFeatures(sentence=torch.randn(3, model.clip.dim, generator=generator))
    frames_ = torch.randn(3, 4, model.clip.dim, generator=generator)
    video = VideoFeatures(vector=frames_.mean(1), frames=frames_, real=torch.ones(3, 4, dtype=torch.bool))
    with torch.no_grad():
        weights = softmax(model.relevance(text, video).numpy())
        expected = model.global_score(text, video).diagonal().numpy()
    pooled = (weights[..., None] * frames_.numpy()).sum(1)
    assert np.allclose((unit(pooled) * unit(text.sentence.numpy())).sum(1), expected, atol=1e-5)


def test_hits_are_plain_json(films, tmp_path, capsys, monkeypatch):
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    build_gallery(encoder, films, tmp_path / "gallery", cut=Cut(2.0))
    monkeypatch.setattr("distill.release.release.load", lambda _: encoder)
    search.main([str(tmp_path / "gallery"), "red", "--json", "--release", str(tmp_path)])
    first = json.loads(capsys.readouterr().out)[0]
    assert first["weighed_by"] == "query" and [other["span"] for other in first["others"]]
    search.main([str(tmp_path / "gallery"), "red", "--spans", "--json", "--release", str(tmp_path)])
    spans = json.loads(capsys.readouterr().out)
    assert [hit["video"] for hit in spans][:1] == [first["video"]] and not any(hit["others"] for hit in spans)
