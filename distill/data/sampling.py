"""Sample a video: choose frames, decode them, cut them to a model's size or keep them whole, and compress them as JPEG.

Packing, indexing and `Release.encode_video` all go through `sample_video`, so a model sees the same pixels of a video
whichever way the video reaches it. Light to import, because processes that decode do.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from distill.data.pictures import Fit, decode_jpeg, encode_jpeg
from distill.data.sampler import Sampler
from distill.data.timeline import Span, Timeline
from distill.data.video import Source, decode, probe
from distill.errors import VideoError

Result = TypeVar("Result")


@dataclass(frozen=True)
class SampledVideo:
    """The chosen frames of one span of a video."""

    jpegs: list[bytes]  # one per frame, as they are stored
    timestamps: list[float]  # seconds of the file, one per frame
    duration: float  # of the whole file, seconds

    def pixels(self, fit: Fit | None = None) -> UInt8[np.ndarray, "frame 3 height width"]:
        """Return the frames as every reader of the JPEGs sees them, RGB; whole ones need a fit."""
        return np.stack([decode_jpeg(jpeg, fit) for jpeg in self.jpegs])


def sample_video(
    source: Source, spans: Sequence[Span], sampler: Sampler, size: int, whole: bool = False, published: bool = False
) -> list[SampledVideo | VideoError]:
    """Return the frames that `sampler` chooses in each span, cut to `size` x `size` pixels or `whole` (see
    `encode_jpeg`); for an empty span, why.

    The file is decoded once for all spans, and no more than two uncompressed frames are held at a time. `published`
    spans are those of data sets whose rule counts frames. Raises `VideoError` if the file cannot be read.
    """
    timeline = probe(source)
    chosen = [attempt(timeline.choose, sampler, span, published) for span in spans]
    wanted = itertools.chain(*(frames for frames in chosen if not isinstance(frames, VideoError)))
    jpegs = {number: encode_jpeg(frame, size, whole) for number, frame in decode(source, timeline, {*wanted})}
    return [
        frames if isinstance(frames, VideoError) else _sampled(timeline, span, frames, jpegs)
        for span, frames in zip(spans, chosen, strict=True)
    ]


def sample_one(
    source: Source, span: Span, sampler: Sampler, size: int, whole: bool = False, published: bool = False
) -> SampledVideo:
    """Return the frames of one span. Raises `VideoError` if the file cannot be read or the span is empty."""
    (found,) = sample_video(source, [span], sampler, size, whole, published)
    if isinstance(found, VideoError):
        raise found
    return found


def _sampled(timeline: Timeline, span: Span, frames: Sequence[int], jpegs: Mapping[int, bytes]) -> SampledVideo:
    """Return frames with the seconds of their span at which they are shown; an earlier one is, from its start on."""
    start = span[0] if span is not None else 0.0
    seconds = [round(max(timeline.seconds(frame), start), 6) for frame in frames]
    return SampledVideo([jpegs[frame] for frame in frames], seconds, timeline.duration)


def attempt(function: Callable[..., Result], *arguments: Any) -> Result | VideoError:
    """Return what `function` returns, or the `VideoError` it raises: one bad file must not end a pool's other work."""
    try:
        return function(*arguments)
    except VideoError as reason:
        return reason
