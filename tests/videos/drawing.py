"""Videos that are drawn: container, codec, rate, B-frames, cut, late beginning, turn, pixel aspect and length.

What a player shows at a second is known from the drawing, without any reader.
"""

import itertools
import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np

CODECS = {
    "mp4": ("libx264", "mpeg4", "libvpx-vp9"),
    "mov": ("libx264", "mjpeg"),
    "mkv": ("libx264", "libvpx", "ffv1"),
    "webm": ("libvpx", "libvpx-vp9"),
    "avi": ("libx264", "mpeg4", "mjpeg"),
    "ts": ("libx264", "mpeg2video"),
    "flv": ("libx264", "flv"),
}
B_FRAMES = ("libx264", "mpeg4", "mpeg2video")
SOUND = {"mp4": "flac", "mov": "pcm_s16le", "mkv": "flac", "webm": "libopus", "ts": "ac3", "flv": "pcm_s16le"}
RATES = [Fraction(rate) for rate in (25, 30, 10, "30000/1001", "24000/1001", 60, "1/2")]
STANDARD = (25, 30, Fraction(30_000, 1001), Fraction(24_000, 1001), 60)  # those of MPEG-2
TURNS = [(-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0), (0, -1, -1, 0)]
BASE = Fraction(1, 90_000)


@dataclass(frozen=True)
class Drawn:
    """A video, before it is written."""

    kind: str  # of container, the file's ending
    codec: str
    times: tuple[Fraction, ...]  # seconds at which a player shows each frame; the first is 0
    rate: Fraction | None  # None: not constant
    b_frames: int = 0
    late: Fraction = Fraction(0)  # seconds after its sound at which it begins
    cut: int = 0  # frames at the beginning that an edit list hides
    turn: tuple[int, int, int, int] | None = None  # a, b, c, d of the display matrix
    aspect: Fraction = Fraction(1)  # of a pixel


def draw(random: Random, kinds: tuple[str, ...] = tuple(CODECS)) -> Drawn:
    """Draw a video. Containers keep milliseconds at least, but AVI, which has no time stamps and a constant rate."""
    kind = random.choice(kinds)
    codec = random.choice(CODECS[kind])
    standard = codec in ("mpeg2video", "mpeg4")  # their clocks are coarse, so that not every time can be written
    rate = None if kind != "avi" and not standard and random.random() < 0.5 else random.choice(RATES)
    if codec == "mpeg2video" and rate not in STANDARD:
        rate = Fraction(25)
    least = 12 if kind == "ts" else 2 if rate else 3  # FFmpeg finds no format in a shorter ts; two frames have one rate
    count = random.randint(least, 60)
    mp4 = kind in ("mp4", "mov")
    if rate is None:
        steps = [Fraction(random.randint(20, 900), 1000) for _ in range(count - 1)]
        times = tuple(itertools.accumulate(steps, initial=Fraction(0)))
    else:
        times = tuple(number / rate for number in range(count))
    cut = random.choice((0, random.randint(0, count - least))) if mp4 else 0
    late = math.ceil(Fraction(3, 2) * (rate or 1000)) / Fraction(rate or 1000)
    return Drawn(
        kind,
        codec,
        times,
        rate,
        b_frames=random.randint(0, 3) if codec in B_FRAMES else 0,
        late=late if kind in SOUND and not cut and random.random() < 0.3 else Fraction(0),
        cut=cut,
        turn=random.choice((None, *TURNS)) if mp4 else None,
        aspect=random.choice((Fraction(1), Fraction(4, 3), Fraction(8, 9))) if codec == "libx264" else Fraction(1),
    )


def picture(number: int, width: int = 64, height: int = 64) -> np.ndarray:
    """Return a frame [height, width, 3] that says its number by its colour; its first corner is green."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[..., 0], frame[..., 2] = 30 * (number % 8), 30 * (number // 8 % 8)
    frame[: height // 4, : width // 3, 1] = 120
    return frame


def number_of(frame: np.ndarray) -> int:
    """Return the number of a picture, from 0 to 63."""
    red, _, blue = frame.reshape(-1, 3).mean(0)
    return round(red / 30) + 8 * round(blue / 30)


def write(path: Path, drawn: Drawn) -> Path:
    """Write a drawn video."""
    base = BASE if drawn.rate is None else 1 / drawn.rate
    second = 48_000 if drawn.kind == "webm" else 44_100  # samples of sound
    with av.open(str(path), "w") as container:
        given = {"g": "12"} | ({"bf": str(drawn.b_frames)} if drawn.b_frames else {})
        video = container.add_stream(drawn.codec, rate=drawn.rate or 25, options=given)
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p" if drawn.codec == "mjpeg" else "yuv420p"
        video.bit_rate, video.codec_context.time_base = 2_000_000, base  # so that colours tell frames apart
        video.codec_context.sample_aspect_ratio = drawn.aspect
        sound = container.add_stream(SOUND[drawn.kind], rate=second, layout="mono") if drawn.late else None
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * second), np.int16), format="s16", layout="mono")
            silence.rate, silence.pts = second, 0
            container.mux(sound.encode(silence))
            container.mux(sound.encode())
        for number, time in enumerate(drawn.times):
            frame = av.VideoFrame.from_ndarray(picture(number, 64, 48), format="rgb24")
            frame.pts, frame.time_base = int((time + drawn.late) / base), base
            container.mux(video.encode(frame))
        container.mux(video.encode())
    if drawn.cut:
        _cut(path, drawn.times[drawn.cut])
    if drawn.turn:
        _turn(path, drawn.turn)
    return path


def _cut(path: Path, start: Fraction) -> None:
    """Cut the beginning off without encoding anew: what is before it, back to a key frame, an edit list hides."""
    whole = path.rename(path.with_stem("whole"))
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        video = source.streams.video[0]
        stream, shift = container.add_stream_from_template(video), round(start / video.time_base)
        packets = [packet for packet in source.demux(video) if packet.size]
        first = max(place for place, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= shift)
        for packet in packets[first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            container.mux(packet)
    whole.unlink()


def _turn(path: Path, turn: tuple[int, int, int, int]) -> None:
    """Write a display matrix into the header of the first track."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (value * 65536 for value in turn)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
