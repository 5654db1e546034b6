"""Galleries that live: what changed in a folder is taken over whole or not at all, what was deleted stays deleted."""

import io
import json
import logging
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tree_bytes
from PIL import Image
from test_gallery import COLOURS, ColourEncoder, corpus  # noqa: F401 a fixture
from test_indexing import SlowEncoder, ids, killed, processes  # noqa: F401 a fixture
from test_release import make, release

from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import NAME
from distill.packing.packing import PackConfig, pack
from distill.retrieval import Gallery, generation, parts, upkeep
from distill.retrieval.indexing import build_gallery
from distill.retrieval.ledger import notes
from distill.retrieval.sources import Cut
from tools import gallery as gallery_tool
from tools import index


@pytest.fixture
def videos(corpus, tmp_path):  # noqa: F811
    """A folder of its own: red.mp4, green.mp4, sub/blue.mp4 and a file that is no video."""
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for name in ("red", "green", "sub/blue"):
        put(corpus, folder, name, Path(name).name)
    (folder / "broken.mp4").write_text("no video")
    return folder


def put(corpus, folder, name, colour):  # noqa: F811
    """Write the video of a colour under a name; each time as if later, however coarse the clock is."""
    path = folder / f"{name}.mp4"
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_bytes((corpus / "videos" / f"{colour}.mp4").read_bytes())
    os.utime(path, ns=(max(before + 10**9, 10**18),) * 2)


def best(path, encoder):
    """The best hit of every colour, whose score says whether it shows that colour."""
    hits = Gallery.open(path, encoder).search(list(COLOURS), 1)
    return {name: hit.video for name, (hit,) in zip(COLOURS, hits, strict=True) if hit.score > 0.99}


def test_a_sync_takes_over_new_changed_and_deleted_files_at_once(corpus, videos, tmp_path, caplog):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    with pytest.raises(ArtefactError, match="no gallery to sync; make one without --sync"):
        build_gallery(encoder, videos, path, sync=True)
    first = build_gallery(encoder, videos, path)
    server = Gallery.open(path, encoder)
    put(corpus, videos, "green", "red")
    put(corpus, videos, "new", "green")
    (videos / "sub" / "blue.mp4").unlink()
    caplog.set_level(logging.INFO)
    assert build_gallery(encoder, videos, path, append=True).counts["videos"] == 4, "only what is new"
    assert "1 files have changed and 1 are gone since they were indexed; --sync takes that over" in caplog.text
    manifest = build_gallery(encoder, videos, path, sync=True)
    assert "0 files are new, 1 have changed, 1 are gone" in caplog.text
    assert manifest.counts["generation"] == 3 and manifest.counts["videos"] == 3 and manifest.counts["rows"] == 5
    assert ids(Gallery.open(path, encoder)) == {"red", "green", "new"}
    assert best(path, encoder)["green"] == "new", "the row of green.mp4 is red now"
    assert len(server.search(["blue"], 9)[0]) == 3 and server.manifest.id == first.id, "an open gallery keeps its state"
    fresh = build_gallery(encoder, videos, tmp_path / "fresh")
    assert fresh.counts["videos"] == 3
    one, two = Gallery.open(path, encoder), Gallery.open(tmp_path / "fresh", encoder)
    for name in ids(two):
        rows = np.array([one.row(name)]), np.array([two.row(name)])
        assert np.allclose(one.table.vectors(rows[0]), two.table.vectors(rows[1]), atol=1e-6)
        assert one.poster(name) == two.poster(name)
    upkeep.verify(path)


@pytest.mark.parametrize("how", ["make", "append", "sync"])
def test_an_unchanged_folder_leaves_the_gallery_as_it_is(how, videos, tmp_path, capsys):
    release(tmp_path / "release", *make())
    command = [*map(str, (tmp_path / "release", videos, "--out", tmp_path / "gallery", "--workers", "1"))]
    index.main(command)
    said = capsys.readouterr().out
    assert "left out broken (broken.mp4): not a video" in said and "of a poster)" in said
    before = tree_bytes(tmp_path / "gallery")
    for _ in range(2):
        index.main(command + ([] if how == "make" else [f"--{how}"]))
        said = capsys.readouterr().out
        assert said.count("\n") == 1 and ": nothing to do: 3 videos, gallery " in said
    assert tree_bytes(tmp_path / "gallery") == before


def test_what_was_deleted_stays_deleted_until_it_is_restored(corpus, videos, tmp_path):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, videos, path, cut=Cut(2.0))
    upkeep.delete(path, ["red", "green@2-4"])
    assert upkeep.compact(path).counts["rows"] == 5
    before = generation.read(path)
    for how in ("append", "sync"):
        assert build_gallery(encoder, videos, path, cut=Cut(2.0), **{how: True}) == before
    put(corpus, videos, "red", "blue")
    put(corpus, videos, "green", "red")
    build_gallery(encoder, videos, path, sync=True)
    left = {"green@0-2", "green@4-6", *(f"sub/blue@{start}-{start + 2}" for start in (0, 2, 4))}
    assert ids(Gallery.open(path, encoder)) == left, "its file changed, and it is cut as before"
    with pytest.raises(ExpectedError, match=r"'blue' to restore; deleted from it: 'green@2-4', 'red'"):
        upkeep.restore(path, ["blue"])
    gallery_tool.main([str(path), "restore", "red", "green@2-4"])
    build_gallery(encoder, videos, path, append=True, cut=Cut(2.0))
    assert ids(Gallery.open(path, encoder)) == left | {
        "green@2-4",
        *(f"red@{start}-{start + 2}" for start in (0, 2, 4)),
    }
    assert len(Gallery.open(path, encoder).table.rows()) == 9, "each once"
    upkeep.delete(path, ["red@0-2"])
    upkeep.restore(path, ["red@0-2"])
    put(corpus, videos, "red", "green")
    build_gallery(encoder, videos, path, sync=True)
    found = {hit.video: hit.score for hit in Gallery.open(path, encoder).search(["green"], 9)[0]}
    assert found["red@2-4"] > 0.99 and found["red@4-6"] > 0.99, "no span is that of the file as it was, which was blue"


def test_a_span_that_cannot_be_read_is_noted_until_its_file_changes(corpus, videos, tmp_path):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    encoder.frames_config["sampler"]["min_frames"] = 2

    def noted(**changes):
        manifest = build_gallery(encoder, videos, path, cut=Cut(2.5), **changes)
        return {note["video"] for note in notes(path, manifest)}

    short = {f"{name}@5-6" for name in ("red", "green", "sub/blue")}
    assert noted() == {"broken", *short} and "red@0-2.5" in ids(Gallery.open(path, encoder))
    put(corpus, videos, "new", "green")
    assert noted(append=True) == {"broken", "new@5-6", *short}, "each stays noted beside what is new"
    put(corpus, videos, "red", "blue")
    (videos / "green.mp4").unlink()
    assert noted(sync=True) == {"broken", "new@5-6", "red@5-6", "sub/blue@5-6"}
    before = generation.read(path)
    assert noted(sync=True) and generation.read(path) == before, "nothing to do"


def test_a_file_that_could_not_be_read_is_tried_again_when_it_changes(corpus, videos, tmp_path):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, videos, path)
    put(corpus, videos, "broken", "blue")
    for how in ("append", "sync"):
        manifest = build_gallery(encoder, videos, path, **{how: True})
        assert manifest.counts["videos"] == 4 and not list((path / "notes").iterdir())
    os.truncate(videos / "broken.mp4", 99)
    manifest = build_gallery(encoder, videos, path, sync=True)
    assert manifest.counts["videos"] == 3 and "broken" not in Gallery.open(path, encoder)
    assert [json.loads(line)["video"] for line in next((path / "notes").iterdir()).read_text().splitlines()] == [
        "broken"
    ]
    (videos / "broken.mp4").unlink()
    build_gallery(encoder, videos, path, sync=True)
    assert not list((path / "notes").iterdir()), "a file that is gone has no note"


def test_a_sync_of_one_source_leaves_the_others_alone(corpus, videos, tmp_path):  # noqa: F811
    encoder, path, other = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery", tmp_path / "other"
    build_gallery(encoder, videos, path)
    other.mkdir()
    put(corpus, other, "own", "blue")
    put(corpus, other, "red", "green")
    build_gallery(encoder, other, path, append=True)
    (videos / "green.mp4").unlink()
    build_gallery(encoder, other, path, sync=True)
    gallery = Gallery.open(path, encoder)
    assert ids(gallery) == {"red", "green", "sub/blue", "own"}, "green is gone from another folder"
    assert gallery.file("red") == videos / "red.mp4" and gallery.file("own") == other / "own.mp4"
    build_gallery(encoder, videos / "sub", path, videos=videos, sync=True)
    assert ids(Gallery.open(path, encoder)) == {"red", "green", "sub/blue", "own"}, "green is not below that folder"
    (videos / "sub" / "blue.mp4").unlink()
    build_gallery(encoder, videos, path, sync=True)
    assert ids(Gallery.open(path, encoder)) == {"red", "own"}


def test_a_frame_set_is_synced_by_the_hashes_of_its_frames(corpus, tmp_path):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    frames = shutil.copytree(corpus / "frames8", tmp_path / "frames")
    before = build_gallery(encoder, frames, path)
    assert build_gallery(encoder, frames, path, sync=True).id == before.id
    others = shutil.copytree(corpus / "videos", tmp_path / "others")
    shutil.copy(others / "red.mp4", others / "green.mp4")
    shutil.rmtree(frames)
    config = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=8), size=32)
    pack(corpus / "all.csv", "csv", others, frames, config, workers=1)
    counts = build_gallery(encoder, frames, path, sync=True).counts
    assert counts["videos"] == 3 and counts["rows"] == 4 and best(path, encoder).keys() == {"red", "blue"}
    (tmp_path / "list.txt").write_text("".join(f"{corpus / 'videos' / name}.mp4\n" for name in COLOURS))
    build_gallery(encoder, tmp_path / "list.txt", tmp_path / "listed")
    (tmp_path / "list.txt").write_text(f"{corpus / 'videos' / 'red.mp4'}\n{corpus / 'videos' / 'blue.mp4'}\n")
    build_gallery(encoder, tmp_path / "list.txt", tmp_path / "listed", sync=True)
    assert ids(Gallery.open(tmp_path / "listed", encoder)) == {"red", "blue"}


def _sync(encoder, videos, path):
    parts.PART = 1
    build_gallery(encoder, videos, path, sync=True)


@pytest.mark.slow
def test_a_sync_that_is_killed_again_and_again_is_whole_or_not_there(corpus, videos, processes, tmp_path):  # noqa: F811
    encoder, path, rng = SlowEncoder(tmp_path / "release", 0.1), tmp_path / "gallery", random.Random(3)
    build_gallery(encoder, videos, path)
    before = ids(Gallery.open(path, encoder))
    put(corpus, videos, "green", "red")
    (videos / "red.mp4").unlink()
    for number in range(6):
        put(corpus, videos, f"new{number}", "blue")
    after = {"green", "sub/blue", *(f"new{number}" for number in range(6))}
    shutil.copytree(path, tmp_path / "whole", ignore=shutil.ignore_patterns(".lock"))
    build_gallery(encoder, videos, tmp_path / "whole", sync=True)
    kills, args = 0, (encoder, videos, path)
    while killed(processes.Process(target=_sync, args=args), rng.uniform(0.05, 0.3) * (1 + kills / 20)):
        kills += 1
        assert ids(Gallery.open(path, encoder)) in (before, after), "before or after, never between"
        assert kills < 200
    assert kills >= 1 and ids(Gallery.open(path, encoder)) == after
    assert tree_bytes(path) == tree_bytes(tmp_path / "whole")


def test_a_look_for_a_new_generation_reads_no_manifest(videos, tmp_path, monkeypatch):
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, videos, path)
    gallery, read = Gallery.open(path, encoder), []
    parse = generation.read_manifest
    monkeypatch.setattr(generation, "read_manifest", lambda *given: read.append(given) or parse(*given))
    assert gallery.refreshed() is gallery and not read
    (path / NAME).write_bytes((path / NAME).read_bytes())
    assert gallery.refreshed() is gallery and len(read) == 1, "another file of the same content"
    assert gallery.refreshed() is gallery and len(read) == 1
    (path / NAME).unlink()
    with pytest.raises(ArtefactError, match="not finished"):
        gallery.refreshed()


def test_opening_and_searching_read_no_note(videos, tmp_path):
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, videos, path)
    for folder in ("notes", "files"):
        ledger = next((path / folder).iterdir())
        ledger.write_bytes(b"\xff" * ledger.stat().st_size)
    assert len(Gallery.open(path, encoder).search(["red"], 3)[0]) == 3
    with pytest.raises(ArtefactError, match=r"00001\.jsonl: line 1: damaged"):
        build_gallery(encoder, videos, path, sync=True)


def test_posters_show_the_frame_that_weighs_most_and_stay_with_their_rows(corpus, videos, tmp_path):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, videos, path, cut=Cut(3.0), posters=False)
    gallery = Gallery.open(path, encoder)
    assert gallery.poster("red@0-3") is None and not list(path.rglob("posters*"))
    put(corpus, videos, "later", "blue")
    build_gallery(encoder, videos, path, append=True, cut=Cut(3.0))
    mixed = gallery.refreshed()
    assert mixed.poster("red@0-3") is None and mixed.poster("nothing") is None
    kept = {name: mixed.poster(name) for name in ids(mixed)}
    assert {name for name, jpeg in kept.items() if jpeg} == {"later@0-3", "later@3-6"}
    upkeep.delete(path, ["green", "later@3-6"])
    assert mixed.refreshed().poster("later@3-6") is None, "a deleted row shows nothing"
    upkeep.compact(path)
    compacted = mixed.refreshed()
    assert {name: compacted.poster(name) for name in ids(compacted)} == {n: kept[n] for n in ids(compacted)}
    upkeep.delete(path, ["later"])
    upkeep.compact(path)
    assert not list(path.rglob("posters*")), "no row has one"

    for source in (corpus / "frames8", corpus / "videos"):
        build_gallery(encoder, source, tmp_path / "of" / source.name)
        full = Gallery.open(tmp_path / "of" / source.name, encoder)
        for row, name in enumerate(full.about(row)["id"] for row in range(3)):
            weights = full.table.frame_weights(np.array([row]))[0]
            number = next(n for n, video in enumerate(FrameSet(corpus / "frames8").videos) if video.id == name)
            frame = FrameSet(corpus / "frames8").pixels(number)[int(weights.argmax())]
            with Image.open(io.BytesIO(full.poster(name))) as picture:
                shown = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
            assert shown.shape == frame.shape and np.abs(shown.astype(int) - frame).mean() < 8
    bad = next((tmp_path / "of" / "frames8").rglob("posters.bin"))
    content = bad.read_bytes()
    bad.write_bytes(b"\0" * len(content))
    with pytest.raises(ArtefactError, match=r"posters\.bin: damaged \(row 0 is no JPEG\)"):
        Gallery.open(tmp_path / "of" / "frames8", encoder).poster("red")


def test_a_file_whose_id_the_gallery_has_from_another_is_noted_until_one_of_them_is_renamed(corpus, videos, tmp_path):  # noqa: F811
    encoder, path, more = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery", tmp_path / "more"
    (videos / "broken.mp4").unlink()
    before = build_gallery(encoder, videos, path, cut=Cut(2.0))
    more.mkdir()
    put(corpus, more, "red@0-2", "blue")
    clash = {
        "of": 1,
        "video": "red@0-2",
        "source": "red@0-2.mp4",
        "reason": "the gallery has its id from red.mp4; rename one",
    }
    for _ in range(2):
        manifest = build_gallery(encoder, more, path, append=True)
        assert manifest.counts["videos"] == before.counts["videos"] and notes(path, manifest) == [clash]
    (videos / "red.mp4").unlink()
    build_gallery(encoder, videos, path, sync=True)
    manifest = build_gallery(encoder, more, path, append=True)
    assert manifest.counts["videos"] == before.counts["videos"] - 3 + 1 and not notes(path, manifest)
    assert Gallery.open(path, encoder).file("red@0-2") == more / "red@0-2.mp4"


def test_files_in_a_folder_that_cannot_be_listed_are_not_gone(corpus, videos, tmp_path, monkeypatch, caplog):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    disk, scandir = tmp_path / "disk", os.scandir
    (disk / "deep").mkdir(parents=True)
    put(corpus, disk, "deep/far", "red")
    (videos / "linked").symlink_to(disk)
    build_gallery(encoder, videos, path)
    disk.rename(tmp_path / "away")
    (videos / "green.mp4").unlink()

    def guarded(place="."):
        if str(place).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    caplog.set_level(logging.INFO)
    build_gallery(encoder, videos, path, sync=True)
    assert ids(Gallery.open(path, encoder)) == {"red", "sub/blue", "linked/deep/far"}
    assert "0 files are new, 0 have changed, 1 are gone" in caplog.text
    assert "2 files stay, because their folders cannot be listed, or are links to nothing" in caplog.text
    monkeypatch.undo()
    (videos / "linked").unlink()
    (videos / "sub" / "blue.mp4").unlink()
    build_gallery(encoder, videos, path, sync=True)
    assert ids(Gallery.open(path, encoder)) == {"red"}


def test_a_file_whose_length_cannot_be_read_any_more_has_changed(corpus, videos, tmp_path, caplog):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, videos, path, cut=Cut(2.0))
    os.truncate(videos / "red.mp4", 99)
    caplog.set_level(logging.INFO)
    build_gallery(encoder, videos, path, cut=Cut(2.0), append=True)
    assert "1 files have changed and 0 are gone since they were indexed" in caplog.text
    manifest = build_gallery(encoder, videos, path, sync=True)
    assert "0 files are new, 1 have changed, 0 are gone" in caplog.text and manifest.counts["videos"] == 6
    assert {note["video"] for note in notes(path, manifest)} == {"broken", "red"}
    put(corpus, videos, "red", "red")
    assert build_gallery(encoder, videos, path, cut=Cut(2.0), append=True).counts["videos"] == 9


def test_what_is_appended_is_cut_as_the_source_was_before(corpus, videos, tmp_path):  # noqa: F811
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    build_gallery(encoder, videos, path, cut=Cut(2.0))
    put(corpus, videos, "late", "red")
    build_gallery(encoder, videos, path, append=True)
    added = Gallery.open(path, encoder)
    assert {"late@0-2", "late@2-4"} <= ids(added)
    assert build_gallery(encoder, videos, path, sync=True) == added.manifest, "and a sync has nothing to do"
