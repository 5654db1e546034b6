"""The two contracts. A student encodes each side alone; a teacher's towers run once, and its interaction ever after.

Rows of every similarity are texts, columns are videos.
"""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill.model.clip import Clip, Video, VideoTokens
from distill.model.features import TextFeatures, VideoFeatures


class RetrievalModel(nn.Module, ABC):
    """What training, evaluation, releases and galleries need of any model."""

    clip: Clip
    mask_padding: bool = False  # padded frames have no weight in its pooling, nor in the fine loss
    pool_temperature: float | None = None  # softmax(relevance / this) are the weights with which frames are pooled

    @abstractmethod
    def encode_text(self, ids: Int[Tensor, "text word"]) -> TextFeatures:
        """The text tower."""

    @abstractmethod
    def encode_video(self, frames: Video | VideoTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """The video tower, from pixels or from the frozen stem's tokens."""

    @abstractmethod
    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Scores without the logit scale: what ranks."""

    @abstractmethod
    def logits(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Scores with the logit scale: what losses see."""


class Interaction(nn.Module, ABC):
    """A teacher's light scoring head: stored features to scores of any batch, without the towers."""

    video_fields: tuple[str, ...] = ("vector", "frames")  # of `VideoFeatures`: what a label set stores of a video

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, to build this module again."""

    @abstractmethod
    def forward(self, text: TextFeatures, video: VideoFeatures, scaled: bool = True) -> Float[Tensor, "text video"]:
        """Logits, or with `scaled=False` the similarity before the logit scale."""

    @abstractmethod
    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """The raw score of every frame of video i for caption i, before any softmax."""


class Teacher(RetrievalModel):
    """A model that can label: all that its score needs beyond the features is in `interaction`."""

    interaction: Interaction
