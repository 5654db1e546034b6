"""Write small video files whose frames tell their number, at times that the caller chooses."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from videos.drawing import picture

CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "libx264", "ts": "libx264", "flv": "libx264"}


def write(
    path: Path,
    times: Sequence[Fraction],
    b_frames: int = 0,
    aspect: Fraction | None = None,
    rate: int = 25,
    **options: str,
) -> Path:
    """A video whose frame `n` is shown from `times[n]` on (seconds)."""
    with av.open(str(path), "w", options=options) as container:
        base = Fraction(1, 90_000)
        given = {"bf": str(b_frames)} if b_frames else {}
        stream = container.add_stream(CODECS[path.suffix[1:]], rate=rate, options={"g": "12", **given})
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = int(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def regular(count: int, rate: Fraction | int, start: float = 0) -> tuple[Fraction, ...]:
    return tuple(Fraction(start) + number / Fraction(rate) for number in range(count))


def with_sound(path: Path, times: Sequence[Fraction], seconds: float) -> None:
    """A file whose sound lasts `seconds`."""
    with av.open(str(path), "w") as container:
        sound, video = container.add_stream("aac", rate=8000, layout="mono"), container.add_stream("libx264", rate=10)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = int(time * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        _silence(container, sound, seconds)


def song(path: Path) -> None:
    """Sound with a cover picture."""
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=8000, layout="mono"), container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(5), format="rgb24").reformat(format="yuvj420p")))
        _silence(container, sound, 1)
        container.mux(cover.encode())


def sound(path: Path) -> None:
    """Sound alone."""
    with av.open(str(path), "w") as container:
        _silence(container, container.add_stream("aac", rate=8000, layout="mono"), 1)


def _silence(container: av.container.OutputContainer, sound: av.AudioStream, seconds: float) -> None:
    silence = av.AudioFrame.from_ndarray(np.zeros((1, int(8000 * seconds)), np.float32), format="fltp", layout="mono")
    silence.rate, silence.pts = 8000, 0
    container.mux(sound.encode(silence))
    container.mux(sound.encode())
