"""The release as a gallery sees it (`Encoder`), and the frame weights that say which seconds of a hit to show.

A model that pools frames by learned relevance gives each frame its weight in the vector (`pooling`). For any other
model the weights are a softmax over the cosine of each frame with the whole video: frames as the tokens hold them
(`tokens`) or, in one stage, as the model returns them; where it returns none, each frame is encoded as a video of its
own, which doubles the work (`resemblance`). Padding weighs nothing.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from distill.manifest import Manifest
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import unit

RESEMBLANCE_TEMPERATURE = 0.1  # a frame whose cosine is 0.07 below the best counts half
SHOWN = 0.5  # share of the peak weight above which a neighbouring frame belongs to the moment
LONE_FRAME = 1.0  # seconds that a video's only frame stands for


@runtime_checkable
class Encoder(Protocol):
    """The part of a release that a gallery uses."""

    path: Path
    manifest: Manifest
    frames_config: dict[str, Any]  # sampler and size
    num_frames: int
    searchable: bool  # whether inner products find its videos; a teacher's do not
    model: RetrievalModel

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Features of queries."""

    def encode_frames(
        self, pixels: UInt8[Tensor, "video frame 3 row column"], real: Bool[Tensor, "video frame"]
    ) -> VideoFeatures:
        """Features of padded videos."""

    def encode_video(self, video: Path) -> VideoFeatures:
        """Features (one row) of a file."""
        ...


def weighing(release: Encoder) -> dict[str, Any]:
    """Return how `frame_weights` weighs frames, for the manifest."""
    if release.model.pool_temperature is not None:
        return {"frame_weights": "pooling", "frame_temperature": release.model.pool_temperature}
    by_cosine = "tokens" if release.model.rerank_fields else "resemblance"
    return {"frame_weights": by_cosine, "frame_temperature": RESEMBLANCE_TEMPERATURE}


def frame_weights(
    release: Encoder,
    pixels: UInt8[Tensor, "video frame 3 row column"],
    real: Bool[Tensor, "video frame"],
    video: VideoFeatures,
) -> Float[Tensor, "video frame"]:
    """Return the weight of each frame, 0 on padding. `video` are the features of the pixels, on the CPU."""
    if release.model.pool_temperature is not None:
        assert video.relevance is not None, "a model that pools by relevance gives its relevance"
        weights = (video.relevance.float() / release.model.pool_temperature).softmax(-1)
        return weights.masked_fill(~real, 0)  # the model may have pooled padding, which nobody can watch
    frames = video.contextual if video.contextual is not None else video.frames
    if frames is None:
        alone = release.encode_frames(pixels[real].unsqueeze(1), real[real].unsqueeze(1)).to("cpu").vector
    else:
        alone = frames[real].float()
    cosines = torch.full(real.shape, -torch.inf)
    cosines[real] = (unit(alone) * unit(video.vector)[real.nonzero()[:, 0]]).sum(-1)
    return (cosines / RESEMBLANCE_TEMPERATURE).softmax(-1)


def best_moment(
    weights: Sequence[float], timestamps: Sequence[float], duration: float, start: float = 0.0
) -> tuple[float, float]:
    """Return the seconds around the frame with the highest weight, as far as neighbours weigh at least half as much.

    A frame stands for the time up to half way to its neighbours; nothing is shown before `start` or after `duration`.
    Frames come in any order, and may come twice.
    """
    heaviest: dict[float, float] = {}
    for second, weight in zip(timestamps, weights, strict=False):  # padded frames have weights, but no time
        heaviest[second] = max(weight, heaviest.get(second, 0.0))
    timestamps = sorted(heaviest)
    weights = [heaviest[second] for second in timestamps]
    peak = max(range(len(timestamps)), key=lambda frame: weights[frame])
    first = last = peak
    while first > 0 and weights[first - 1] >= SHOWN * weights[peak]:
        first -= 1
    while last + 1 < len(timestamps) and weights[last + 1] >= SHOWN * weights[peak]:
        last += 1
    gaps = [after - before for before, after in itertools.pairwise(timestamps)] or [LONE_FRAME]
    begin = timestamps[first] - gaps[max(first - 1, 0)] / 2
    end = timestamps[last] + gaps[min(last, len(gaps) - 1)] / 2
    length = max(duration, timestamps[-1])  # some containers declare less than they hold
    return round(max(begin, start), 3), round(min(end, length), 3)
