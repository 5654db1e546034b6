"""Names in annotations: folders, endings, doubles, spans and quotes are right or refused, never confused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clips import folder, write, write_sentences
from test_downloads import tar

from distill.data import files
from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.data.textfiles import read_rows
from distill.data.video import write_video
from distill.errors import ArtefactError
from distill.packing.clips import Clip, read_annotations
from distill.packing.packing import PackConfig, pack

CONFIG = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=2), size=32)


def place(videos: Path, *names: str) -> Path:
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"x")
    return videos


def said(clips: list[Clip]) -> dict[str, list[str]]:
    return {clip.video: [caption.text for caption in clip.captions] for clip in clips}


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("mp4") / "a.mp4"
    write_video(path, np.zeros((4, 32, 32, 3), np.uint8), fps=2)
    return path.read_bytes()


def test_videos_in_folders_have_the_ids_that_a_searched_folder_gives_them(tmp_path: Path):
    names = ["top.mp4", "one/a.mp4", "one/two/a.mkv", "one/two/b.mov", "one/.hidden.d/c.mp4"]
    videos = place(tmp_path / "videos", *names[:4])
    (tmp_path / "linked").mkdir()
    place(tmp_path / "linked", "far.webm")
    (videos / "link").symlink_to(tmp_path / "linked")
    (videos / "one" / "loop").symlink_to("loop")
    text = "video,caption\ntop.mp4,w\n./one//a.mp4,x\none/two/a,y\none/x/../two/b,z\nlink/far,v\n"
    clips = read_annotations(write(tmp_path, text), "csv", videos)
    _, found, _ = files.find(videos)
    assert {(clip.video, clip.source) for clip in clips} == {(file.id, file.source) for file in found}
    assert said(clips)["one/a"] == ["x"] and len(found) == 5


def test_every_layout_takes_folders_and_leaves_the_ending_out_of_the_id(tmp_path: Path):
    videos = place(tmp_path / "videos", "sub/v_a.mp4", "b.avi")
    names = ["sub/v_a.mp4", "b.avi"]
    named = list(zip(names, "xy", strict=True))
    annotated: dict[str, tuple[str, dict[str, Any]]] = {
        "csv": ("a.csv", {"a.csv": "video,caption\nsub/v_a.mp4,x\nb.avi,y\n"}),
        "msrvtt": ("a.csv", {"a.csv": "video_id,sentence\nsub/v_a.mp4,x\nb.avi,y\n"}),
        "msvd": ("l.txt", {"l.txt": "\n".join(names), "captions_msvd.json": {"sub/v_a.mp4": ["x"], "b": ["y"]}}),
        "vatex": ("l.txt", {"l.txt": "sub/v_a\nb.avi", "ref_captions.json": {"sub/v_a": ["x"], "b.avi": ["y"]}}),
        "lsmdc": ("a.csv", {"a.csv": "".join(f"{name}\t0\t1\t0\t1\t{text}\n" for name, text in named)}),
        "activitynet": (
            "a.json",
            {"a.json": {name: {"duration": 1, "sentences": [text]} for name, text in named}},
        ),
        "didemo": ("a.json", {"a.json": [{"video": name, "description": text} for name, text in named]}),
    }
    for layout, (name, contents) in annotated.items():
        inside = tmp_path / layout
        inside.mkdir()
        for file, content in contents.items():
            (inside / file).write_text(content if isinstance(content, str) else json.dumps(content))
        clips = read_annotations(inside / name, layout, videos)
        assert [(clip.video, clip.source) for clip in clips] == [("sub/v_a", "sub/v_a.mp4"), ("b", "b.avi")], layout
        assert said(clips) == {"sub/v_a": ["x"], "b": ["y"]}, layout


def test_msrvtt_ids_have_no_ending_in_the_csv_the_list_and_the_json(tmp_path: Path):
    videos = folder(tmp_path, "video0.mp4", "video1.webm")
    write_sentences(tmp_path, ("video0.mp4", "a cat"), ("video1", "a dog"))
    clips = read_annotations(write(tmp_path, "video_id\nvideo0\nvideo1.mp4\n"), "msrvtt", videos)
    assert said(clips) == {"video0": ["a cat"], "video1": ["a dog"]}
    assert [clip.source for clip in clips] == ["video0.mp4", "video1.webm"]
    with_captions = write(tmp_path, "video_id,sentence\nvideo0.mp4,a cat\nvideo0,another\nv.1,b\n", "b.csv")
    assert list(said(read_annotations(with_captions, "msrvtt", videos))) == ["video0", "v.1"]


@pytest.mark.parametrize(("layout", "captions"), [("msvd", "captions_msvd.json"), ("vatex", "ref_captions.json")])
def test_two_names_of_one_id_in_a_caption_file_are_refused(tmp_path: Path, layout: str, captions: str):
    (tmp_path / captions).write_text(json.dumps({"a.mp4": ["x"], "a": ["y"]}))
    with pytest.raises(ArtefactError, match=r"'a\.mp4' and 'a' are one id; keep one of them"):
        read_annotations(write(tmp_path, "a\n", "l.txt"), layout, folder(tmp_path))


def test_a_name_that_fits_several_files_is_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    videos = place(tmp_path / "videos", "a.webm", "a.mp4", "s/b.mkv", "s/b.avi", "s/b.mov", "c.mp4", "c.mov", "d.mp4")
    path = write(tmp_path, "video,caption\na,x\na,y\ns/b,z\nc.mov,w\nd,v\n")
    with caplog.at_level(logging.WARNING):
        clips = read_annotations(path, "csv", videos)
    assert [clip.source for clip in clips] == ["a.mp4", "s/b.avi", "c.mov", "d.mp4"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 2 names fit several files; taken is 'a.mp4', not 'a.webm' and 1 more"
    ]
    _, found, left = files.find(videos)
    assert {file.id: file.source for file in found} | {"c": "c.mov"} == {clip.video: clip.source for clip in clips}
    assert len(left) == 4, "a searched folder takes the same file of two, and reports the other"


def test_an_id_that_equals_that_of_a_span_is_refused(tmp_path: Path):
    videos = place(tmp_path / "videos", "a.mp4", "a#0-4.mp4")
    path = write(tmp_path, "video,caption,start,end\na.mp4,x,0,4\na#0-4.mp4,y,,\n")
    with pytest.raises(
        ArtefactError, match=r"line 3: expected one file of the name 'a#0-4', found 'a\.mp4' and 'a#0-4"
    ):
        read_annotations(path, "csv", videos)
    path = write(tmp_path, "video,caption,start,end\na.mp4,x,0,4\na.mp4,y,0,4.0000000000001\n")
    with pytest.raises(ArtefactError, match=r"line 3: expected one span of the id 'a#0-4', found \(0\.0, 4\.0\)"):
        read_annotations(path, "csv", videos)


def test_a_frame_set_of_videos_in_folders_is_read_back(tmp_path: Path, mp4: bytes):
    for name in ("x.mp4", "s/x.mp4", "s/c:d.mp4", "concat:x.mp4", "s/new\nline.mp4"):
        place(tmp_path / "videos", name).joinpath(name).write_bytes(mp4)
    text = 'video,caption\nx,a\ns/x,b\ns/c:d.mp4,c\nconcat:x.mp4,e\n"s/new\nline.mp4",d\n'
    pack(write(tmp_path, text), "csv", tmp_path / "videos", tmp_path / "frames", CONFIG, workers=1)
    videos = FrameSet(tmp_path / "frames").videos
    assert [video.id for video in videos] == ["x", "s/x", "s/c:d", "concat:x", "s/new\nline"]
    assert [video.source for video in videos] == ["x.mp4", "s/x.mp4", "s/c:d.mp4", "concat:x.mp4", "s/new\nline.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a.mp4,"an open quote\nb.mp4,next\nc.mp4,he said "\nd.mp4,last\n', "line 2: a quoted .* 'b.mp4,next', which"),
        ('x,y\na,"an open quote\nb,next "\n', "line 3: a quoted cell that begins in this row holds 'b,next '"),
        ('x,y\n\n\nmy film.mp4,"open\nmy other film.mp4,next "\n', "line 5: .* 'my other film.mp4,next '"),
        ('x,y\na,"never closed\nb,next\nc,last\n', "line 3: not valid csv: .*is a quote missing or stray"),
        ('x,y\na,"he said" loudly\nb,next\n', "line 3: not valid csv"),
        ('x,y\na,"open\nb,"next"\n', "line 3: not valid csv"),
        ('x,y\na,"open\nb,"",z\n', "line 3: "),
        ('"a,never named\nb,next"\n', "line 2: a quoted cell"),
    ],
)
def test_a_quote_that_swallows_rows_is_refused_with_the_line_where_it_opens(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, "video,caption\n" + text)
    with pytest.raises(ArtefactError, match=message) as error:
        read_annotations(path, "csv", folder(tmp_path))
    assert str(error.value).startswith(f"{path}: line ") and "\n" not in str(error.value)


def test_captions_of_several_lines_are_kept_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path, 'video,caption\na,"waves\nand wind, far away"\nb,x\nc,"one\n\ntwo"\nd,5" pipe\n')
    clips = read_annotations(path, "csv", folder(tmp_path))
    expected = {"a": ["waves\nand wind, far away"], "b": ["x"], "c": ["one\n\ntwo"], "d": ['5" pipe']}
    assert said(clips) == expected
    words = "2 rows have a cell of several lines (line 2, 5); where that is not meant, a quote is missing or stray"
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {words}"]


@settings(max_examples=300)
@given(st.lists(st.text(st.sampled_from('ab ,"\n.'), max_size=8), min_size=1, max_size=6))
def test_no_row_is_lost_whatever_quotes_stand_in_captions(tmp_path_factory: pytest.TempPathFactory, texts: list[str]):
    """Captions written raw, as a careless program does: each row comes back as it is, or the file is refused."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    lines = [text.replace("\n", " ") for text in texts]
    path.write_text("video,caption\n" + "".join(f"video{n}.mp4,{line}\n" for n, line in enumerate(lines)))
    try:
        names = [row["video"] for _, row in read_rows(path, ("video", "caption"))[1]]
    except ArtefactError:
        return
    assert names == [f"video{n}.mp4" for n in range(len(lines))]


@pytest.mark.parametrize(
    ("header", "layout", "twice"),
    [
        ("video,caption,caption", "csv", "caption"),
        ("video, video ,caption,start,start", "csv", "video, start"),
        ("video_id,sentence,video_id", "msrvtt", "video_id"),
    ],
)
def test_a_column_that_stands_twice_is_refused(tmp_path: Path, header: str, layout: str, twice: str):
    path = write(tmp_path, f"{header}\na,b,c,1,2\n")
    with pytest.raises(ArtefactError, match=f"several columns {twice}; rename all but one"):
        read_annotations(path, layout, folder(tmp_path))


def test_columns_without_a_name_may_be_several(tmp_path: Path):
    assert said(read_annotations(write(tmp_path, "video,caption,,\na,b,,\n"), "csv", folder(tmp_path))) == {"a": ["b"]}


def test_lists_of_ids_may_begin_with_a_byte_order_mark(tmp_path: Path):
    (tmp_path / "l.txt").write_bytes("\ufeffa\r\nb\r\n".encode())
    (tmp_path / "captions_msvd.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": ["x"], "b": ["y"]}).encode())
    assert said(read_annotations(tmp_path / "l.txt", "msvd", folder(tmp_path))) == {"a": ["x"], "b": ["y"]}
    (tmp_path / "a.csv").write_bytes('\ufeff"video",caption\r\na,x\r\n'.encode())
    assert said(read_annotations(tmp_path / "a.csv", "csv", folder(tmp_path))) == {"a": ["x"]}


def test_downloads_have_keys_with_folders_and_captions_that_are_lists(tmp_path: Path, mp4: bytes):
    shards = tmp_path / "shards"
    shards.mkdir()
    members: dict[str, Any] = {"one/c.mp4": mp4, "one/c.json": {"caption": ["one", " two "]}, "two/c.mp4": mp4}
    members |= {"two/c.txt": "\ufeffa text", "two/c.json": {"caption": ["ignored beside the txt"]}}
    odd = {"map": {"en": "a cat"}, "words": [["a", "cat"]], "number": 7, "gap": ["x", " "], "none": None, "no": []}
    for name, caption in odd.items():
        members |= {f"odd/{name}.mp4": mp4, f"odd/{name}.json": {"caption": caption}}
    tar(shards / "00000.tar", members)
    manifest = pack(shards, "webdataset", shards, tmp_path / "frames", CONFIG, workers=1)
    videos = FrameSet(tmp_path / "frames").videos
    assert {video.id: [(one.id, one.text) for one in video.captions] for video in videos} == {
        "one/c": [("one/c#0", "one"), ("one/c#1", "two")],
        "two/c": [("two/c#0", "a text")],
    }
    assert [video.source for video in videos] == ["00000.tar/one/c.mp4", "00000.tar/two/c.mp4"]
    reasons = {note["video"].removeprefix("odd/"): note["reason"] for note in manifest.notes}
    assert reasons.keys() == odd.keys() and reasons["none"] == reasons["no"] == "no caption"
    assert "expected a text or a list of texts, found {'en': 'a cat'}" in reasons["map"]
    assert all("expected a text or a list of texts" in reasons[name] for name in ("words", "number", "gap"))


def test_videos_of_a_shard_that_are_not_taken_are_counted(tmp_path: Path, mp4: bytes, caplog: pytest.LogCaptureFixture):
    shards = tmp_path / "shards"
    shards.mkdir()
    sound = b"\0\0\0 ftypM4A " + bytes(40)
    members = {"a.mp4": mp4, "a.webm": mp4, "a.MP4": mp4, "a.txt": "x", "a.m4a": sound, "a.jpg": b"\xff\xd8\xff"}
    tar(shards / "00000.tar", members | {"b.film": mp4, "b.txt": "y", ".mp4": mp4})
    with caplog.at_level(logging.WARNING):
        clips = read_annotations(shards, "webdataset", shards)
    assert {clip.video: clip.unusable for clip in clips} == {"a": None, "b": "missing"}
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{shards}: 4 videos are not taken, by their endings or beside another of their key: ")
    assert {name.partition("/")[2] for name in line.rpartition(": ")[2].split(", ")} == {
        *("a.MP4", "a.webm", "b.film", ".mp4")
    }
