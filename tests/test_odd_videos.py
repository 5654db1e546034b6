"""Odd files as people have them: cuts, browser recordings, fragments, joined and broken files, covers, headers."""

import resource
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest
from conftest import frames_at
from processes import context, prepare
from test_release import make, release
from videos import oracle
from videos.drawing import Drawn, number_of, picture
from videos.drawing import write as write_drawn
from videos.writing import regular

from distill.data.sampling import sample_one
from distill.data.video import probe
from distill.errors import VideoError
from distill.release.release import load
from distill.retrieval import Gallery
from distill.retrieval.indexing import build_gallery
from distill.retrieval.sources import Cut

MORE = 200 << 20  # bytes of memory that a reader may take


@pytest.mark.parametrize("kind", ["mp4", "mov"])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_cut_without_encoding_anew_is_what_a_player_shows_of_it(tmp_path, kind, b_frames):
    path = write_drawn(
        tmp_path / f"cut.{kind}", Drawn(kind, "libx264", regular(60, 10), Fraction(10), b_frames, cut=19)
    )
    with av.open(str(path)) as container:
        hidden = sum(packet.is_discard for packet in container.demux(video=0))
    assert hidden, "an edit list hides the frames from the key frame on"
    images, seconds = frames_at(path, range(41))
    assert [number_of(image) for image in images] == list(range(19, 60))
    assert seconds == pytest.approx([number / 10 for number in range(41)], abs=1e-6)


def test_a_browser_recording_of_milliseconds_is_as_long_as_it_is(tmp_path):
    """Its frames come every 40 ms, some late, and its header knows no rate."""
    random = Random(3)
    times = tuple(Fraction(40 * number + (random.randint(0, 9) if number else 0), 1000) for number in range(199))
    path = write_drawn(tmp_path / "recorded.webm", Drawn("webm", "libvpx", times, None))
    found = sample_one(path, None, oracle.PICK, 64)
    assert found.duration == pytest.approx(7.96, abs=0.02) and len(found.timestamps) == 8
    assert all(second - 0.05 <= when <= second + 0.001 for second, when in enumerate(found.timestamps))


@pytest.mark.parametrize(
    "flags", ["frag_keyframe", "frag_keyframe+empty_moov", "dash+frag_keyframe", "frag_every_frame", "frag_custom"]
)
@pytest.mark.parametrize("kind", ["mp4", "mov"])
def test_every_fragment_is_read_whatever_the_first_index_holds(tmp_path, flags, kind):
    path = tmp_path / f"a.{kind}"
    with av.open(str(path), "w", options={"movflags": flags}) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "12"})
        stream.width = stream.height = 64
        for number in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
    images, seconds = frames_at(path, range(60))
    assert [number_of(image) for image in images] == list(range(60)) and len(probe(path)) == 60
    assert seconds == pytest.approx([number / 10 for number in range(60)], abs=1e-3)


def test_joined_program_streams_are_shown_to_their_end(tmp_path):
    half = write_drawn(tmp_path / "half.mpg", Drawn("mpg", "mpeg2video", regular(75, 25), Fraction(25)))
    joined = tmp_path / "joined.mpg"
    joined.write_bytes(half.read_bytes() * 2)
    assert probe(joined).duration == pytest.approx(6, abs=0.1)
    pixels = sample_one(joined, None, oracle.PICK, 64).pixels()
    assert [number_of(frame.transpose(1, 2, 0)) for frame in pixels] == [0, 25, 50, 0, 25, 50]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm"])
def test_every_span_that_shows_a_frame_is_a_row_and_its_frames_lie_in_it(tmp_path, kind):
    """A file that changes often and then hardly, of which one frame is shown for longer than a span."""
    times = (*regular(40, 20), *(Fraction(second) for second in (2, 3, 4, 16, 17, 19)))
    codec = "libx264" if kind == "mp4" else "libvpx"
    (tmp_path / "videos").mkdir()
    write_drawn(tmp_path / "videos" / f"a.{kind}", Drawn(kind, codec, times, None))
    release(tmp_path / "release", *make())
    encoder = load(tmp_path / "release")
    build_gallery(encoder, tmp_path / "videos", tmp_path / "gallery", cut=Cut(5.0, 0.0), workers=1)
    gallery = Gallery.open(tmp_path / "gallery", encoder)
    rows = [gallery.about(row) for row in range(len(gallery))]
    assert [row["span"][0] for row in rows] == [0, 5, 10, 15]
    assert [row["timestamps"] for row in rows] == [pytest.approx(s) for s in ([0, 1, 2, 4], [5], [10], [16, 17, 19])]
    assert all(row["span"][0] <= second <= row["span"][1] for row in rows for second in row["timestamps"])


@pytest.mark.parametrize(("kind", "codec"), [("mov", "mjpeg"), ("flv", "flv"), ("wmv", "wmv2"), ("3gp", "mpeg4")])
def test_half_of_a_file_is_refused_in_other_containers_too(tmp_path, kind, codec):
    path = write_drawn(tmp_path / f"a.{kind}", Drawn(kind, codec, regular(100, 10), Fraction(10)))
    assert len(probe(path)) == 100
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])
    with pytest.raises(VideoError, match=r"truncated|cut before its index"):
        probe(path)


@pytest.mark.parametrize("kind", ["mp4", "mov"])
def test_a_cover_beside_a_video_is_not_taken_for_it(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        video = container.add_stream("libx264", rate=10)
        for stream, size in ((cover, 96), (video, 64)):
            stream.width = stream.height = size
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(9, 96, 96), format="rgb24")))
        for number in range(30):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(video.encode())
        container.mux(cover.encode())
    images, _ = frames_at(path, [0, 29])
    assert [image.shape for image in images] == [(64, 64, 3)] * 2 and list(map(number_of, images)) == [0, 29]


@pytest.mark.parametrize(("box", "place"), [(b"stts", 8), (b"stts", 12), (b"stts", 16), (b"ctts", 8), (b"ctts", 12)])
@pytest.mark.parametrize("value", [2**31 - 1, 2**32 - 1])
def test_counts_of_a_table_of_times_size_nothing(tmp_path, box, place, value):
    _falsified(tmp_path, box, place, value)


@pytest.mark.parametrize("box", [b"stsz", b"stsc", b"stco", b"stss", b"elst"])
def test_counts_of_other_tables_size_nothing(tmp_path, box):
    _falsified(tmp_path, box, 12 if box == b"stsz" else 8, 2**31 - 1)


@pytest.mark.parametrize(("box", "place"), [(b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20), (b"mvhd", 16), (b"mdhd", 16)])
def test_a_false_length_or_clock_sizes_nothing(tmp_path, box, place):
    _falsified(tmp_path, box, place, 2**32 - 2)


def test_a_reader_of_too_much_memory_is_noticed(tmp_path):
    assert _exit_code(_take, 100 << 20) == 0 and _exit_code(_take, 300 << 20) == 1


def _falsified(folder: Path, box: bytes, place: int, value: int) -> None:
    """Write a number `place` bytes behind the beginning of a box's name; all is read, or refused, in little memory."""
    path = write_drawn(folder / "a.mp4", Drawn("mp4", "libx264", regular(30, 10), Fraction(10), b_frames=2))
    content = bytearray(path.read_bytes())
    struct.pack_into(">I", content, content.index(box) + place, value)
    path.write_bytes(content)
    assert _exit_code(_read, path) == 0


def _exit_code(function: Callable[..., None], *arguments: object) -> int | None:
    prepare()
    process = context.Process(target=_measured, args=(function, *arguments))
    process.start()
    process.join(60)
    process.kill()
    return process.exitcode


def _measured(function: Callable[..., None], *arguments: object) -> None:
    """In a new process, because the largest size that one had never shrinks."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function(*arguments)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MORE >> 10, "KiB"


def _read(path: Path) -> None:
    try:
        found = sample_one(path, None, oracle.PICK, 64)
        assert 1 <= len(found.timestamps) <= 30 and np.isfinite(found.timestamps).all()
    except VideoError as reason:
        assert str(reason).startswith(("not a video", "truncated", "no video stream"))


def _take(size: int) -> None:
    np.ones(size, np.uint8)
