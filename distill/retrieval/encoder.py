"""The release as a gallery sees it (`Encoder`), and the frame weights that say which seconds to show.

A model that pools frames by learned relevance gives each frame its weight in the vector (`pooling`). For any other
model the weights are a softmax over the cosine of each frame with the whole video: frames as the tokens hold them
(`tokens`) or, in one stage, as the model returns them; where it returns none, each frame is encoded as a video of its
own, which doubles the work (`resemblance`). Padding weighs nothing.
"""

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


@runtime_checkable
class Encoder(Protocol):
    """The part of a release that a gallery uses."""

    path: Path
    manifest: Manifest
    frames_config: dict[str, Any]  # sampler and size
    num_frames: int
    max_words: int  # tokens of a query that the model reads, start and end included
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
