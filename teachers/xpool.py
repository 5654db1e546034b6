"""X-Pool (Gorti et al., CVPR 2022): the caption chooses what it reads of a video, by one layer of cross-attention.

Frames [video, frame, 3, row, column] or stem tokens and token ids [text, word] go in. For every caption the frames of
every video are pooled by attention, so a video has another vector for each caption: exact, and slow to search.

    here                                  the authors' checkpoint
    interaction.pooling.{q,k,v,out}_proj  pool_frames.cross_attn.{q,k,v,out}_proj
    interaction.pooling.linear_proj       pool_frames.linear_proj
    interaction.pooling.norm{1,2,3}       pool_frames.layer_norm{1,2,3}

Padded frames are not masked.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import Interaction, RetrievalConfig, Teacher
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.logit_scale import LogitScale
from distill.model.pooling import CrossAttention
from distill.model.similarity import mean_pool, precise
from distill.model.towers import Towers


class XPoolConfig(RetrievalConfig):
    """The towers and the dropout of the pooling head."""

    kind: Literal["xpool"]
    dropout: float = Field(default=0.3, ge=0, lt=1)  # after the pooling's last linear layer, training only


class XPoolInteraction(Interaction):
    """X-Pool's scoring head: stored sentences and frames (neither normalised) to similarity, without the towers."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.pooling = CrossAttention(dim, heads=1, dropout=dropout)
        self.logit_scale = LogitScale()
        self.dim, self.dropout = dim, dropout

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, to build this module again."""
        return {"dim": self.dim, "dropout": self.dropout}

    def forward(self, text: TextFeatures, video: VideoFeatures, scaled: bool = True) -> Float[Tensor, "text video"]:
        """Return logits, or with `scaled=False` the cosine of caption and pooled video; in float32 or better."""
        with torch.autocast(text.sentence.device.type, enabled=False):
            similarity = self.pooling.cosine(precise(text.sentence), _frames(video))
        return self.logit_scale(similarity) if scaled else similarity

    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """Return the attention logit of every frame of video i for caption i: a fine label before its softmax."""
        return self.pooling.scores(precise(text.sentence), _frames(video)).squeeze(1)


class XPool(Teacher):
    """The heavy towers, and the interaction that scores their features.

    The logit scale is CLIP's, moved into the interaction (`clip` has none afterwards).
    """

    def __init__(self, config: XPoolConfig, towers: Towers):
        super().__init__()
        self.clip = clip = ClipModel(towers)
        self.interaction = XPoolInteraction(clip.dim, config.dropout)
        self.interaction.logit_scale = clip.take_logit_scale()

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return CLIP's frames as they are."""
        features = self.clip.encode_frames(frames, real)
        return VideoFeatures(vector=mean_pool(features, real), frames=features, real=real)


def _frames(video: VideoFeatures) -> Float[Tensor, "video frame dim"]:
    assert video.frames is not None, "X-Pool pools frames"
    return precise(video.frames)
