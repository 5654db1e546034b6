"""Reading and writing video files: exact frames, or a reason, never a quiet shortfall."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import frames_at

from distill.data.video import probe, write_video
from distill.errors import VideoError


def coloured(count: int, size: int = 64) -> np.ndarray:
    """Frames whose red and blue levels give their number away: 8 levels of 30 in each."""
    frames = np.zeros((count, size, size, 3), dtype=np.uint8)
    for number in range(count):
        frames[number, :, :, 0] = 30 * (number % 8)
        frames[number, :, :, 2] = 30 * (number // 8)
    return frames


def number_of(frame: np.ndarray) -> int:
    red, _, blue = frame.reshape(-1, 3).mean(0)
    return round(red / 30) + 8 * round(blue / 30)


def encode(path: Path, frames: np.ndarray, **container_options: str) -> None:
    """Like `write_video`, but with the index at the end unless asked otherwise, any container, and no time limit."""
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "23", "bf": "3"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def textured(count: int = 100) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, 64, 64, 3), dtype=np.uint8)


def test_frames_come_back_exactly_and_in_the_order_asked(tmp_path):
    write_video(tmp_path / "a.mp4", coloured(60), 4)
    indices = [0, 4, 5, 31, 59, 7, 7]
    frames, times = frames_at(tmp_path / "a.mp4", indices)
    assert [number_of(frame) for frame in frames] == indices
    assert times == pytest.approx([index / 4 for index in indices])
    assert all(frame.shape == (64, 64, 3) and frame.dtype == np.uint8 for frame in frames)


def test_frames_stored_out_of_order_come_back_in_presentation_order(tmp_path):
    encode(tmp_path / "b.mp4", coloured(60))
    frames, times = frames_at(tmp_path / "b.mp4", range(60))
    assert [number_of(frame) for frame in frames] == list(range(60))
    assert times == pytest.approx([index / 25 for index in range(60)])


def test_probe_reads_count_rate_and_length(tmp_path):
    write_video(tmp_path / "a.mp4", coloured(30), 29.97)
    info = probe(tmp_path / "a.mp4")
    assert (len(info), info.rate) == (30, pytest.approx(29.97))
    assert info.duration == pytest.approx(30 / 29.97, abs=0.01)


def test_a_container_without_a_frame_count_is_counted(tmp_path):
    encode(tmp_path / "a.mkv", coloured(37))
    info = probe(tmp_path / "a.mkv")
    assert (len(info), info.rate) == (37, 25.0)
    assert info.duration == pytest.approx(37 / 25)


def test_a_phone_video_is_turned_upright(tmp_path):
    frames = np.zeros((4, 32, 64, 3), dtype=np.uint8)
    frames[:, :, 32:] = 255
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.set_display_rotation(90)  # counterclockwise: the right half goes up
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    (frame,), _ = frames_at(tmp_path / "turned.mp4", [0])
    assert frame.shape == (64, 32, 3)
    assert frame[:30].mean() > 240 and frame[-30:].mean() < 15


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "missing"),
        (b"", "empty file"),
        (b"this is not a video at all, only some text" * 50, "not a video"),
        (bytes(5000), "not a video"),
    ],
)
def test_what_is_no_video_has_a_reason_without_the_path(tmp_path, content, reason):
    path = tmp_path / "secret-name.mp4"
    if content is not None:
        path.write_bytes(content)
    for read in (probe, lambda path: frames_at(path, [0])):
        with pytest.raises(VideoError, match=reason) as error:
            read(path)
        assert "secret-name" not in str(error.value)


def test_a_folder_is_not_a_video(tmp_path):
    with pytest.raises(VideoError, match="not a regular file"):
        probe(tmp_path)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        probe(tmp_path / "sound.mp4")


def test_a_file_cut_before_its_index_is_refused(tmp_path):
    encode(tmp_path / "whole.mp4", textured())
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(VideoError, match=r"not a video .*cut before its index"):
        probe(tmp_path / "cut.mp4")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_file_whose_index_promises_more_never_reads_short(tmp_path, share):
    encode(tmp_path / "whole.mp4", textured(), movflags="+faststart")
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        VideoError, match=f"truncated: declares {len(content):,} bytes, holds {int(len(content) * share):,}"
    ):
        frames_at(tmp_path / "cut.mp4", [0, 3])


def test_bytes_overwritten_in_the_middle_give_all_frames_or_an_error(tmp_path):
    encode(tmp_path / "whole.mp4", textured(), movflags="+faststart")
    content = bytearray((tmp_path / "whole.mp4").read_bytes())
    for begin in range(len(content) // 4, len(content), len(content) // 6):
        damaged = bytearray(content)
        damaged[begin : begin + 3000] = bytes(len(damaged[begin : begin + 3000]))
        (tmp_path / "damaged.mp4").write_bytes(damaged)
        try:
            frames, times = frames_at(tmp_path / "damaged.mp4", range(0, 100, 9))
        except VideoError:
            continue
        assert len(frames) == len(times) == 12


def test_no_indices_need_no_file(tmp_path):
    assert frames_at(tmp_path / "nowhere.mp4", []) == ([], [])


def test_writing_again_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    """A moving gradient: with B-frames about a third of such clips came out differently every few times."""
    ramp = np.add.outer(np.arange(64), np.arange(64))[None, :, :, None] + 3 * np.arange(48)[:, None, None, None]
    noise = np.random.default_rng(0).integers(0, 6, (48, 64, 64, 1))
    frames = np.repeat(ramp % 200 + noise, 3, axis=-1).astype(np.uint8)
    contents = set()
    for _ in range(10):
        write_video(tmp_path / "a.mp4", frames, 4)
        contents.add((tmp_path / "a.mp4").read_bytes())
    assert len(contents) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_the_index_comes_first_so_a_browser_can_play_while_loading(tmp_path):
    write_video(tmp_path / "a.mp4", coloured(8), 4)
    content = io.BytesIO((tmp_path / "a.mp4").read_bytes()).getvalue()
    assert content.index(b"moov") < content.index(b"mdat")
