"""TeachCLIP (Tian et al., CVPR 2024): CLIP4Clip's towers and temporal transformer with attentive frame aggregation.

As cheap to search as CLIP4Clip (one vector per video), but the weight of every frame in that vector is learned, and
can be taught by a teacher that compares frames with the caption. Frames [video, frame, 3, row, column] or stem tokens
and token ids [text, word] go in.
"""

from dataclasses import replace
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from distill.model.afa import AfaConfig, AttentiveFrameAggregation
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import RetrievalConfig, RetrievalModel, TrainingScores
from distill.model.features import PairFeatures, TextFeatures, VideoFeatures
from distill.model.second_look import TaughtLook, second_look
from distill.model.temporal import TemporalConfig, TemporalTransformer
from distill.model.towers import Towers


class TeachClipConfig(RetrievalConfig):
    """The towers, the temporal transformer, and how frames are pooled."""

    kind: Literal["teachclip"]
    temporal: TemporalConfig = TemporalConfig()
    afa: AfaConfig = AfaConfig()
    second: TaughtLook | None = None  # null: as published, training sees one vector a video

    def released(self) -> RetrievalConfig:
        """Leave out how it was trained: what a second look takes is chosen on validation."""
        return self.model_copy(update={"second": None})

    def coarse_targets(self) -> tuple[str, ...]:
        """Return the names of the logits of the vector and, if it is trained for that, of the second look."""
        return ("logits",) if self.second is None else ("logits", "second")

    def fine_targets(self) -> tuple[str, ...]:
        """Return the names of the frame aggregation and, if it is trained for that, of the second look."""
        return ("pooling",) if self.second is None else ("pooling", "second")


class TeachClip(RetrievalModel):
    """The relevance-weighted mean of a video's unit frames, against the sentence."""

    def __init__(self, config: TeachClipConfig, towers: Towers):
        super().__init__()
        self.clip = clip = ClipModel(towers)
        self.temporal = TemporalTransformer.for_clip(clip, config.temporal)
        self.pool_temperature = config.afa.pool_temperature
        self.mask_padding = config.afa.mask_padding
        self.afa = AttentiveFrameAggregation(clip.dim, config.afa)
        self.second = config.second

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return the pooled vector, the raw weights of its frames for the fine loss, and in use these frames."""
        contextual = self.temporal(self.clip.encode_frames(frames, real), real)
        vector, relevance = self.afa(contextual, real)
        kept = None if self.training and self.second is None else contextual
        return VideoFeatures(vector=vector, frames=kept, relevance=relevance, real=real)

    def training_scores(self, text: TextFeatures, video: VideoFeatures, pair: PairFeatures | None) -> TrainingScores:
        """Return the scores of the vector and, if the student is trained for that, of a second look at its frames."""
        scores, look = super().training_scores(text, video, pair), self.second
        if look is None:
            return scores
        second = self._second_logits(look, text, video)
        cosines = self.frame_cosines(text, video) / look.temperature
        return replace(
            scores,
            contrasts=[*scores.contrasts, (look.contrastive, second)],
            rankings=scores.rankings | {"second": second},
            frames=scores.frames | {"second": cosines},
        )

    def rankings(self, text: TextFeatures, video: VideoFeatures) -> dict[str, Float[Tensor, "text video"]]:
        """Return the logits of the vector and, if the student is trained for that, of the second look."""
        found = super().rankings(text, video)
        return found if self.second is None else found | {"second": self._second_logits(self.second, text, video)}

    def _second_logits(self, look: TaughtLook, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        return self.clip.logit_scale(second_look(look.temperature, look.weight).score(text, video))
