"""Odd video files, as people have them: every one is written here, with what a player shows of it or why it cannot.

Frames tell their number by their colours (tests/videos/drawing.py).
"""

import os
import shlex
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
from videos.drawing import picture
from videos.writing import regular, song, sound, with_sound, write

FFMPEG = shutil.which("ffmpeg")


@dataclass(frozen=True)
class Odd:
    """A file, and the seconds from which on a player shows each of its frames, or words of the line about it."""

    name: str  # below the folder
    make: Callable[[Path], object]
    times: Sequence[Fraction | float] = ()
    reason: str = ""
    numbers: Sequence[int] = ()  # of the frames, if they do not count from 0


def coded(path: Path, codec: str, times: Sequence[Fraction], pixels: str = "yuv420p", **options: str) -> None:
    """A file of frames in any codec and pixel format; containers take their own time base."""
    rate = 1 / (times[1] - times[0])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        for number in range(len(times)):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pixels)))
        container.mux(stream.encode())


def remuxed(path: Path, cut: float) -> None:
    """A film cut at a second without encoding it again: packets from the key frame before are kept, and not shown."""
    whole = write(path.with_name("whole.mp4"), regular(60, 10))
    with av.open(str(whole)) as given, av.open(str(path), "w") as container:
        source = given.streams.video[0]
        stream = container.add_stream_from_template(source)
        packets = [packet for packet in given.demux(source) if packet.size]
        begin = int(cut / source.time_base)
        key = max(packet.pts for packet in packets if packet.is_keyframe and packet.pts <= begin)
        for packet in packets:
            if packet.pts >= key:
                packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, stream
                container.mux(packet)
    whole.unlink()


def joined(path: Path) -> None:
    """Two recordings, one behind the other in one file."""
    part = write(path.with_suffix(".ts" if path.suffix == ".mts" else path.suffix), regular(40, 10), rate=10)
    content = part.read_bytes()
    part.unlink()
    path.write_bytes(content + content)


def half(path: Path, **options: str) -> None:
    """A download that broke off."""
    content = write(path, regular(60, 25), **options).read_bytes()
    path.write_bytes(content[: len(content) * 3 // 5])


def liar(path: Path) -> None:
    """An mp4 whose header declares 2^31 frames."""
    content = bytearray(write(path, regular(30, 10)).read_bytes())
    struct.pack_into(">I", content, content.index(b"stts") + 12, 2**31 - 1)
    path.write_bytes(content)


def packed(path: Path) -> None:
    """An archive under a video's name."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.mp4", "no video")


def still(path: Path) -> None:
    """A picture under a video's name."""
    coded(path.with_suffix(".mkv"), "mjpeg", regular(2, 1), "yuvj420p")
    content = path.with_suffix(".mkv").read_bytes()
    path.with_suffix(".mkv").unlink()
    path.write_bytes(content[content.index(b"\xff\xd8") : content.index(b"\xff\xd9") + 2])


def _film(rate: Fraction | int, count: int, **options: str) -> Callable[[Path], object]:
    return lambda path: write(path, regular(count, rate), **options)


VARYING = [*regular(24, 12), *regular(36, 2, start=2)]
CODECS = {  # file -> codec, pixel format, frames a second
    "prores.mov": ("prores_ks", "yuv422p10le", 10),
    "ffv1.mkv": ("ffv1", "yuv420p", 10),
    "mjpeg.avi": ("mjpeg", "yuvj420p", 10),
    "vp9.webm": ("libvpx-vp9", "yuv420p", 10),
    "hevc.mp4": ("libx265", "yuv420p", 10),
    "av1.mp4": ("libsvtav1", "yuv420p", 10),
    "mpeg1.mpg": ("mpeg1video", "yuv420p", 25),
    "mpeg2.mpeg": ("mpeg2video", "yuv420p", 25),
    "wmv2.wmv": ("wmv2", "yuv420p", 10),
    "mpeg4.avi": ("mpeg4", "yuv420p", 10),
    "phone.3gp": ("mpeg4", "yuv420p", 10),
    "animation.mov": ("qtrle", "argb", 10),
    "ten-bit.mkv": ("libx264", "yuv420p10le", 10),
    "full-colour.mp4": ("libx264", "yuv444p", 10),
    "huffyuv.avi": ("huffyuv", "yuv422p", 10),
    "camera.mts": ("libx264", "yuv420p", 10),
    "apple.m4v": ("mpeg4", "yuv420p", 10),
    "raw.avi": ("rawvideo", "bgr24", 10),
    "screens.mov": ("png", "rgb24", 10),
    "divx.avi": ("msmpeg4v3", "yuv420p", 10),
    "broadcast.m2ts": ("mpeg2video", "yuv420p", 25),
    "cinepak.avi": ("cinepak", "rgb24", 10),
}


def _coded() -> list[Odd]:
    return [
        Odd(f"codecs/{name}", partial(_by, codec, pixels, rate), regular(40, rate))
        for name, (codec, pixels, rate) in CODECS.items()
    ]


def _by(codec: str, pixels: str, rate: int, path: Path) -> None:
    coded(path, codec, regular(40, rate), pixels, **({"x265-params": "log-level=none"} if "265" in codec else {}))


def _timed() -> list[Odd]:
    """Files whose seconds are not their frames by one rate."""
    films = {
        "varying-1.mp4": VARYING,
        "varying-2.mkv": VARYING,
        "varying-3.webm": VARYING,
        "film-23.976.mkv": regular(200, Fraction(24_000, 1001)),
        "film-29.97.mp4": regular(200, Fraction(30_000, 1001)),
        "lapse.mp4": regular(5, Fraction(1, 10)),
        "one-frame.mp4": regular(1, 10),
        "two-frames.webm": regular(2, 1),
        "thousand.mkv": regular(300, 1000),
        "gap.mkv": [Fraction(0), Fraction(1, 10), Fraction(4000)],
    }
    made = [Odd(f"time/{name}", partial(_written, times), times) for name, times in films.items()]
    tens = regular(60, 10)
    return [
        *made,
        Odd("time/fragments.mp4", _film(10, 60, movflags="frag_keyframe"), tens),
        Odd("time/fragments-alone.mp4", _film(10, 60, movflags="frag_keyframe+empty_moov+default_base_moof"), tens),
        Odd("time/live-1.webm", _film(10, 60, live="1"), tens),
        Odd("time/live-2.mkv", _film(10, 60, live="1"), tens),
        Odd("time/b-frames.mp4", lambda path: write(path, tens, b_frames=3), tens),
        Odd("time/b-frames-2.avi", lambda path: coded(path, "libx264", tens, bf="3"), tens),
        Odd("time/index-first.mp4", _film(10, 60, movflags="+faststart"), tens),
        Odd("time/long-sound.mp4", lambda path: with_sound(path, regular(30, 10), 9.0), regular(30, 10)),
        Odd("time/late.mp4", lambda path: with_sound(path, regular(50, 10, start=3), 8.0), regular(50, 10, start=3)),
        Odd("time/late-2.mkv", lambda path: with_sound(path, regular(50, 10, start=3), 8.0), regular(50, 10, start=3)),
        Odd("time/joined.mkv", joined, [*regular(40, 10), *regular(40, 10, start=4)], numbers=[*range(40)] * 2),
        Odd("time/joined-2.mts", joined, [*regular(40, 10), *regular(40, 10, start=4)], numbers=[*range(40)] * 2),
        Odd("time/cut.mp4", partial(remuxed, cut=1.7), regular(43, 10), numbers=range(17, 60)),
        Odd("time/liar.mp4", liar, regular(30, 10)),
    ]


def _written(times: Sequence[Fraction], path: Path) -> None:
    write(path, times)


def _broken() -> list[Odd]:
    """Files of which nothing can be shown, or not all that they declare."""
    faststart = partial(half, movflags="+faststart")
    return [
        Odd("broken/empty.mp4", lambda path: path.write_bytes(b""), reason="empty"),
        Odd("broken/text.mp4", lambda path: path.write_text("not a video"), reason="not a video"),
        Odd("broken/zeros.mkv", lambda path: path.write_bytes(bytes(100_000)), reason="not a video"),
        Odd("broken/archive.mp4", packed, reason="not a video"),
        Odd("broken/still.mp4", still, reason="not a video"),
        Odd("broken/list.mp4", lambda path: path.write_text("#EXTM3U\n#EXTINF:5\na.mp4\n"), reason="not a video"),
        Odd(
            "broken/concat.mp4",
            lambda path: path.write_text("ffconcat version 1.0\nfile a.mp4\n"),
            reason="not a video",
        ),
        Odd("broken/half.mp4", faststart, reason="truncated"),
        Odd("broken/half-2.webm", half, reason="truncated"),
        Odd("broken/half-3.mkv", half, reason="truncated"),
        Odd("broken/half-4.avi", half, reason="truncated"),
        Odd("broken/no-index.mp4", half, reason="not a video"),
        Odd("broken/song.mp4", song, reason="no video stream"),
        Odd("broken/sound.mp4", sound, reason="no video stream"),
        Odd("broken/away.mp4", lambda path: path.symlink_to("nowhere.mp4"), reason="missing"),
        Odd("broken/pipe.mp4", os.mkfifo, reason="not a regular file"),
    ]


def _renamed(path: Path) -> None:
    write(path.parent / "plain.mp4", regular(20, 10)).rename(path)


def _named() -> list[Odd]:
    """Good files under names that tools stumble over."""
    names = ["concat:a.mp4", "file:b.mp4", "http:c.mp4", "%03d.mp4", "a b 'c' \"d\" & #e?.mp4", "ü\N{CAT FACE}.mp4"]
    names += [
        "LOUD.MP4",
        "a.b.c.mp4",
        "-o.mp4",
        "x" * 240 + ".mp4",
        "deep/er/and/deeper.mp4",
        "clip@0-5.mp4",
        "[1].mp4",
    ]
    return [Odd(f"names/{name}", _renamed, regular(20, 10)) for name in names]


def _by_ffmpeg() -> list[Odd]:
    """Files that FFmpeg's own command makes of 40 frames, 10 a second; none where it is not installed."""
    tens = regular(40, 10)
    made: dict[str, tuple[str, Sequence[Fraction], Sequence[int]]] = {
        "cut.mp4": ("-ss 1.7 -i source.mkv -c copy", regular(23, 10), range(17, 40)),
        "edited.mov": ("-ss 0.5 -i source.mkv -c copy", regular(35, 10), range(5, 40)),
        "fragments.mp4": ("-i source.mkv -c copy -movflags frag_keyframe+empty_moov", tens, range(40)),
        "dropped.mp4": (r"-i source.mkv -vf 'select=not(mod(n\,7))' -vsync vfr", tens[::7], range(0, 40, 7)),
        "mpeg4.avi": ("-i source.mkv -c:v mpeg4 -bf 2", tens, range(40)),
        "wide-pixels.mkv": ("-i source.mkv -vf setsar=2", tens, range(40)),
        "turned.mp4": ("-i source.mkv -c copy -metadata:s:v rotate=90", tens, range(40)),
        "interlaced.mpg": (
            "-i source.mkv -vf setpts=PTS*2/5 -r 25 -c:v mpeg2video -flags +ildct+ilme",
            regular(40, 25),
            range(40),
        ),
        "alpha.webm": ("-i source.mkv -vf format=yuva420p -c:v libvpx -auto-alt-ref 0", tens, range(40)),
        "slow.mkv": ("-i source.mkv -vf setpts=40*PTS -vsync vfr", [40 * time for time in tens], range(40)),
        "broadcast.mts": ("-i source.mkv -c:v libx264 -output_ts_offset 95440", tens, range(40)),
    }
    return [
        Odd(f"ffmpeg/{name}", partial(_converted, options), times, numbers=numbers)
        for name, (options, times, numbers) in (made.items() if FFMPEG else ())
    ]


def _converted(options: str, path: Path) -> None:
    source = write(path.with_name("source.mkv"), regular(40, 10))
    command = [str(FFMPEG), "-nostdin", "-loglevel", "error", *shlex.split(options), path.name]
    subprocess.run(command, check=True, timeout=60, cwd=path.parent)
    source.unlink()


ODD = [*_coded(), *_timed(), *_broken(), *_named(), *_by_ffmpeg()]
