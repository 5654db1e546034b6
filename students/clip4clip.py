"""CLIP4Clip (Luo et al., 2021): CLIP frame by frame, then a mean over frames, with or without a temporal transformer.

Frames [video, frame, 3, row, column] or stem tokens and token ids [text, word] go in; a video is one vector, a text
one vector, their similarity the cosine.
"""

from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import RetrievalConfig, RetrievalModel
from distill.model.features import VideoFeatures
from distill.model.similarity import mean_pool
from distill.model.temporal import TemporalConfig, TemporalTransformer
from distill.model.towers import Towers


class Clip4ClipConfig(RetrievalConfig):
    """The towers and the head: `meanP` averages CLIP's frames; `seqTransf` lets them see one another first."""

    kind: Literal["clip4clip"]
    head: Literal["meanP", "seqTransf"] = "meanP"  # the mean over frames, or after a temporal transformer
    temporal: TemporalConfig = TemporalConfig()  # read by seqTransf only


class Clip4Clip(RetrievalModel):
    """The mean of a video's unit frames, against the sentence."""

    def __init__(self, config: Clip4ClipConfig, towers: Towers):
        super().__init__()
        self.clip = clip = ClipModel(towers)
        self.temporal = TemporalTransformer.for_clip(clip, config.temporal) if config.head == "seqTransf" else None

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return the masked mean of unit frames, and in use the frames; training has no need of them."""
        features = self.clip.encode_frames(frames, real)
        if self.temporal is not None:
            features = self.temporal(features, real)
        return VideoFeatures(vector=mean_pool(features, real), frames=None if self.training else features, real=real)
