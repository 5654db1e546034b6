"""Shards that img2dataset and video2dataset wrote are packed where they lie, and what cannot be packed is reported."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import frames_at, python
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.frames import FrameSet
from distill.data.sampler import Clip4ClipSampler
from distill.data.tars import members
from distill.data.video import write_video
from distill.errors import ArtefactError, ExpectedError
from distill.packing.clips import read_annotations
from distill.packing.downloads import open_video
from distill.packing.packing import PackConfig, pack
from tools import pack_frames

CONFIG = PackConfig(sampler=Clip4ClipSampler(kind="clip4clip", num_frames=2), size=32, per_shard=3)


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Videos of one colour each, by its brightness."""
    folder, made = tmp_path_factory.mktemp("mp4"), {}
    for grey in (40, 120, 200):
        write_video(folder / "one.mp4", np.full((8, 32, 48, 3), grey, np.uint8), fps=4)
        made[grey] = (folder / "one.mp4").read_bytes()
    return made


def tar(path: Path, files: dict[str, bytes | str | dict]) -> None:
    """A tar with these members, as Python's own writer makes it."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            data = json.dumps(content, indent=4) if isinstance(content, dict) else content
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def place(folder: Path, mp4: dict[int, bytes]) -> None:
    """Two shards with everything that happens in them; parquet and statistics lie beside them."""
    folder.mkdir()
    done = {"status": "success", "url": "https://host/a.mp4", "error_message": None}
    tar(
        folder / "00000.tar",
        {
            "000000000.mp4": mp4[40],
            "000000000.txt": "  something dark\n",
            "000000000.json": {"key": "000000000", "caption": "ignored beside the txt", **done},
            "000000001.txt": "never came",
            "000000001.json": {"key": "000000001", "caption": "never came", "status": "failed_to_download"},
            "000000002_00000.mp4": mp4[120],
            "000000002_00000.m4a": b"sound",
            "000000002_00000.json": {
                "key": "000000002_00000",
                "caption": "grey, first clip",
                "clips": [[0, 2]],
                **done,
            },
            "000000002_00001.mp4": mp4[200],
            "000000002_00001.json": {"key": "000000002_00001", "caption": "bright, second clip", **done},
        },
    )
    tar(
        folder / "00001.tar",
        {
            "./my.own.key.webm": mp4[200],
            "./my.own.key.txt": "a key with dots",
            "silent.mp4": mp4[40],
            "silent.txt": "",
            "silent.json": done,
            "torn.mp4": mp4[40][: len(mp4[40]) // 2],
            "torn.txt": "half a video",
            "latin.mp4": mp4[40],
            "latin.txt": "café".encode("latin-1"),
            "empty.mp4": b"",
            "empty.txt": "no bytes",
        },
    )
    (folder / "00000.parquet").write_bytes(b"PAR1")
    (folder / "00000_stats.json").write_text("{}")


def test_downloads_are_packed_and_failures_reported(tmp_path: Path, mp4: dict[int, bytes]):
    place(tmp_path / "shards", mp4)
    python(
        "tools/pack_frames.py", tmp_path / "shards", "--layout", "webdataset", "--size", "32", "--out", tmp_path / "f"
    )
    frames = FrameSet(tmp_path / "f")
    said = {video.id: (video.source, [caption.text for caption in video.captions]) for video in frames.videos}
    assert said == {
        "000000000": ("00000.tar/000000000.mp4", ["something dark"]),
        "000000002_00000": ("00000.tar/000000002_00000.mp4", ["grey, first clip"]),
        "000000002_00001": ("00000.tar/000000002_00001.mp4", ["bright, second clip"]),
        "my.own.key": ("00001.tar/my.own.key.webm", ["a key with dots"]),
    }
    for number, grey in enumerate((40, 120, 200, 200)):
        assert abs(frames.pixels(number).mean() - grey) < 4
    reasons = {note["video"]: note["reason"] for note in frames.manifest.notes}
    assert reasons.keys() == {"000000001", "silent", "torn", "latin", "empty"}
    assert reasons["000000001"] == "status failed_to_download" and reasons["silent"] == "no caption"
    assert "truncated" in reasons["torn"] and "cannot be read" in reasons["latin"]
    assert reasons["empty"] == "empty file"
    assert [
        path.name for path in (tmp_path / "shards").iterdir() if path.suffix not in (".tar", ".parquet", ".json")
    ] == []


def test_the_same_video_gives_the_same_frames_from_a_tar_and_from_a_folder(tmp_path: Path, mp4: dict[int, bytes]):
    place(tmp_path / "shards", mp4)
    (tmp_path / "plain.mp4").write_bytes(mp4[120])
    with open_video(tmp_path / "shards", "00000.tar/000000002_00000.mp4") as section:
        assert section.read() == mp4[120] and section.seek(-4, io.SEEK_END) == len(mp4[120]) - 4
        inside, times = frames_at(section, [0, 3, 7])
    outside, expected = frames_at(tmp_path / "plain.mp4", [0, 3, 7])
    assert times == expected and all(np.array_equal(one, two) for one, two in zip(inside, outside, strict=True))


def test_a_pack_of_downloads_continues_and_ends_with_the_same_bytes(tmp_path: Path, mp4: dict[int, bytes]):
    place(tmp_path / "shards", mp4)
    whole = pack(tmp_path / "shards", "webdataset", tmp_path / "shards", tmp_path / "a", CONFIG, workers=1)
    pack(tmp_path / "shards", "webdataset", tmp_path / "shards", tmp_path / "b", CONFIG, workers=1)
    (tmp_path / "b" / "manifest.json").unlink()
    (tmp_path / "b" / "00001.tar").unlink()
    assert (
        pack(tmp_path / "shards", "webdataset", tmp_path / "shards", tmp_path / "b", CONFIG, workers=1).id == whole.id
    )
    tar(tmp_path / "shards" / "00002.tar", {"more.mp4": mp4[40], "more.txt": "one more"})
    with pytest.raises(ArtefactError, match="already holds another frame set"):
        pack(tmp_path / "shards", "webdataset", tmp_path / "shards", tmp_path / "a", CONFIG, workers=1)


def test_wrong_arguments_and_shards_are_one_line(tmp_path: Path, mp4: dict[int, bytes]):
    place(tmp_path / "shards", mp4)
    shards, out = str(tmp_path / "shards"), ["--out", str(tmp_path / "f")]
    with pytest.raises(ExpectedError, match=r"no video files; .* its tars need --layout webdataset"):
        pack_frames.main([shards, *out])
    (tmp_path / "a.csv").write_text("video,caption\n")
    with pytest.raises(ExpectedError, match=r"--layout csv: give the folder with the video files"):
        pack_frames.main([str(tmp_path / "a.csv"), *out])
    with pytest.raises(ExpectedError, match=r"of webdataset the videos lie in .* leave it out"):
        pack_frames.main([shards, str(tmp_path), "--layout", "webdataset", *out])
    (tmp_path / "none").mkdir()
    for folder, words in ((tmp_path / "none", "holds no shards"), (tmp_path / "gone", "no such folder")):
        with pytest.raises(ArtefactError, match=words):
            read_annotations(folder, "webdataset", tmp_path)
    path = tmp_path / "shards" / "00001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ArtefactError, match=r"00001.tar: .*damaged"):
        read_annotations(tmp_path / "shards", "webdataset", tmp_path / "shards")


def test_one_key_in_two_shards_is_refused(tmp_path: Path, mp4: dict[int, bytes]):
    (tmp_path / "s").mkdir()
    for name in ("00000", "00001"):
        tar(tmp_path / "s" / f"{name}.tar", {"same.mp4": mp4[40], "same.txt": "twice"})
    with pytest.raises(ArtefactError, match=r"found '00000.tar/same.mp4' and '00001.tar/same.mp4'; rename one"):
        read_annotations(tmp_path / "s", "webdataset", tmp_path / "s")


def listed(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    with path.open("rb") as file:
        return {name: data[start : start + size] for name, start, size in members(file, path)}


@given(st.dictionaries(st.from_regex(r"[a-zé]{1,130}(\.[a-z]{1,4}){0,2}", fullmatch=True), st.binary(max_size=1500)))
@settings(max_examples=40)
def test_members_are_those_that_pythons_reader_finds(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]):
    for layout in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path_factory.mktemp("tar") / "a.tar"
        with tarfile.open(path, "w", format=layout) as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        assert listed(path) == files


def header(name: str, size: int = 0, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


END = bytes(1024)
PLAIN = header("a.txt", 3) + b"abc".ljust(512, b"\0")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header("../a.txt") + END, "points outside"),
        (header("/etc/passwd") + END, "points outside"),
        (header("b/../../a.txt") + END, "points outside"),
        (header("..\\a.txt") + END, "points outside"),
        (PLAIN + PLAIN + END, "twice"),
        (PLAIN + header("./a.txt", 3) + b"abc".ljust(512, b"\0") + END, "twice"),
        (header("a.txt", type=tarfile.SYMTYPE, linkname="/etc/passwd") + END, "not a plain file"),
        (header("a.txt", type=tarfile.CHRTYPE) + END, "not a plain file"),
        (header("a.txt", 1 << 40) + END, "claims to lie outside"),
        (PLAIN + header("b.txt", 5000) + b"b" * 512, "damaged"),
        (header("long", 1 << 40, type=tarfile.GNUTYPE_LONGNAME) + END, "a header of 1099511627776 bytes"),
        (PLAIN + header("pax", 1 << 30, type=tarfile.XHDTYPE) + END, "a header of 1073741824 bytes"),
        (PLAIN + b"garbage".ljust(512, b"?") + PLAIN + END, "not a tar at byte 1024"),
        (b"", "empty file"),
        (b"not a tar" * 200, "not a whole tar"),
    ],
)
def test_a_tar_that_cannot_be_trusted_is_refused(tmp_path: Path, data: bytes, words: str):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ArtefactError, match=words) as found:
        listed(tmp_path / "a.tar")
    assert str(found.value).startswith(str(tmp_path / "a.tar"))


@given(st.data())
@settings(max_examples=150)
def test_no_damage_does_more_than_be_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """Flipped bytes and cuts: every member that is still listed lies inside the file."""
    path = tmp_path_factory.mktemp("damage") / "a.tar"
    tar(path, {"é" * 120 + ".txt": b"x" * 700, "b.json": b"{}", "c.mp4": b"y" * 1024})
    whole = bytearray(path.read_bytes()[:6656])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        with path.open("rb") as file:
            for _, offset, size in members(file, path):
                assert min(offset, size) >= 0 and offset + size <= path.stat().st_size
    except ArtefactError:
        pass
