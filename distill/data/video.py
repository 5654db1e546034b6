"""Read and write video files with PyAV, which only this module imports.

Every fault of a file is a `VideoError` with a short reason and no path: packing continues with the next video and
reports the reason beside the video's id. Decoders use one thread, because callers run one process per core.
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
from distill.publishing import published

EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v")
EXTENSIONS += (".mpg", ".mpeg", ".wmv", ".3gp", ".3g2", ".mts", ".m2ts")  # Flickr originals of DiDeMo
Source = str | Path | io.BufferedReader  # a path or an open file, such as a member of a tar


@dataclass(frozen=True)
class VideoInfo:
    """The properties of a file that a sampler needs."""

    num_frames: int
    fps: float  # frames per second
    duration: float  # seconds


def probe(source: Source) -> VideoInfo:
    """Read the header; where it holds no frame count (webm, mkv), count the packets. Raises `VideoError`."""
    with _opened(source) as (container, stream):
        rate = stream.guessed_rate or stream.average_rate
        if not rate:
            raise VideoError("no frame rate")
        # A packet of size 0 only flushes the decoder.
        num_frames = max(stream.frames, 0) or sum(1 for packet in container.demux(stream) if packet.size)
        if not num_frames:
            raise VideoError("truncated: holds no frames")
        duration = _seconds(stream.duration, stream.time_base)
        return VideoInfo(num_frames, float(rate), num_frames / float(rate) if duration is None else duration)


def stem(name: str) -> str:
    """Return the name without its video extension; anything else after a dot belongs to the id."""
    bare, extension = os.path.splitext(name)
    return bare if extension.lower() in EXTENSIONS else name


def _seconds(ticks: int | None, base: Fraction | None) -> float | None:
    return None if ticks is None or base is None else float(ticks * base)


def decode(source: Source, indices: Collection[int]) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yield (index, frame, seconds) of the frames at `indices` (0-based, in presentation order), each once, by time.

    A frame is uint8 RGB [height, width, 3]; one is in memory at a time. All up to the last index are decoded: seeking,
    which is faster, does not reach the exact frame in every container. Raises `VideoError` if the file ends too early.
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
    """Write uint8 RGB frames [time, height, width, 3] as H.264, always the same bytes; sides must be even."""
    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3, (frames.dtype, frames.shape)
    with (
        published(Path(path)) as file,
        av.open(file.name, "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        # x264's output depends on its thread count. With B-frames the same small frames gave different bytes from
        # call to call (15 of 42 clips in 12 repeats); without them none did, and the files are 5 % larger.
        options = {"preset": "veryfast", "crf": "23", "threads": "1", "bf": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def _opened(source: Source) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a container and its first video stream; turn every error of FFmpeg inside the block into a `VideoError`."""
    if isinstance(source, io.BufferedReader):
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
    elif not os.path.exists(source):  # these are reasons that FFmpeg would state less clearly
        raise VideoError("missing")
    elif not os.path.isfile(source):
        raise VideoError("not a video (not a regular file)")
    else:
        size = os.path.getsize(source)
    if size == 0:
        raise VideoError("empty file")
    try:
        container = av.open(source if isinstance(source, io.BufferedReader) else str(source), "r")
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
    """Return RGB pixels as a player shows them: phones store a rotated picture and the angle that undoes it."""
    image = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4  # the display matrix counts counterclockwise, as rot90 does
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def _reason(error: BaseException) -> str:
    """Return FFmpeg's message without error number and file name."""
    words = getattr(error, "strerror", None) or str(error)
    return " ".join(words.split())
