"""Video files in and out, through PyAV, which is imported here and nowhere else.

`probe` says how many frames there are and how fast, `decode` returns exactly the frames asked for (RGB uint8,
height x width x 3) with their times in seconds, `write_video` makes small H.264 files whose bytes depend on nothing but
the frames. Whatever is wrong with a file is a `VideoError` whose text is a short reason without the path: packing goes
on with the next video and reports the reason next to the id. Decoders run with one thread, because callers run one
process per core.
"""

import io
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from distill.errors import VideoError

EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v")
EXTENSIONS += (".mpg", ".mpeg", ".wmv", ".3gp", ".3g2", ".mts", ".m2ts")  # Flickr originals of DiDeMo


@dataclass(frozen=True)
class VideoInfo:
    """What a sampler needs to know: frames in the file, frames per second, length in seconds."""

    num_frames: int
    fps: float
    duration: float


def probe(source: str | Path | io.RawIOBase) -> VideoInfo:
    """Reads the header; a container that declares no frame count (webm, mkv) is counted packet by packet."""
    with _opened(source) as (container, stream):
        rate = stream.guessed_rate or stream.average_rate
        if not rate:
            raise VideoError("no frame rate")
        num_frames = stream.frames
        if num_frames <= 0:  # a packet of size 0 only flushes the decoder
            num_frames = sum(1 for packet in container.demux(stream) if packet.size)
        if num_frames <= 0:
            raise VideoError("truncated: holds no frames")
        fps = float(rate)
        duration = _seconds(stream.duration, stream.time_base)
        duration = num_frames / fps if duration is None else duration
        return VideoInfo(num_frames=num_frames, fps=fps, duration=duration)


def stem(name: str) -> str:
    """The name without a video extension; any other dot belongs to the id."""
    bare, extension = os.path.splitext(name)
    return bare if extension.lower() in EXTENSIONS else name


def _seconds(ticks: int | None, base: Fraction | None) -> float | None:
    return None if ticks is None or base is None else float(ticks * base)


def decode(source: str | Path | io.RawIOBase, indices: Collection[int]) -> Iterator[tuple[int, np.ndarray, float]]:
    """(index, frame, seconds) of the frames at `indices`, each once, in the order of time; no other frame is held.

    Frames are decoded one after another up to the last index: seeking is faster, but not exact in every container.
    """
    if not indices:
        return
    assert min(indices) >= 0, indices
    wanted, last = set(indices), max(indices)
    decoded = 0
    with _opened(source) as (container, stream):
        rate = stream.guessed_rate or stream.average_rate
        begin = _seconds(stream.start_time, stream.time_base) or 0.0
        for index, frame in enumerate(container.decode(stream)):
            decoded = index + 1
            if index in wanted:
                seconds = frame.time - begin if frame.time is not None else index / float(rate or 1)
                yield index, _upright(frame), seconds
            if index == last:
                return
    raise VideoError(f"truncated: frame {last} asked for, only {decoded} got decoded")


def write_video(path: str | Path, frames: np.ndarray, fps: int | float) -> None:
    """Writes uint8 frames [time, height, width, 3] as H.264; height and width must be even."""
    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3, (frames.dtype, frames.shape)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            # The thread count is part of what x264 decides by. B-frames are off because with them it gave the same
            # small frames different bytes from call to call (15 of 42 clips in 12 repeats; none without, 5 % larger).
            options = {"preset": "veryfast", "crf": "23", "threads": "1", "bf": "0"}
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            for image in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
            container.mux(stream.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _check(source: Path | io.RawIOBase) -> None:
    """Reasons that FFmpeg would word worse."""
    if isinstance(source, Path) and not source.exists():
        raise VideoError("missing")
    if isinstance(source, Path) and not source.is_file():
        raise VideoError("not a video (not a regular file)")
    if (source.stat().st_size if isinstance(source, Path) else source.seek(0, io.SEEK_END)) == 0:
        raise VideoError("empty file")
    if not isinstance(source, Path):
        source.seek(0)


@contextmanager
def _opened(source: str | Path | io.RawIOBase) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """An open container and its first video stream; everything FFmpeg raises inside becomes a reason."""
    source = Path(source) if isinstance(source, str) else source
    _check(source)
    try:
        container = av.open(source if isinstance(source, io.RawIOBase) else str(source), "r")
    except av.InvalidDataError as error:
        raise VideoError(f"not a video ({_reason(error)}; damaged, or cut before its index)") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"not a video ({_reason(error)})") from None
    with container:
        if not container.streams.video:
            raise VideoError("no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise VideoError("not a video (its codec is unknown here)")
        stream.codec_context.thread_count = 1
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise VideoError(f"truncated: damaged stream ({_reason(error)})") from None


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """RGB pixels as a player shows them: phones store a turned picture and the angle to turn it back by."""
    image = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4  # the display matrix counts counterclockwise, as rot90 does
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def _reason(error: BaseException) -> str:
    """FFmpeg's own words, without error number and file name."""
    words = getattr(error, "strerror", None) or str(error)
    return " ".join(words.split())
