"""The release as a gallery sees it (`Encoder`), and the weight that frames have in a video, whatever is asked.

A model that pools frames by learned relevance gives each frame its weight in the vector (`pooling`). For any other
model the weights are a softmax over the cosine of each frame with the whole video (`resemblance`; galleries of former
versions also say `tokens`). Padding weighs nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.pictures import Fit
from distill.data.tokens import TextTokenizer
from distill.manifest import Manifest
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.second_look import SecondLook
from distill.model.similarity import unit
from distill.retrieval.backend import check_made_by

RESEMBLANCE_TEMPERATURE = 0.1  # a frame whose cosine is 0.07 below the best counts half


@runtime_checkable
class Encoder(Protocol):
    """The part of a release that a gallery uses."""

    path: Path
    manifest: Manifest
    frames_config: dict[str, Any]  # sampler and size, and whether frames are kept whole
    fit: Fit | None  # of whole frames to its tower
    size: int  # pixels of a side that its tower takes
    num_frames: int
    tokenizer: TextTokenizer  # which cuts queries at what the model reads
    searchable: bool  # whether inner products find its videos; a teacher's do not
    second_look: SecondLook | None  # at frames, chosen on validation
    model: RetrievalModel

    def accept(self, frames: FrameSet) -> FrameSet:
        """Frames as its tower takes them, or an `ArtefactError`."""
        ...

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Features of queries."""

    def encode_frames(
        self, pixels: UInt8[Tensor, "video frame 3 row column"], real: Bool[Tensor, "video frame"]
    ) -> VideoFeatures:
        """Features of padded videos."""

    def encode_video(self, video: str | Path | np.ndarray) -> VideoFeatures:
        """Features (one row) of a file, or of frames that are sampled already."""
        ...


def check_release(path: Path, manifest: Manifest, release: Encoder) -> None:
    """Raise `ArtefactError` for a release that did not make the gallery."""
    check_made_by(path, manifest, release.path, release.manifest.id)


def weighing(release: Encoder) -> dict[str, Any]:
    """Return how `frame_weights` weighs frames, for the manifest."""
    if release.model.pool_temperature is not None:
        return {"frame_weights": "pooling", "frame_temperature": release.model.pool_temperature}
    return {"frame_weights": "resemblance", "frame_temperature": RESEMBLANCE_TEMPERATURE}


def frame_weights(
    release: Encoder, real: Bool[Tensor, "video frame"], video: VideoFeatures
) -> Float[Tensor, "video frame"]:
    """Return the weight of each frame in its video, 0 on padding. `video` are features on the CPU."""
    if release.model.pool_temperature is not None:
        assert video.relevance is not None, "a model that pools by relevance gives its relevance"
        weights = (video.relevance.float() / release.model.pool_temperature).softmax(-1)
        return weights.masked_fill(~real, 0)  # the model may have pooled padding, which nobody can watch
    frames = video.contextual if video.contextual is not None else video.frames
    assert frames is not None, "every model that can be searched gives its frames"
    cosines = (unit(frames) * unit(video.vector).unsqueeze(1)).sum(-1)
    return (cosines.masked_fill(~real, -torch.inf) / RESEMBLANCE_TEMPERATURE).softmax(-1)
