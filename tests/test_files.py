"""Every file of every folder is found, or a line says why not: links, loops, doubles, endings, lists."""

import logging
import os
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gallery import ColourEncoder, corpus  # noqa: F401 a fixture

from distill.data.files import find
from distill.data.signatures import is_video_file
from distill.data.video import EXTENSIONS
from distill.errors import ArtefactError
from distill.retrieval.gallery import Gallery
from distill.retrieval.indexing import build_gallery
from distill.retrieval.ledger import notes
from distill.retrieval.sources import Cut

WRITTEN = {"mp4": "mpeg4", "mov": "mpeg4", "matroska": "mpeg4", "webm": "libvpx", "avi": "mpeg4", "flv": "flv"}
WRITTEN |= {"mpegts": "mpeg2video", "mpeg": "mpeg2video", "vob": "mpeg2video", "asf": "msmpeg4v3", "3gp": "mpeg4"}
WRITTEN |= {"ogg": "libvpx", "mxf": "mpeg2video", "rm": "rv20", "m4v": "mpeg4", "mpeg2video": "mpeg2video"}
WRITTEN |= {"gif": "gif"}


def place(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def ids(folder: Path) -> list[str]:
    return [file.id for file in find(folder)[1]]


def film(path: Path, container: str, codec: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = 128, 96
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for _ in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((96, 128, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode())


def test_linked_folders_are_searched_and_loops_end(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    videos = place(tmp_path / "videos", "a.mp4", "sub/b.mp4", "sub/deep/c.mp4")
    far = place(tmp_path / "far", "d.mp4", "more/e.mp4")
    (videos / "link").symlink_to(far)
    (videos / "again").symlink_to(far)
    (videos / "up").symlink_to("..")
    (videos / "sub" / "self").symlink_to(".")
    (videos / "inner").symlink_to("sub/deep")
    (far / "back").symlink_to(videos)
    (far / "knot").symlink_to("knot")
    (videos / "gone").symlink_to("nowhere")
    (videos / ".hidden").symlink_to(far)
    (videos / "file.mp4").symlink_to(far / "d.mp4")
    with caplog.at_level(logging.INFO):
        found = ids(videos)
    assert sorted(found) == ["a", "again/d", "again/more/e", "file", "sub/b", "sub/deep/c"]
    [line] = [record.getMessage() for record in caplog.records]
    assert line == f"{videos}: 4 linked folders are searched in another place: again/back, inner, link and 1 more"


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=14))
@settings(max_examples=60)
def test_each_file_is_found_once_whatever_links_to_whatever(
    tmp_path_factory: pytest.TempPathFactory, links: list[tuple[int, int]]
):
    root = tmp_path_factory.mktemp("links")
    places = [root / "videos", root / "videos/a", root / "videos/a/b", root / "videos/c"]
    places += [root / "out", root / "out/d", root / "else", root / "else/f"]
    for number, inside in enumerate(places):
        place(inside, f"{number}.mp4")
    for number, (where, to) in enumerate(links):
        (places[where] / f"link{number}").symlink_to(places[to])
    reached, edges = set(range(4)), [*links, (4, 5), (6, 7)]
    while more := {to for where, to in edges if where in reached} - reached:
        reached |= more
    found = ids(root / "videos")
    assert sorted(Path(name).name for name in found) == sorted(map(str, reached))
    assert {"0", "a/1", "a/b/2", "c/3"} <= set(found), "links change no id of a file that is there without them"


def test_a_folder_that_cannot_be_listed_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    videos, scandir = place(tmp_path / "videos", "a.mp4", "closed/b.mp4"), os.scandir

    def guarded(path: str):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    _, found, left_out = find(videos)
    assert [file.id for file in found] == ["a"]
    assert left_out == [{"video": "closed", "source": "closed", "reason": "cannot be listed: Permission denied"}]


def test_videos_of_any_container_are_recognised_by_their_first_bytes(tmp_path: Path):
    for container, codec in WRITTEN.items():
        film(tmp_path / "films" / container, container, codec)
        assert is_video_file(tmp_path / "films" / container), container
    texts = {"a": b"", "b": b"video,caption\n", "c": b'{"a": 1}', "d": b"\xff\xd8\xff\xe0" + bytes(700), "e": b"RIFF"}
    texts |= {"f": b"\x89PNG\r\n\x1a\n", "g": b"\0\0\0\x20ftypM4A ", "h": b"ID3\4", "i": b"OggS" + bytes(24) + b"Opus"}
    texts |= {
        "j": b"PAR1",
        "k": b"RIFF\0\0\0\0WAVE",
        "l": b"G" * 100,
        "m": b"export const a = 1\n" * 90,
        "n": b"#EXTM3U",
    }
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
        assert not is_video_file(tmp_path / name), name
    os.mkfifo(tmp_path / "pipe")
    assert not any(is_video_file(tmp_path / name) for name in ("pipe", "films", "nowhere"))


def test_videos_that_are_not_taken_are_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    place(tmp_path / "v", "a.mp4", "a.srt", "sub/notes.txt", "sub/empty.flv")
    film(tmp_path / "v" / "sub" / "c.ts", "mpegts", "mpeg2video")
    film(tmp_path / "v" / "e.ogv", "ogg", "libvpx")
    film(tmp_path / "v" / "no ending", "mp4", "mpeg4")
    film(tmp_path / "v" / ".hidden.mp4", "mp4", "mpeg4")
    film(tmp_path / "v" / "f.mp4.part", "mp4", "mpeg4")
    os.mkfifo(tmp_path / "v" / "pipe.flv")
    assert ids(tmp_path / "v") == ["a"]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        f"{tmp_path / 'v'}: 5 videos are not taken, because their names are hidden or do not end in "
    )
    assert line.endswith(": .hidden.mp4, e.ogv, f.mp4.part and 2 more; a list of paths takes any name")
    (tmp_path / "l.txt").write_text("v/sub/c.ts\nv/e.ogv\n")
    assert [file.id for file in find(tmp_path / "l.txt", tmp_path / "v")[1]] == ["sub/c.ts", "e.ogv"]
    caplog.clear()
    place(tmp_path / "w", "a.mp4", "a.txt")
    assert ids(tmp_path / "w") == ["a"] and not caplog.records


def test_a_list_may_come_from_windows_and_must_be_text(tmp_path: Path):
    place(tmp_path, "a.mp4", "b\u2028c.mp4", "d\x0be.mp4")
    (tmp_path / "l.txt").write_bytes("\ufeffa.mp4\r\nb\u2028c.mp4\r\nd\x0be.mp4\r\n".encode())
    assert ids(tmp_path / "l.txt") == ["a", "b\u2028c", "d\x0be"]
    (tmp_path / "nul.txt").write_bytes(b"a.mp4\na\0.mp4\n")
    film(tmp_path / "film.mp4", "mp4", "mpeg4")
    for name in ("nul.txt", "film.mp4"):
        with pytest.raises(ArtefactError, match=f"{name}: not a text file; expected one with the path of a video"):
            find(tmp_path / name)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9.mp4\n")
    with pytest.raises(ArtefactError, match="not UTF-8 at byte 3"):
        find(tmp_path / "latin.txt")


def test_of_one_stem_the_first_ending_is_kept_and_every_other_is_noted(tmp_path: Path):
    names = [f"x{extension}" for extension in EXTENSIONS] + ["x.MP4", "y.mkv", "y.AVI"]
    _, found, left_out = find(place(tmp_path / "v", *names))
    assert {file.id: file.source for file in found} == {"x": "x.MP4", "y": "y.AVI"}
    assert sorted(note["source"] for note in left_out) == sorted(set(names) - {"x.MP4", "y.AVI"})
    assert all("same id as" in note["reason"] for note in left_out)


def test_a_file_that_is_named_like_a_span_is_noted(corpus: Path, tmp_path: Path):  # noqa: F811
    encoder, red = ColourEncoder(tmp_path / "release", 0.1), (corpus / "videos" / "red.mp4").read_bytes()
    for name in ("red", "red@0-2", "red@1-9"):
        place(tmp_path / "v", f"{name}.mp4").joinpath(f"{name}.mp4").write_bytes(red)
    manifest = build_gallery(encoder, tmp_path / "v", tmp_path / "cut", cut=Cut(2.0))
    reason = "same id as a segment of red.mp4; rename it"
    assert notes(tmp_path / "cut", manifest) == [
        {"of": 0, "video": "red@0-2", "source": "red@0-2.mp4", "reason": reason}
    ]
    assert manifest.counts["videos"] == 6, "three spans of each other file"
    gallery = Gallery.open(tmp_path / "cut", encoder)
    assert gallery.file("red@0-2") == tmp_path / "v" / "red.mp4"
    whole = build_gallery(encoder, tmp_path / "v", tmp_path / "whole")
    assert whole.counts["videos"] == 3 and not notes(tmp_path / "whole", whole), "without spans, such a name is a name"
