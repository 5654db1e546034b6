"""Galleries that are moved, with their videos or without, and those of the version before, which held other paths."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_compatibility import FOLDER as OLD
from test_gallery import COLOURS, ColourEncoder, corpus  # noqa: F401 a fixture
from test_indexing import ids
from test_release import make, release
from test_sync import put, videos  # noqa: F401 a fixture

from distill.errors import ExpectedError
from distill.manifest import NAME
from distill.release.release import load
from distill.retrieval import Gallery, upkeep
from distill.retrieval.indexing import build_gallery
from distill.retrieval.ledger import notes
from tools import gallery as gallery_tool
from tools import index, search


def test_a_gallery_is_found_with_its_videos_wherever_both_are_moved(videos, tmp_path, monkeypatch, capsys):  # noqa: F811
    release(tmp_path / "release", *make())
    monkeypatch.chdir(tmp_path)
    index.main(["release", "videos", "--out", "gallery", "--workers", "1"])
    stored = (tmp_path / "gallery" / NAME).read_text()
    assert str(tmp_path) not in stored and '"../videos"' in stored and '"../release"' in stored
    (tmp_path / "a" / "place").mkdir(parents=True)
    for name in ("release", "videos", "gallery"):
        (tmp_path / name).rename(tmp_path / "a" / "place" / name)
    place = tmp_path / "a" / "place"
    (tmp_path / "link").symlink_to(place / "gallery")
    for here, gallery in ((tmp_path, place / "gallery"), (place / "videos", "../gallery"), (tmp_path / "a", "../link")):
        monkeypatch.chdir(here)
        capsys.readouterr()
        search.main([str(gallery), "red", "--json"])
        hits = json.loads(capsys.readouterr().out)
        assert {hit["source"] for hit in hits} == {
            f"{place / 'videos' / name}.mp4" for name in ("red", "green", "sub/blue")
        }
        index.main([str(place / "release"), str(place / "videos"), "--out", str(gallery), "--sync", "--workers", "1"])
        assert "nothing to do" in capsys.readouterr().out


def test_videos_that_were_moved_alone_are_found_by_their_new_folder(corpus, videos, tmp_path, capsys):  # noqa: F811
    release(tmp_path / "release", *make())
    path, new = str(tmp_path / "gallery"), tmp_path / "new"
    index.main([str(tmp_path / "release"), str(videos), "--out", path, "--workers", "1"])
    videos.rename(new)
    capsys.readouterr()
    search.main([path, "red", "--json", "--videos", str(new)])
    assert all(Path(hit["source"]).is_file() for hit in json.loads(capsys.readouterr().out))
    with pytest.raises(ExpectedError, match=r"--videos .*none: no such folder"):
        search.main([path, "red", "--videos", str(tmp_path / "none")])
    loaded = load(tmp_path / "release")
    assert Gallery.open(path, loaded).file("red") == videos / "red.mp4", "where it was"
    gallery = Gallery.open(path, loaded, new)
    assert gallery.file("red") == new / "red.mp4" and gallery.file("sub/blue") == new / "sub" / "blue.mp4"
    (new / "red.mp4").unlink()
    gallery_tool.main([path, "show", "--videos", str(new)])
    said = capsys.readouterr().out
    assert f"videos in {videos} (not there" in said and f"1 videos have no file in {new}" in said
    gallery_tool.main([path, "move", "--videos", str(new)])
    assert f"videos in {new}\n" in capsys.readouterr().out
    assert gallery.refreshed().file("sub/blue") == new / "sub" / "blue.mp4"
    index.main([str(tmp_path / "release"), str(new), "--out", path, "--sync", "--workers", "1"])
    assert ids(Gallery.open(path, loaded)) == {"green", "sub/blue"}, "the source was moved with its folder"
    for where, words in ((None, "nothing to store"), (tmp_path / "none", "expected --videos to name a folder")):
        with pytest.raises(ExpectedError, match=words):
            upkeep.move(Path(path), where, None)


def as_before(path, given, encoder):
    """Make of a gallery one of format 2: its folders are as they were given, and it has neither ledger nor frames."""
    manifest = json.loads((path / NAME).read_text())
    made = {"source": given, "items_sha256": manifest["config"]["made_of"][0]["items_sha256"]}
    manifest["config"] |= {"folders": [given], "release": str(encoder.path), "made_of": [made]}
    del manifest["config"]["stored_frames"], manifest["counts"]["frame_bytes"]
    frames = [name for name in manifest["files"] if name.endswith("frames.safetensors")]
    files = {
        name: file for name, file in manifest["files"].items() if name.startswith("segments") and name not in frames
    }
    manifest |= {"version": 2, "files": files}
    for name in frames:
        (path / name).unlink()
    (path / NAME).write_text(json.dumps(manifest))
    shutil.rmtree(path / "files")
    return Gallery.open(path, encoder)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_gallery_of_the_version_before_is_synced_and_keeps_what_was_deleted(absolute, videos, tmp_path, monkeypatch):  # noqa: F811
    """Only its rows tell of its files and of what was deleted."""
    encoder, path = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery"
    monkeypatch.chdir(tmp_path)
    (videos / "broken.mp4").unlink()
    build_gallery(encoder, videos, path, posters=False)
    given = str(videos) if absolute else "videos"
    before = as_before(path, given, encoder)
    assert before.manifest.version == 2 and before.poster("red") is None
    assert before.file("red") == Path(given) / "red.mp4"
    for how in ("make", "append"):
        assert build_gallery(encoder, videos, path, **({} if how == "make" else {how: True})).id == before.manifest.id
    upkeep.delete(path, ["red"])
    assert build_gallery(encoder, videos, path, append=True).version == 2, "still nothing to do"
    after = build_gallery(encoder, videos, path, sync=True)
    assert (after.version, after.config["folders"], after.counts["videos"]) == (4, ["../videos"], 2)
    assert build_gallery(encoder, videos, path, sync=True).id == after.id
    monkeypatch.chdir("/")
    assert Gallery.open(path, encoder).file("green") == videos / "green.mp4"
    upkeep.restore(path, ["red"])
    (videos / "green.mp4").unlink()
    build_gallery(encoder, videos, path, sync=True)
    assert ids(Gallery.open(path, encoder)) == {"red", "sub/blue"}


def test_a_gallery_of_the_version_before_is_moved_and_remembers_what_was_deleted(videos, tmp_path):  # noqa: F811
    encoder, path, moved = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery", tmp_path / "moved"
    build_gallery(encoder, videos, path, posters=False)
    as_before(path, str(videos), encoder)
    upkeep.delete(path, ["red"])
    videos.rename(moved)
    assert upkeep.move(path, moved, None).version == 4
    upkeep.verify(path)
    assert upkeep.compact(path).counts["rows"] == 2
    build_gallery(encoder, moved, path, sync=True)
    gallery = Gallery.open(path, encoder)
    assert ids(gallery) == {"green", "sub/blue"} and gallery.file("green") == moved / "green.mp4"


def test_a_sync_of_another_folder_deletes_nothing_of_the_version_before(corpus, videos, tmp_path):  # noqa: F811
    encoder, path, other = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery", tmp_path / "other"
    build_gallery(encoder, videos, path, posters=False)
    as_before(path, str(videos), encoder)
    other.mkdir()
    put(corpus, other, "own", "blue")
    build_gallery(encoder, other, path, sync=True)
    assert ids(Gallery.open(path, encoder)) == {"red", "green", "sub/blue", "own"}


def test_galleries_of_the_version_before_take_new_videos(corpus, tmp_path):  # noqa: F811
    path, loaded = shutil.copytree(OLD / "tokens", tmp_path / "gallery"), load(OLD / "eercf")
    old = Gallery.open(path, loaded)
    (answers,) = old.search(["a red square"], 3, exact=True)
    build_gallery(loaded, OLD / "frames", path, sync=True, captions=True)
    new = old.refreshed()
    assert new.manifest.version == 4 and ids(new) == ids(old)
    assert new.search(["a red square"], 3, exact=True)[0] == [
        replace(hit, source=os.path.abspath(hit.source)) for hit in answers
    ]


def test_a_place_from_which_files_came_before_the_others_moved_there_is_one_place(corpus, videos, tmp_path):  # noqa: F811
    encoder, path, new = ColourEncoder(tmp_path / "release", 0.1), tmp_path / "gallery", tmp_path / "new"
    build_gallery(encoder, videos, path)
    videos.rename(new)
    put(corpus, new, "late", "red")
    put(corpus, new, "later", "red")
    assert build_gallery(encoder, new, path, sync=True).counts["videos"] == 5, "the others are of a folder that is gone"
    upkeep.move(path, new, None)
    put(corpus, new, "late", "green")
    (new / "later.mp4").unlink()
    (new / "red.mp4").unlink()
    manifest = build_gallery(encoder, new, path, sync=True)
    assert ids(Gallery.open(path, encoder)) == {"late", "green", "sub/blue"}
    assert [note["video"] for note in notes(path, manifest)] == ["broken"], "once"
    hits = Gallery.open(path, encoder).search(["green"], 2)[0]
    assert {hit.video for hit in hits} == {"late", "green"}, "its row is that of its new bytes"
