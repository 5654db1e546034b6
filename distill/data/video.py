"""Read and write video files with PyAV, which only this module imports.

Every fault of a file is a `VideoError` with a short reason and no path: packing continues with the next video and
reports the reason beside the video's id. Decoders use one thread, because callers run one process per core.
"""

import io
import math
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.format import Flags
from av.sidedata.sidedata import SideData, Type
from av.stream import Disposition
from jaxtyping import Int64

from distill.data.declared import declared_bytes
from distill.data.timeline import Timeline, constant_rate
from distill.errors import VideoError
from distill.publishing import published

EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v")
EXTENSIONS += (".mpg", ".mpeg", ".wmv", ".3gp", ".3g2", ".mts", ".m2ts")  # Flickr originals of DiDeMo
FORMATS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,mxf,mpegvideo,m4v"  # no playlists, which name other files
DECLARING = ("asf", "flv")  # whose headers declare seconds
SHORT = 1.0  # seconds that these may lack
BACK, AHEAD = 1, 10  # seconds by which a clock that jumps back, or in broadcasts ahead, has started again
WIDEST = 8  # of a pixel, width to height
STRETCHED = 8192  # pixels; wider pictures are not made wider, but lower
WIDTH, HEIGHT = 8192, 4352  # of the largest frames of HEVC and AV1 at level 6
LARGEST = WIDTH * HEIGHT  # pixels of a frame: a decoder takes ten bytes and more for each
EXPECTED = f"expected at most {WIDTH} x {HEIGHT}"
LIMIT = {"max_pixels": str(LARGEST)}  # of FFmpeg, for streams whose frames grow
Source = str | Path | io.BufferedReader  # a path or an open file, such as a member of a tar


def probe(source: Source) -> Timeline:
    """Read when a player shows each frame, from the time stamps of all packets; no frame is decoded.

    Raises `VideoError` for a file without frames, and for one that holds less than it declares.
    """
    with _opened(source) as (container, stream):
        declared, held = _declared(source)
        if declared is not None and declared > held:
            raise VideoError(f"truncated: declares {declared:,} bytes, holds {held:,}")
        packets = [(p.pts, p.dts, p.duration or 0, p.is_keyframe, p.is_discard) for p in _packets(container, stream)]
        counted = container.format.name == "avi" or any(shown is None for shown, *_ in packets)
        ticks, last = _shown(packets, counted)
        base, rates = stream.time_base or Fraction(1, 1000), (stream.guessed_rate, stream.average_rate)
        if not len(ticks):
            raise VideoError("truncated: holds no frames")
        origin = min(max(Fraction(container.start_time or 0, av.time_base), Fraction(0)), int(ticks[0]) * base)
        mean = Fraction(int(ticks[-1] - ticks[0]), max(len(ticks) - 1, 1)) or 1 / (rates[0] or 1) / base
        end, lasts = (int(ticks[-1]) + (last or mean)) * base, (container.duration or 0) / av.time_base
        if container.format.name in DECLARING and lasts > end + SHORT:  # headers count from 0, not from the first frame
            raise VideoError(f"truncated: declares {lasts:.1f} s, holds {float(end):.1f} s of frames")
        return Timeline(ticks, origin, base, float(end - origin), constant_rate(ticks, base, rates), counted)


def _shown(
    packets: Sequence[tuple[int | None, int | None, int, bool, bool]], counted: bool
) -> tuple[Int64[np.ndarray, " frame"], int]:
    """Return the time stamps of the frames that get shown, ascending, and the ticks for which the last one is."""
    first = next((place for place, packet in enumerate(packets) if packet[3]), 0)  # nothing before it can be decoded
    leading = packets[first][0] if packets and not counted else None  # nor what is shown before it
    stamps = [
        (decoded if counted else shown, ticks)
        for shown, decoded, ticks, _, dropped in packets[first:]
        if not dropped and (leading is None or shown is None or shown >= leading)
    ]
    if any(tick is None for tick, _ in stamps):
        raise VideoError("its frames have no time stamps")
    found = [(tick, ticks) for tick, ticks in stamps if tick is not None]
    return np.unique(np.array([tick for tick, _ in found], dtype=np.int64)), max(found, default=(0, 0))[1]


def _declared(source: Source) -> tuple[int | None, int]:
    """Return how many bytes a file declares, if it does, and how many it holds."""
    with nullcontext(source) if isinstance(source, io.BufferedReader) else open(source, "rb") as file:
        place = file.tell()
        found = declared_bytes(file), file.seek(0, io.SEEK_END)
        file.seek(place)
        return found


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yield the packets of a stream; where files were joined and their clock starts again, time stamps go on."""
    second = 1 / (stream.time_base or Fraction(1))
    back = -math.floor(BACK * second)  # whole numbers: this runs for every packet
    ahead = math.floor(AHEAD * second) if container.format.flags & Flags.ts_discont.value else math.inf
    shift, before, seen, earliest, latest = 0, None, 0, 0, 0
    for packet in container.demux(stream):
        if not packet.size:  # it only flushes the decoder
            continue
        if packet.dts is not None:
            if before is not None and not back <= packet.dts - before <= ahead:
                step = (latest - earliest) // max(seen - 1, 1)
                shift = latest + step - (packet.dts if packet.pts is None else packet.pts)
            before = packet.dts
            if shift:
                packet.dts += shift
        if (shown := packet.pts) is not None:
            if shift:
                packet.pts = shown = shown + shift
            earliest, latest = (min(earliest, shown), max(latest, shown)) if seen else (shown, shown)
            seen += 1
        yield packet


def stem(name: str) -> str:
    """Return the name without its video extension; anything else after a dot belongs to the id."""
    bare, extension = os.path.splitext(name)
    return bare if extension.lower() in EXTENSIONS else name


def decode(source: Source, timeline: Timeline, frames: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, frame) of the frames of a timeline, each once, by time.

    A frame is uint8 RGB [height, width, 3]; one is in memory at a time. All up to the last one are decoded: seeking,
    which is faster, does not reach the exact frame in every container. Raises `VideoError` if one cannot be decoded.
    """
    wanted = deque(sorted(set(frames)))
    if not wanted:
        return
    assert wanted[0] >= 0 and wanted[-1] < len(timeline), wanted
    before: tuple[int, av.VideoFrame] | None = None
    ticks = None if timeline.counted else timeline.ticks.tolist()
    with _opened(source) as (container, stream):
        for frame in _frames(container, stream):
            number = _number(frame, before, ticks)
            while wanted and wanted[0] < number:
                yield wanted[0], _picture(_standing(before, wanted[0], timeline), stream)
                wanted.popleft()
            if wanted and wanted[0] == number:
                yield wanted.popleft(), _picture(frame, stream)
            if not wanted:
                return
            before = number, frame
        while wanted:
            yield wanted[0], _picture(_standing(before, wanted[0], timeline), stream)
            wanted.popleft()


def _number(frame: av.VideoFrame, before: tuple[int, av.VideoFrame] | None, ticks: list[int] | None) -> int:
    """Return the number of a decoded frame: by the time stamps of all, or the next one where those are None."""
    if ticks is None or frame.pts is None:
        return 0 if before is None else before[0] + 1
    return bisect_right(ticks, frame.pts) - 1


def _standing(before: tuple[int, av.VideoFrame] | None, wanted: int, timeline: Timeline) -> av.VideoFrame:
    """Return the frame before a missing one, which a player goes on showing: one packet may be half of a picture."""
    if before is None or wanted - before[0] > 1:
        raise VideoError(f"truncated: the frame of {timeline.seconds(wanted):.3f} s cannot be decoded")
    return before[1]


def _frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    for packet in _packets(container, stream):
        yield from cast(list[av.VideoFrame], packet.decode())
    yield from stream.codec_context.decode(None)


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
        # "file:" because FFmpeg takes what stands before a colon in a name for a protocol
        opened = source if isinstance(source, io.BufferedReader) else f"file:{source}"
        container = av.open(opened, "r", options={"format_whitelist": FORMATS, **LIMIT})
    except av.InvalidDataError as error:
        raise VideoError(f"not a video ({_reason(error)}; damaged, or cut before its index)") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"not a video ({_reason(error)})") from None
    with container:
        covers = Disposition.attached_pic | Disposition.timed_thumbnails
        stream = next((found for found in container.streams.video if not found.disposition & covers), None)
        if stream is None:
            raise VideoError("no video stream")
        if stream.codec_context is None:
            raise VideoError("not a video (its codec is unknown here)")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > LARGEST:
            raise VideoError(f"frames of {width} x {height} pixels: {EXPECTED}")
        stream.codec_context.options, stream.codec_context.thread_count = LIMIT, 1
        try:
            yield container, stream
        except av.FFmpegError as error:
            if not width * height:  # FFmpeg leaves out a size above the limit
                raise VideoError(f"frames of a size that is unknown or too large: {EXPECTED}") from None
            raise VideoError(f"truncated: damaged stream ({_reason(error)})") from None


def _picture(frame: av.VideoFrame, stream: av.VideoStream) -> np.ndarray:
    """Return RGB pixels as a player shows them: of its pixel aspect, turned and mirrored as the file says."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / WIDEST <= aspect <= WIDEST:
        raise VideoError(f"pixel aspect {aspect}: expected at most {WIDEST} to 1")
    frame = frame if aspect == 1 else _square(frame, aspect)
    image = frame.to_ndarray(format="rgb24")
    known = cast(Iterable[SideData], frame.side_data)  # PyAV's annotation says otherwise
    matrix = next((bytes(data) for data in known if data.type == Type.DISPLAYMATRIX), None)
    return image if matrix is None else np.ascontiguousarray(_displayed(image, np.frombuffer(matrix, np.int32)))


def _square(frame: av.VideoFrame, aspect: Fraction) -> av.VideoFrame:
    """Return a frame with square pixels; what a file says of them makes a large picture no larger."""
    full = frame.width * aspect
    width = min(round(full), max(frame.width, STRETCHED))
    height = frame.height if width == round(full) else round(frame.height * width / full)
    return frame.reformat(width=max(width, 1), height=max(height, 1))


def _displayed(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a display matrix (ISO 14496-12, 6.2.2: x' = a x + c y, y' = b x + d y) to the nearest quarter turn."""
    a, b, _, c, d, *_ = matrix.tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _reason(error: BaseException) -> str:
    """Return FFmpeg's message without error number and file name."""
    words = getattr(error, "strerror", None) or str(error)
    return " ".join(words.split())
