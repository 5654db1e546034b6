"""Indexing: the same rows from videos as from frames, and nothing lost that was acknowledged, whatever is killed."""

import io
import itertools
import json
import os
import random
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from closeness import same_hits, within_ulps
from conftest import python, tree_bytes
from processes import context, prepare
from test_gallery import COLOURS, ColourEncoder, corpus, two_stage_release  # noqa: F401 a fixture
from test_release import make, release

from distill.data.files import find, spans
from distill.data.frames import FrameSet
from distill.data.video import write_video
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import NAME
from distill.release.release import load
from distill.retrieval import Gallery, parts, upkeep
from distill.retrieval.indexing import build_gallery
from distill.retrieval.products import Products
from distill.retrieval.sources import Cut
from distill.retrieval.table import Table
from distill.retrieval.table_features import TableTokens
from distill.retrieval.vectors import Vectors, encode, nearest, nearest_of
from tools import gallery as gallery_tool
from tools import index, search


def ids(gallery):
    return {gallery.about(row)["id"] for row in gallery.table.rows().tolist()}


def contents(gallery):
    return {name: data for name, data in tree_bytes(gallery).items() if name.startswith("segments")}


@pytest.mark.parametrize("model", [{"kind": "eercf", "frames": 4}, {"kind": "teachclip"}])
def test_videos_give_the_same_bytes_as_the_frame_set_they_were_packed_into(model, corpus, tmp_path):  # noqa: F811
    if model["kind"] == "eercf":
        loaded = two_stage_release(tmp_path / "release", **model)
    else:
        release(tmp_path / "release", *make())
        loaded = load(tmp_path / "release")
    build_gallery(loaded, corpus / "frames4", tmp_path / "packed", videos=corpus / "videos")
    build_gallery(loaded, corpus / "videos", tmp_path / "files")
    packed, files = Gallery.open(tmp_path / "packed", loaded), Gallery.open(tmp_path / "files", loaded)
    assert ids(packed) == ids(files) == set(COLOURS)
    for name in COLOURS:  # in another place of the batch: a frame set is ordered by annotations, a folder by names
        one, two = np.array([packed.row(name)]), np.array([files.row(name)])
        assert packed.about(int(one[0])) == files.about(int(two[0]))
        for read in (Table.vectors, Table.frame_weights):
            assert within_ulps(torch.from_numpy(read(packed.table, one)), torch.from_numpy(read(files.table, two)), 32)
        if packed.reranks:
            fields = loaded.model.rerank_fields
            ours, others = (
                TableTokens(gallery.table, fields)[torch.from_numpy(row)].tensors()
                for gallery, row in ((packed, one), (files, two))
            )
            for field, value in ours.items():
                expected = others[field]
                assert (
                    within_ulps(value.half(), expected.half(), 1) if field != "real" else torch.equal(value, expected)
                )
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{corpus / 'videos' / name}.mp4\n" for name in COLOURS))
    build_gallery(loaded, listed, tmp_path / "listed")
    assert contents(tmp_path / "listed") == contents(tmp_path / "packed"), "in the list's order: byte for byte"


def test_a_pool_of_processes_gives_the_same_bytes(tmp_path, capsys):
    release(tmp_path / "release", *make())
    rng = np.random.default_rng(0)
    for number in range(18):
        clip = np.repeat(rng.integers(0, 256, (3, 8, 8, 3), np.uint8).repeat(6, 1).repeat(6, 2), 4, 0)
        write_video(tmp_path / "videos" / f"{number % 3}" / f"{number:02d}.mp4", clip, fps=4)
    (tmp_path / "videos" / "0" / "cut.mp4").write_bytes((tmp_path / "videos" / "0" / "00.mp4").read_bytes()[:900])
    (tmp_path / "videos" / "empty.webm").touch()
    (tmp_path / "videos" / "1" / "01.mkv").write_bytes((tmp_path / "videos" / "1" / "01.mp4").read_bytes())
    (tmp_path / "videos" / ".hidden.mp4").touch()
    said = python(
        *("tools/index.py", tmp_path / "release", tmp_path / "videos", "--out", tmp_path / "two", "--workers", "2")
    ).stdout
    assert "18 videos, 256 bytes of vectors and 276 of frames a video" in said
    assert "left out 1/01 (1/01.mkv): same id as 1/01.mp4; rename one" in said
    assert "left out empty (empty.webm): empty file" in said and "left out 0/cut (0/cut.mp4): " in said
    index.main([*map(str, (tmp_path / "release", tmp_path / "videos", "--out", tmp_path / "one", "--workers", "1"))])
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")
    notes = [json.loads(line) for line in (tmp_path / "one" / "notes" / "00001.jsonl").read_text().splitlines()]
    assert json.loads((tmp_path / "one" / NAME).read_text())["notes"] == [], "opening would read them"
    assert sorted(note["video"] for note in notes) == ["0/cut", "1/01", "empty"]


def test_sources_that_give_no_videos_are_refused(corpus, tmp_path):  # noqa: F811
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    (tmp_path / "none").mkdir()
    with pytest.raises(ArtefactError, match=r"no video files; expected some that end in \.mp4"):
        build_gallery(encoder, tmp_path / "none", tmp_path / "gallery")
    (tmp_path / "none" / "a.mp4").write_text("text")
    with pytest.raises(ArtefactError, match="none of 1 videos could be used"):
        build_gallery(encoder, tmp_path / "none", tmp_path / "gallery")
    with pytest.raises(ArtefactError, match="expected a frame set, a folder of video files, or a text file"):
        build_gallery(encoder, tmp_path / "nowhere", tmp_path / "gallery")
    (tmp_path / "list.txt").write_text("../elsewhere/a.mp4\n")
    with pytest.raises(ExpectedError, match="not in the video folder"):
        build_gallery(encoder, tmp_path / "list.txt", tmp_path / "gallery", videos=tmp_path / "none")
    with pytest.raises(ExpectedError, match="--segments cuts video files"):
        build_gallery(encoder, corpus / "frames8", tmp_path / "gallery", cut=Cut(2.0))
    with pytest.raises(ExpectedError, match="has no captions to store"):
        build_gallery(encoder, corpus / "videos", tmp_path / "gallery", captions=True)
    with pytest.raises(ArtefactError, match="no gallery to append to"):
        build_gallery(encoder, corpus / "videos", tmp_path / "gallery", append=True)
    with pytest.raises(ExpectedError, match="expected a positive length, and an overlap shorter"):
        Cut(5.0, 5.0)


def test_adding_deleting_and_compacting_keep_what_is_there(corpus, tmp_path):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    (tmp_path / "list.txt").write_text(f"{corpus / 'videos' / 'red.mp4'}\n{corpus / 'videos' / 'green.mp4'}\n")
    build_gallery(encoder, tmp_path / "list.txt", path)
    old = Gallery.open(path, encoder)
    assert old.refreshed() is old
    build_gallery(encoder, corpus / "frames8", path, videos=corpus / "videos", append=True)
    manifest = build_gallery(encoder, corpus / "frames8", path, videos=corpus / "videos", append=True)
    assert manifest.counts == {"videos": 3, "rows": 3, "generation": 2, "dim": 3, "vector_bytes": 12, "frame_bytes": 64}
    assert manifest.parents["frames"] == FrameSet(corpus / "frames8").manifest.id
    assert ids(old) == {"red", "green"} and old.search(["blue"], 3)[0][0].video != "blue", "keeps its generation"
    new = old.refreshed()
    assert new.table.segments["00001"] is old.table.segments["00001"], "what has not changed is not opened again"
    assert new.search(["blue"], 3)[0][0].video == "blue" and len(new) == 3 and len(old) == 2

    with pytest.raises(ExpectedError, match="has no video 'pink'; nothing was deleted"):
        upkeep.delete(path, ["red", "pink"])
    upkeep.delete(path, ["red"])
    less = new.refreshed()
    assert "red" not in less and less.row("red") is None and less.file("red") is None and "red" in new
    assert [hit.video for hit in less.search(["red"], 9)[0]] == ["green", "blue"] or ids(less) == {"green", "blue"}
    assert len(less.search(["red"], 9)[0]) == 2
    assert upkeep.delete(path, ["red"]).id == less.manifest.id, "it is done already"
    assert "red" not in Gallery.open(path, encoder) and build_gallery(encoder, corpus / "videos", path, append=True)
    assert "red" not in less.refreshed(), "what was deleted by hand stays out"
    upkeep.restore(path, ["red"])
    build_gallery(encoder, corpus / "videos", path, append=True)
    again = less.refreshed()
    assert again.row("red") == 3 and again.search(["red"], 1)[0][0].video == "red"

    before = {name: again.table.vectors(np.array([again.row(name)])) for name in COLOURS}
    answers = again.search(list(COLOURS), 3)
    upkeep.compact(path)
    compacted = again.refreshed()
    assert (
        len(compacted.table.segments) == 1
        and compacted.manifest.counts["rows"] == 3
        and not len(compacted.table.deleted)
    )
    assert all(
        np.array_equal(compacted.table.vectors(np.array([compacted.row(name)])), before[name]) for name in COLOURS
    )
    assert again.search(list(COLOURS), 3) == answers, "the old one still answers"
    assert same_hits(compacted.search(list(COLOURS), 3), answers, 3), "sums of three products, in one segment for two"
    assert sorted(path.name for path in (path / "segments").iterdir()) == list(compacted.table.segments)
    upkeep.verify(path)
    upkeep.delete(path, list(COLOURS))
    empty = upkeep.compact(path)
    assert empty.counts["videos"] == 0 and Gallery.open(path, encoder).search(["red"], 3) == [[]]
    upkeep.restore(path, list(COLOURS))
    build_gallery(encoder, corpus / "videos", path, append=True)
    assert ids(Gallery.open(path, encoder)) == set(COLOURS)


def test_long_files_are_cut_into_spans_that_share_seconds(corpus, tmp_path):  # noqa: F811
    assert spans(6.0, None, 0.0) == [None] == spans(6.0, 6.0, 2.0)
    assert spans(6.0, 3.0, 1.0) == [(0.0, 3.0), (2.0, 5.0), (4.0, 6.0)]
    assert spans(6.5, 2.0, 0.0) == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0), (6.0, 6.5)]
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, corpus / "videos", path, cut=Cut(2.0))
    gallery = Gallery.open(path, encoder)
    assert ids(gallery) == {f"{name}@{start}-{start + 2}" for name in COLOURS for start in (0, 2, 4)}
    hits = gallery.search(["blue"], 3)[0]
    hit = hits[0]
    assert hit.video == "blue@4-6" and hits[1].score < hit.score, "a span holds frames of its own seconds alone"
    assert (hit.span, hit.duration) == ((4.0, 6.0), pytest.approx(6, abs=0.1))
    assert hit.seconds == (4.0, 5.5) and hit.timestamps == (4.0, 5.0) and len(hit.weights) == 2
    assert gallery.file("blue@4-6") == gallery.file("blue") == corpus / "videos" / "blue.mp4"
    assert "blue" not in gallery and "blue@4-6" in gallery and len(gallery.table.find("blue")) == 3
    assert not {other.video for other in gallery.like("blue@4-6", 9)} & ids_of("blue")
    assert build_gallery(encoder, corpus / "videos", path, append=True).counts["videos"] == 9, "its files are there"
    upkeep.delete(path, ["blue"])
    assert not ids(gallery.refreshed()) & ids_of("blue")


@pytest.mark.parametrize(
    ("seconds", "overlap", "words"),
    [
        *((30.0, 29.999, "each begins 0.001 s after the one before"), (30.0, 29.9, "at least 0.3 s shorter")),
        *((0.05, 0.0, "at least 0.1 s shorter"), (3600.0, 3599.0, "at least 36 s shorter")),
        *((5.0, 5.0, "an overlap shorter than that"), (5.0, -1.0, "an overlap shorter"), (0.0, 0.0, "positive length")),
        *((float("nan"), 0.0, "positive length"), (5.0, float("nan"), "an overlap shorter")),
        *((float("inf"), 0.0, "positive length"), (float("inf"), float("inf"), "positive length")),
    ],
)
def test_spans_that_begin_too_close_to_one_another_are_refused(seconds, overlap, words):
    with pytest.raises(ExpectedError, match=words):
        Cut(seconds, overlap)


def test_a_file_of_too_many_spans_is_left_out_before_any_is_made(corpus, tmp_path, monkeypatch):  # noqa: F811
    assert all(Cut(*fine).step > 0 for fine in ((0.3, 0.2), (0.1, 0.0), (100.0, 99.0), (60.0, 59.0)))
    monkeypatch.setattr("distill.retrieval.sources.MOST_SPANS", 5)
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    with pytest.raises(ArtefactError, match=r"none of 3 videos could be used \(6 s make more than 5 segments"):
        build_gallery(encoder, corpus / "videos", tmp_path / "gallery", cut=Cut(1.0))
    assert build_gallery(encoder, corpus / "videos", tmp_path / "gallery", cut=Cut(2.0, 1.0)).counts["videos"] == 15


def ids_of(name):
    return {f"{name}@{start}-{start + 2}" for start in (0, 2, 4)}


def test_a_file_outside_the_video_folder_is_never_given(corpus, tmp_path):  # noqa: F811
    encoder, folder = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "videos"
    folder.mkdir()
    (folder / "link.mp4").symlink_to(corpus / "videos" / "red.mp4")
    (folder / "own.mp4").write_bytes((corpus / "videos" / "green.mp4").read_bytes())
    build_gallery(encoder, folder, tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery", encoder)
    assert gallery.file("own") == folder / "own.mp4"
    assert gallery.file("link") is None and gallery.file("../corpus") is None and gallery.file("nothing") is None
    lines = next((tmp_path / "gallery").rglob("videos.jsonl"))
    lines.write_bytes(lines.read_bytes().replace(b'"own.mp4"', b'"../x.mp4"'[:9]))
    build_gallery(encoder, corpus / "frames8", tmp_path / "unknown")
    assert Gallery.open(tmp_path / "unknown", encoder).file("red") is None, "its folder is not known"


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_fewer_bytes_change_scores_by_no_more_than_is_said(kind, corpus, tmp_path):  # noqa: F811
    generator = torch.Generator().manual_seed(1)
    exact, queries = (torch.nn.functional.normalize(torch.randn(n, 64, generator=generator), dim=1) for n in (40000, 5))
    stored = Vectors(encode(exact.numpy(), kind))
    scores, rows = map(torch.from_numpy, Products(stored).top(queries.numpy(), 10))
    assert np.array_equal(rows, stored.top(queries.numpy(), 10)[1]), "numpy finds the same"
    true = (queries.double() @ exact.double().T).gather(1, rows)
    unit = exact.abs() / 2048 if kind == "float16" else (exact.abs().amax(1) / 254)[:, None].expand_as(exact)
    bound = queries.abs().double() @ unit.double().T
    assert ((scores - true).abs() <= bound.gather(1, rows) + 1e-6).all()
    assert (scores - true).abs().max() < {"float16": 1e-4, "int8": 4e-3}[kind]
    best = (queries @ exact.T).topk(10).indices
    kept = sum(len({*a} & {*b}) for a, b in zip(rows.tolist(), best.tolist(), strict=True)) / 50
    assert kept >= {"float16": 0.98, "int8": 0.9}[kind]
    encoder = ColourEncoder(tmp_path / "release", 0.1)
    manifest = build_gallery(encoder, corpus / "frames8", tmp_path / "gallery", vectors=kind)
    assert manifest.counts["vector_bytes"] == {"float16": 6, "int8": 3 + 4}[kind]
    gallery = Gallery.open(tmp_path / "gallery", encoder)
    assert [hits[0].video for hits in gallery.search(list(COLOURS), 1)] == list(COLOURS)
    with pytest.raises(ArtefactError, match=f"holds {kind} vectors, not float32"):
        build_gallery(encoder, corpus / "videos", tmp_path / "gallery", vectors="float32", append=True)


@pytest.mark.parametrize("searched", [lambda vectors: vectors, Products], ids=["numpy", "torch"])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_searching_in_pieces_without_the_deleted_is_searching_what_is_left(kind, searched, monkeypatch):
    for module in ("vectors", "products"):
        monkeypatch.setattr(f"distill.retrieval.{module}.BLOCK", 7)
        monkeypatch.setattr(f"distill.retrieval.{module}.GATHERED", 5)
    monkeypatch.setattr("distill.retrieval.vectors.CHUNK", 11)
    monkeypatch.setattr("distill.retrieval.vectors.QUERIES", 2)
    rng = random.Random(3)
    for trial in range(40):
        generator = torch.Generator().manual_seed(trial)
        sizes = [rng.randint(1, 30) for _ in range(rng.randint(1, 4))]
        # whole numbers, and the scale of int8 is 1: every order of summing gives the same bits
        drawn = [torch.randint(-3, 4, (n, 3), generator=generator).float() for n in sizes]
        drawn = [torch.cat([some, torch.full((len(some), 1), 127.0)], 1) for some in drawn]
        stored = [Vectors(encode(some.numpy(), kind)) for some in drawn]
        assert all(np.array_equal(piece[:], some) for piece, some in zip(stored, drawn, strict=True))
        pieces = [searched(piece) for piece in stored]
        queries = torch.randint(-2, 3, (5, 4), generator=generator).float()
        total = sum(sizes)
        deleted = np.array(sorted(rng.sample(range(total), rng.randint(0, total))), np.int64)
        k = rng.randint(1, total + 2)
        live = [row for row in range(total) if row not in set(deleted.tolist())]
        products = queries @ torch.cat(drawn).T
        answers = (
            nearest(queries.numpy(), pieces, k, deleted),
            nearest_of(queries.numpy(), pieces, k, np.array(live, np.int64)),
        )
        for (scores, rows), query in itertools.product(answers if live else answers[:1], range(5)):
            expected = sorted(live, key=lambda row: (-float(products[query, row]), row))[:k]
            assert rows[query].tolist() == expected
            assert scores[query].tolist() == [float(products[query, row]) for row in expected]


def test_captions_and_likenesses_are_found(corpus, tmp_path, capsys, monkeypatch):  # noqa: F811
    loaded = two_stage_release(tmp_path / "release", kind="eercf", frames=4)
    path = str(tmp_path / "gallery")
    index.main([*map(str, (tmp_path / "release", corpus / "frames4", "--out", path, "--captions"))])
    assert "3 videos, 6 captions" in capsys.readouterr().out
    gallery, frames = Gallery.open(path, loaded), FrameSet(corpus / "frames4")
    texts = [caption for video in frames.videos for caption in video.captions]
    owners = {caption.id: video.id for video in frames.videos for caption in video.captions}
    video = loaded.encode_video(frames.pixels(0))
    with torch.inference_mode():
        full = loaded.model.similarity(loaded.encode_text([caption.text for caption in texts]), video)[:, 0]
    expected = [texts[number].id for number in full.argsort(descending=True).tolist()]
    for asked in ("red", video, corpus / "videos" / "red.mp4"):
        hits = gallery.search_captions(asked, 6)
        assert [hit.caption for hit in hits] == expected
        assert [hit.score for hit in hits] == pytest.approx(full.sort(descending=True).values.tolist(), abs=2e-4)
        assert all(hit.video == owners[hit.caption] for hit in hits)
    products = gallery.table.vectors(gallery.table.rows()) @ gallery.table.vectors(np.array([0]))[0]
    order = [row for row in (-products).argsort().tolist() if row != 0]
    assert [hit.video for hit in gallery.like("red", 5)] == [gallery.about(row)["id"] for row in order]
    assert gallery.like(corpus / "videos" / "red.mp4", 1)[0].video == "red", "a file is not of the gallery"
    with pytest.raises(ExpectedError, match="has no video 'pink'"):
        gallery.like("pink", 1)

    search.main([path, "--like", "red", "--captions", "--k", "2"])
    head, first, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["rank", "score", "video", "caption"] and first.endswith(hits[0].text)
    search.main([path, "--like", str(corpus / "videos" / "red.mp4"), "--json", "--k", "1"])
    assert json.loads(capsys.readouterr().out)[0]["video"] == "red"
    (tmp_path / "queries.txt").write_text("a red square\n\nsomething green\n")
    search.main([path, "--queries", str(tmp_path / "queries.txt"), "--json", "--k", "1"])
    assert list(json.loads(capsys.readouterr().out)) == ["a red square", "something green"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(" a red square\n\na red square\n"))
    search.main([path, "--queries", "-", "--json", "--k", "1"])
    assert list(json.loads(capsys.readouterr().out)) == ["a red square"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    with pytest.raises(ExpectedError, match="stdin: not UTF-8 at byte 0"):
        search.main([path, "--queries", "-"])
    os.mkfifo(tmp_path / "pipe")
    for read in (
        lambda: search.main([path, "--queries", str(tmp_path / "pipe")]),
        lambda: gallery_tool.main([path, "delete", "--file", str(tmp_path / "pipe")]),
    ):
        with pytest.raises(ArtefactError, match="pipe: a pipe or a device, expected a plain file"):
            read()
    with pytest.raises(ExpectedError, match="expected one of QUERY"):
        search.main([path, "a", "--like", "red"])

    (tmp_path / "ids.txt").write_text("\n red \n")
    gallery_tool.main([path, "delete", "--file", str(tmp_path / "ids.txt")])
    assert "2 videos (1 deleted) in 1 segments" in capsys.readouterr().out
    left = gallery.refreshed()
    assert {hit.video for hit in left.search_captions("blue", 9)} == {"green", "blue"}
    gallery_tool.main([path, "compact"])
    assert "2 videos (0 deleted) in 1 segments, 4 captions" in capsys.readouterr().out
    assert left.refreshed().search_captions("blue", 9) == left.search_captions("blue", 9)
    build_gallery(loaded, corpus / "videos", tmp_path / "without")
    with pytest.raises(ExpectedError, match="has no captions"):
        Gallery.open(tmp_path / "without", loaded).search_captions("red", 1)


class SlowEncoder(ColourEncoder):
    """Takes its time, so that there is a middle to be killed in."""

    def encode_frames(self, pixels, real):
        time.sleep(0.05)
        return super().encode_frames(pixels, real)


@pytest.fixture
def processes():
    """Starts processes by forking one that has imported all this: at once, so that kills fall into their work."""
    prepare()
    return context


def killed(process, after, told=None):
    """Whether a process had to be killed, so many seconds after it told of itself."""
    process.start()
    if told is not None:
        assert told.poll(60), "it never told of itself"
    process.join(after)
    alive = process.is_alive()
    process.kill()
    process.join()
    assert alive or process.exitcode == 0
    return alive


def _index_in_parts(encoder, videos, path):
    parts.PART = 1
    build_gallery(encoder, videos, path)


def test_an_index_that_is_killed_again_and_again_ends_with_the_same_bytes(corpus, processes, tmp_path):  # noqa: F811
    encoder, rng = SlowEncoder(tmp_path / "release", 0.1), random.Random(5)
    for number in range(3):
        for name in COLOURS:
            file = tmp_path / "videos" / f"{name}{number}.mp4"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes((corpus / "videos" / f"{name}.mp4").read_bytes())
    (tmp_path / "videos" / "broken.mp4").write_text("text")
    build_gallery(encoder, tmp_path / "videos", tmp_path / "whole")
    kills, args = 0, (encoder, tmp_path / "videos", tmp_path / "gallery")
    while killed(processes.Process(target=_index_in_parts, args=args), rng.uniform(0.05, 0.3) * (1 + kills / 20)):
        kills += 1  # each lives longer than the one before, or a busy machine might never finish a part
        assert kills < 200
    assert kills >= 1
    assert tree_bytes(tmp_path / "gallery") == tree_bytes(tmp_path / "whole")
    assert not (tmp_path / "gallery" / ".work").exists()


def _folder(step):
    """The number of the folder that the step-th change is about."""
    return (step // 5 * 2 + min(step % 5, 1)) % 8


def _change(encoder, path, videos, step):
    """The step-th of an endless row of changes, which add, delete, compact and restore."""
    if step % 5 < 2:
        changes = {"sync" if step % 5 else "append": True}
        build_gallery(encoder, videos / f"{_folder(step)}", path, videos=videos, **changes)
    elif step % 5 == 2:
        upkeep.delete(path, [f"{_folder(step)}/red"])
    elif step % 5 == 3:
        upkeep.compact(path)
    else:
        with suppress(ExpectedError):  # a process that was killed may have done it before it told
            upkeep.restore(path, [f"{_folder(step)}/red"])


def _after(steps):
    """Return what the gallery holds after so many changes."""
    held = {"start/blue"}
    for step in range(steps):
        if step % 5 < 2:
            held |= {f"{_folder(step)}/red", f"{_folder(step)}/green"}
        elif step % 5 == 2:
            held -= {f"{_folder(step)}/red"}
    return held


def _changes(encoder, path, videos, first, told):
    for step in range(first, first + 1000):
        _change(encoder, path, videos, step)
        told.send(step)  # acknowledged


def test_whatever_is_killed_when_nothing_that_was_acknowledged_is_lost(corpus, processes, tmp_path):  # noqa: F811
    encoder, path, videos, rng = (
        ColourEncoder(tmp_path / "r", 0.1),
        tmp_path / "gallery",
        tmp_path / "v",
        random.Random(7),
    )
    for folder in ("start", *map(str, range(8))):
        (videos / folder).mkdir(parents=True)
        for name in ("blue",) if folder == "start" else ("red", "green"):
            (videos / folder / f"{name}.mp4").write_bytes((corpus / "videos" / f"{name}.mp4").read_bytes())
    build_gallery(encoder, videos / "start", path, videos=videos)
    step, between = 0, 0
    for _ in range(25):
        heard, told = processes.Pipe(duplex=False)
        process = processes.Process(target=_changes, args=(encoder, path, videos, step, told))
        assert killed(process, rng.uniform(0.0, 0.3), told=heard)
        acknowledged = step
        while heard.poll():
            acknowledged = heard.recv() + 1
        heard.close()
        told.close()
        upkeep.verify(path)
        found = ids(Gallery.open(path, encoder))
        assert found in (_after(acknowledged), _after(acknowledged + 1))
        between += found != _after(acknowledged)
        step = acknowledged if found == _after(acknowledged) else acknowledged + 1
    assert step > 20, "it got somewhere"
    build_gallery(encoder, corpus / "videos", path, append=True)
    assert ids(Gallery.open(path, encoder)) == _after(step) | set(COLOURS)


@pytest.mark.slow
def test_one_process_changes_a_gallery_and_any_number_read_it(corpus, tmp_path):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, corpus / "videos", path)
    from distill.retrieval import generation

    with generation.changing(path), pytest.raises(ArtefactError, match="another process is changing this gallery"):
        upkeep.compact(path)
    stop, wrong = threading.Event(), []

    def read():
        gallery = Gallery.open(path, encoder)
        while not stop.is_set():
            try:
                gallery = gallery.refreshed()
                hits = gallery.search(["green", "blue"], 3)
                assert [answer[0].video for answer in hits] == ["green", "blue"], hits
                assert Gallery.open(path, encoder).row("blue") is not None
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        upkeep.delete(path, ["red"])
        upkeep.compact(path)
        upkeep.restore(path, ["red"])
        build_gallery(encoder, corpus / "videos", path, append=True)
        upkeep.compact(path)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_damaged_file_is_found(corpus, tmp_path):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, corpus / "videos", path)
    vectors = path / "segments" / "00001" / "vectors.safetensors"
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    assert len(Gallery.open(path, encoder)) == 3, "opening does not read vectors"
    with pytest.raises(ArtefactError, match="sha256"):
        gallery_tool.main([str(path), "verify"])
    vectors.write_bytes(content[:-1])
    with pytest.raises(ArtefactError, match="truncated or overwritten"):
        Gallery.open(path, encoder)


def test_files_are_found_by_rule(tmp_path):
    for name in ("b.MP4", "a.b.mp4", "sub/c.webm", "sub/.d.mp4", ".trash/e.mp4", "notes.txt", "é ü.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    root, found, left_out = find(tmp_path)
    assert root == tmp_path and not left_out
    assert [(file.id, file.source) for file in found] == [
        *(("a.b", "a.b.mp4"), ("b", "b.MP4"), ("sub/c", "sub/c.webm"), ("é ü", "é ü.mkv")),
    ]
    (tmp_path / "list.txt").write_text("sub/c.webm\n\n missing.mp4 \nb.MP4\nb.MP4\n")
    root, found, _ = find(tmp_path / "list.txt")
    assert root == tmp_path and [file.id for file in found] == ["sub/c", "missing", "b"]
    assert found[1].bytes == 0
