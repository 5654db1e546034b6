"""TeachCLIP (Tian et al., CVPR 2024): CLIP4Clip's towers and temporal transformer with attentive frame aggregation.

As cheap to search as CLIP4Clip (one vector per video), but the weight of every frame in that vector is learned, and
can be taught by a teacher that compares frames with the caption. Frames [video, frame, 3, row, column] or stem tokens
and token ids [text, word] go in.
"""

from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from distill.model.afa import AfaConfig, AttentiveFrameAggregation
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import RetrievalConfig, RetrievalModel
from distill.model.features import VideoFeatures
from distill.model.temporal import TemporalConfig, TemporalTransformer
from distill.model.towers import Towers


class TeachClipConfig(RetrievalConfig):
    """The towers, the temporal transformer, and how frames are pooled."""

    kind: Literal["teachclip"]
    temporal: TemporalConfig = TemporalConfig()
    afa: AfaConfig = AfaConfig()

    def fine_targets(self) -> tuple[str, ...]:
        """Return the name of the frame aggregation."""
        return ("pooling",)


class TeachClip(RetrievalModel):
    """The relevance-weighted mean of a video's unit frames, against the sentence."""

    def __init__(self, config: TeachClipConfig, towers: Towers):
        super().__init__()
        self.clip = clip = ClipModel(towers)
        self.temporal = TemporalTransformer.for_clip(clip, config.temporal)
        self.pool_temperature = config.afa.pool_temperature
        self.mask_padding = config.afa.mask_padding
        self.afa = AttentiveFrameAggregation(clip.dim, config.afa)

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return the pooled vector, and the raw frame relevance for the fine loss."""
        contextual = self.temporal(self.clip.encode_frames(frames, real), real)
        vector, relevance = self.afa(contextual, real)
        return VideoFeatures(vector=vector, relevance=relevance, real=real)
