"""When a player shows a frame: what is chosen and decoded, against an oracle that decodes every frame in order.

Frames tell their number by their red and blue levels. The time stamps of a written file are drawn or chosen here, so
what a player shows at a second is known without any reader.
"""

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest
from conftest import frames_at
from videos import oracle
from videos.campaign import campaign
from videos.drawing import Drawn, number_of, picture
from videos.drawing import write as write_drawn
from videos.writing import regular, song, with_sound, write

from distill.data import files
from distill.data.sampler import GlsclSampler, PromptSwitchSampler
from distill.data.sampling import sample_one, sample_video
from distill.data.timeline import Span
from distill.data.video import probe
from distill.errors import VideoError


def shown(path: Path, span: Span) -> list[tuple[int, float]]:
    """The numbers of a span's frames, by their pixels, and their seconds."""
    found = sample_one(path, span, oracle.PICK, 64)
    pixels = [np.asarray(frame).transpose(1, 2, 0) for frame in found.pixels()]
    return list(zip(map(number_of, pixels), found.timestamps, strict=True))


def test_every_choice_is_what_a_decoder_of_all_frames_shows_at_that_second(tmp_path):
    """A small sample of `make videos`: containers, codecs, rates, B-frames, cuts, late beginnings, turns, aspects."""
    told = campaign(tmp_path, range(30))
    assert not [finding for _, findings in told for finding in findings]
    assert len({name for names, _ in told for name in names}) > 15


def test_the_campaign_notices_another_second_another_frame_and_another_picture(tmp_path, monkeypatch):
    drawn = Drawn("mp4", "libx264", regular(30, 10), Fraction(10), turn=(-1, 0, 0, 1))
    path, right = write_drawn(tmp_path / "a.mp4", drawn), probe(tmp_path / "a.mp4")
    assert oracle.differences(path, drawn, Random(1)) == []
    monkeypatch.setattr(oracle, "probe", lambda _: replace(right, origin=right.origin + Fraction(1, 10)))
    assert oracle.differences(path, drawn, Random(1))[0].startswith("shown at [-0.1")
    monkeypatch.undo()
    monkeypatch.setattr(oracle, "decode", lambda *_: [(n, np.zeros((48, 64, 3), np.uint8)) for n in range(30)])
    assert oracle.differences(path, drawn, Random(1)) == ["pixels of frames [0, 1, 2, 3, 4]"]
    monkeypatch.undo()
    monkeypatch.setattr(oracle, "PICK", GlsclSampler(kind="glscl", num_frames=2))
    assert oracle.differences(path, drawn, Random(1))[0].startswith("span None: frames [0, 20], expected [0, 10, 20]")


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm"])
def test_frames_of_a_varying_rate_are_spread_over_time_alike_in_every_container(tmp_path, kind):
    times = [*regular(24, 12), *regular(36, 2, start=2)]
    path = write(tmp_path / f"a.{kind}", times)
    assert probe(path).rate is None
    assert [round(second, 3) for _, second in shown(path, None)] == [float(second) for second in range(20)]
    spans = files.spans(probe(path).duration, 5.0, 0.0)
    for span in spans:
        assert all(span[0] <= second < span[1] for _, second in shown(path, span))


@pytest.mark.parametrize("rate", [Fraction(30_000, 1001), Fraction(24_000, 1001)])
def test_stretches_of_a_film_with_a_broken_rate_hold_their_own_frames(tmp_path, rate):
    path = write(tmp_path / "film.mp4", regular(900, rate))
    length = probe(path).duration
    covered = set()
    for span in files.spans(length, 5.0, 0.0):
        seconds = [second for _, second in shown(path, span)]
        assert all(span[0] <= second < span[1] for second in seconds) and seconds == sorted(seconds)
        covered |= {int(second) for second in seconds}
    assert len(covered) >= int(length) - 1
    assert shown(path, None)[1][1] == pytest.approx(int(rate) / rate, abs=1e-4), "a whole video is counted as published"


def test_a_stretch_shorter_than_a_second_or_than_a_frame_holds_what_is_shown_in_it(tmp_path):
    path = write(tmp_path / "a.mp4", regular(50, 10))
    assert shown(path, (2.7, 2.9)) == [(27, 2.7)]
    assert shown(path, (2.72, 2.78)) == [(27, 2.72)], "a player shows the frame of 2.7 s then"
    lapse = write(tmp_path / "lapse.mp4", regular(5, Fraction(1, 10)))
    assert probe(lapse).rate == pytest.approx(0.1)
    assert [second for _, second in shown(lapse, None)] == [0, 10, 20, 30, 40]
    assert shown(lapse, (5.0, 9.0)) == [(0, 5.0)]


def test_a_video_that_begins_after_its_sound_is_shown_when_a_player_shows_it(tmp_path):
    with_sound(tmp_path / "late.mp4", regular(50, 10, start=3), 8.0)
    assert [second for _, second in shown(tmp_path / "late.mp4", None)] == pytest.approx([3, 4, 5, 6, 7], abs=0.2)
    found = sample_video(tmp_path / "late.mp4", [(0.0, 1.0), (3.5, 5.0)], oracle.PICK, 64)
    assert isinstance(found[0], VideoError) and not isinstance(found[1], VideoError)


def test_an_flv_whose_first_frame_comes_late_is_as_long_as_its_header_says(tmp_path):
    drawn = Drawn("flv", "libx264", regular(20, Fraction(1, 2)), Fraction(1, 2), b_frames=3, late=Fraction(2))
    path = write_drawn(tmp_path / "late.flv", drawn)
    assert probe(path).duration == pytest.approx(42, abs=0.1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=r"truncated: declares [\d.]+ s, holds [\d.]+ s of frames"):
        probe(path)


@pytest.mark.parametrize("kind", ["ts", "webm", "mkv"])
def test_files_joined_end_to_end_are_shown_one_after_the_other(tmp_path, kind):
    content = write(tmp_path / f"half.{kind}", regular(40, 10), rate=10).read_bytes()
    (tmp_path / f"joined.{kind}").write_bytes(content + content)
    found = shown(tmp_path / f"joined.{kind}", None)
    assert [number for number, _ in found] == [0, 10, 20, 30, 0, 10, 20, 30]
    assert [second for _, second in found] == pytest.approx(range(8), abs=0.11)


def test_an_avi_with_b_frames_keeps_the_order_and_the_seconds_of_its_frames(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "3"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())
    assert shown(tmp_path / "a.avi", None) == [(0, 0.0), (10, 1.0), (20, 2.0), (30, 3.0)]


def test_a_fragmented_file_is_read_to_its_end(tmp_path):
    path = write(tmp_path / "a.mp4", regular(60, 10), movflags="frag_keyframe")
    assert [number for number, _ in shown(path, None)] == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("kind", ["mp4", "webm", "mkv", "avi"])
def test_half_of_a_file_is_reported_as_shorter_than_it_declares(tmp_path, kind):
    content = write(tmp_path / f"a.{kind}", regular(60, 25), **({"movflags": "+faststart"} if kind == "mp4" else {}))
    whole = content.read_bytes()
    assert len(probe(content)) == 60
    content.write_bytes(whole[: len(whole) * 3 // 5])
    with pytest.raises(VideoError, match=r"truncated: declares [\d,]+ bytes, holds [\d,]+"):
        probe(content)
    content.write_bytes(whole + b"\0" * 100)
    assert len(probe(content)) == 60, "bytes behind a file are no part of it"


def test_a_header_cannot_make_the_job_large(tmp_path):
    content = bytearray(write(tmp_path / "a.mp4", regular(20, 10)).read_bytes())
    struct.pack_into(">I", content, content.index(b"stts") + 12, 2**31 - 1)
    (tmp_path / "a.mp4").write_bytes(content)
    assert len(probe(tmp_path / "a.mp4")) == 20
    far = write(tmp_path / "far.mkv", [Fraction(0), Fraction(1, 10), Fraction(40_000_000)])
    assert len(shown(far, None)) == 3, "a frame that is shown for a year is one frame"


def test_a_cover_picture_is_no_video(tmp_path):
    song(tmp_path / "song.mp4")
    with pytest.raises(VideoError, match="no video stream"):
        probe(tmp_path / "song.mp4")


def quarters() -> np.ndarray:
    """A picture whose four quarters differ, wider than high."""
    image = np.zeros((32, 64, 3), np.uint8)
    image[:16, :32], image[:16, 32:], image[16:, :32], image[16:, 32:] = 40, 100, 160, 220
    return image


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [[40, 100], [160, 220]]),
        ((-1, 0, 0, 1), [[100, 40], [220, 160]]),
        ((1, 0, 0, -1), [[160, 220], [40, 100]]),
        ((-1, 0, 0, -1), [[220, 160], [100, 40]]),
        ((0, 1, -1, 0), [[160, 40], [220, 100]]),
        ((0, -1, 1, 0), [[100, 220], [40, 160]]),
        ((0, 1, 1, 0), [[40, 160], [100, 220]]),
        ((0, -1, -1, 0), [[220, 100], [160, 40]]),
    ],
)
def test_a_picture_is_turned_and_mirrored_as_players_do(tmp_path, matrix, expected):
    """a, b, c, d of the display matrix in the file's track header; expected by x' = ax + cy, y' = bx + dy."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters(), format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    a, b, c, d = (value * 65536 for value in matrix)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    (frame,), _ = frames_at(path, [0])
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    assert (width > height) == (matrix[0] != 0)
    found = [[frame[y : y + height, x : x + width].mean() for x in (0, width)] for y in (0, height)]
    assert np.allclose(found, expected, atol=12)


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    path = write(tmp_path / "wide.mp4", regular(4, 4), aspect=Fraction(4, 3))
    assert frames_at(path, [0])[0][0].shape == (64, 85, 3)


@pytest.mark.parametrize(("most", "shape"), [(512, (64, 512)), (100, (12, 100)), (10, (8, 64))])
def test_what_a_file_says_of_its_pixels_makes_a_large_picture_no_larger(tmp_path, monkeypatch, most, shape):
    monkeypatch.setattr("distill.data.video.STRETCHED", most)
    path = write(tmp_path / "wide.mp4", regular(4, 4), aspect=Fraction(8))
    assert frames_at(path, [0])[0][0].shape == (*shape, 3)


@pytest.fixture
def at_most_128_pixels(monkeypatch):
    """The bound on a frame's pixels, for frames that are quickly written."""
    monkeypatch.setattr("distill.data.video.LARGEST", 128 * 128)
    monkeypatch.setattr("distill.data.video.LIMIT", {"max_pixels": str(128 * 128)})


def plain(path: Path, codec: str, side: int) -> Path:
    """A video of four frames of one colour."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=2)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 90, np.uint8), "rgb24").reformat(
                format=stream.pix_fmt
            )
            frame.pts, frame.time_base = number, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.usefixtures("at_most_128_pixels")
@pytest.mark.parametrize(
    ("kind", "codec"),
    [("mp4", "libx264"), ("avi", "mjpeg"), ("mkv", "ffv1"), ("webm", "libvpx"), ("ts", "mpeg2video")],
)
def test_frames_that_would_take_gigabytes_are_refused(tmp_path, kind, codec):
    assert len(frames_at(plain(tmp_path / f"small.{kind}", codec, 128), range(4))[0]) == 4
    with pytest.raises(VideoError, match=r"frames of .*: expected at most 8192 x 4352"):
        frames_at(plain(tmp_path / f"large.{kind}", codec, 144), range(4))


@pytest.mark.usefixtures("at_most_128_pixels")
def test_frames_that_grow_in_the_middle_of_a_file_are_refused(tmp_path):
    small, large = (plain(tmp_path / f"{side}.ts", "libx264", side).read_bytes() for side in (128, 256))
    (tmp_path / "same.ts").write_bytes(small + small)
    assert len(frames_at(tmp_path / "same.ts", range(8))[0]) == 8
    (tmp_path / "both.ts").write_bytes(small + large)
    assert {frame.shape for frame in frames_at(tmp_path / "both.ts", [0])[0]} == {(128, 128, 3)}
    with pytest.raises(VideoError):
        frames_at(tmp_path / "both.ts", range(8))


@pytest.mark.parametrize("name", ["a:b.mp4", "concat:x.mp4", "file:y.mp4", "a%03d.mp4", "#EXTM3U.mp4"])
def test_a_name_is_a_name(tmp_path, name):
    write(tmp_path / "plain.mp4", regular(4, 4)).rename(tmp_path / name)
    assert len(probe(tmp_path / name)) == 4


def test_a_playlist_opens_no_other_file(tmp_path):
    write(tmp_path / "other.ts", regular(40, 10))
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nother.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "script.mp4").write_text("ffconcat version 1.0\nfile other.ts\n")
    for name in ("list.mp4", "script.mp4"):
        with pytest.raises(VideoError, match="not a video"):
            probe(tmp_path / name)


def test_all_samplers_go_by_time_where_the_rate_varies(tmp_path):
    path = write(tmp_path / "a.mkv", [*regular(20, 10), *regular(16, 2, start=2)])
    for sampler in (GlsclSampler(kind="glscl", num_frames=100), oracle.PICK):
        assert [round(second, 3) for second in sample_one(path, None, sampler, 64).timestamps] == [
            *map(float, range(10))
        ]
    prompts = sample_one(path, None, PromptSwitchSampler(kind="prompt_switch", num_frames=6, prompts=6), 64)
    middle = [probe(path).duration / 6 * (part + 0.5) for part in range(6)]
    assert all(abs(found - asked) <= 0.5 for found, asked in zip(prompts.timestamps, middle, strict=True))
