"""Sample a video: choose frames, decode them, cut them to a model's size and compress them as JPEG.

Packing, indexing and `Release.encode_video` all go through `sample_video`, so a model sees the same pixels of a video
whichever way the video reaches it. Light to import, because processes that decode do.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from distill.data.pictures import decode_jpeg, encode_jpeg
from distill.data.sampler import Sampler
from distill.data.video import Source, decode, probe
from distill.errors import VideoError

Result = TypeVar("Result")
Span = tuple[float, float] | None  # start and end in seconds of the file; None: the whole file


@dataclass(frozen=True)
class SampledVideo:
    """The chosen frames of one span of a video."""

    jpegs: list[bytes]  # one per frame, at the model's size
    timestamps: list[float]  # seconds of the file, one per frame
    duration: float  # of the whole file, seconds

    def pixels(self) -> UInt8[np.ndarray, "frame 3 height width"]:
        """Return the frames as every reader of the JPEGs sees them, RGB."""
        return np.stack([decode_jpeg(jpeg) for jpeg in self.jpegs])


def sample_video(source: Source, spans: Sequence[Span], sampler: Sampler, size: int) -> list[SampledVideo]:
    """Return the frames that `sampler` chooses in each span, cut to `size` x `size` pixels.

    The file is decoded once for all spans, and no more than one uncompressed frame is held at a time. Raises
    `VideoError` if the file cannot be read or a span has too few frames.
    """
    info = probe(source)
    chosen = [sampler.indices(info.num_frames, info.fps, *(span or ())) for span in spans]
    frames = {
        index: (encode_jpeg(frame, size), round(seconds, 6))
        for index, frame, seconds in decode(source, {*itertools.chain(*chosen)})
    }
    return [
        SampledVideo([frames[i][0] for i in indices], [frames[i][1] for i in indices], info.duration)
        for indices in chosen
    ]


def attempt(function: Callable[..., Result], *arguments: Any) -> Result | VideoError:
    """Return what `function` returns, or the `VideoError` it raises: one bad file must not end a pool's other work."""
    try:
        return function(*arguments)
    except VideoError as reason:
        return reason
