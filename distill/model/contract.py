"""The contracts of models: a student encodes each side alone; a teacher's towers run once, and its interaction later.

Rows of every similarity are texts, columns are videos.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from distill.config import Config
from distill.data.labels import LIST, rebuilt_logits
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.features import PairFeatures, TextFeatures, VideoFeatures
from distill.model.reading import ScorePart
from distill.model.similarity import cosine, unit
from distill.model.towers import ClipConfig

FEATURES = {"text": ("sentence", "words"), "video": ("vector", "frames", "real")}  # that label sets store
ANSWER_TEMPERATURE = 0.1  # a frame whose cosine with the text is 0.07 below the best counts half


class RetrievalConfig(Config):
    """Base of every model's config, with the facts that a recipe needs before the model is built."""

    kind: str
    clip: ClipConfig

    def released(self) -> "RetrievalConfig":
        """Return the config of the model that is released, without parts that only training needs."""
        return self

    def fixed_sizes(self) -> dict[str, int]:
        """Return `words` and `frames`, where weights or wiring fix how many of them the model takes."""
        return {}

    def frame_step(self) -> int:
        """Return the number of which a video's number of frames must be a multiple."""
        return 1

    def coarse_targets(self) -> tuple[str, ...]:
        """Name the batch logits that a teacher's ranking can teach: keys of `TrainingScores.rankings`."""
        return ("logits",)

    def fine_targets(self) -> tuple[str, ...]:
        """Name the frame scores that a teacher's relevance can teach: keys of `TrainingScores.frames`."""
        return ()

    def makes_queries(self) -> bool:
        """Return whether a teacher's sentences can teach it: whether `TrainingScores.pseudo_query` is there."""
        return False


@dataclass(frozen=True, kw_only=True)
class TrainingScores:
    """Scores of a global batch of matched pairs, for the losses. Logits are scaled, frame scores before any softmax."""

    contrasts: list[tuple[float, Float[Tensor, "text video"]]]  # weighted groups, each with its own contrastive loss
    rankings: dict[str, Float[Tensor, "row column"]]  # logits that teachers' rankings teach; behind those of the pairs
    # stand texts without videos (rows) and videos without captions (columns)
    frames: dict[str, Float[Tensor, "pair frame"]] = field(default_factory=dict)  # scores that their relevance teaches
    pseudo_query: Float[Tensor, "pair dim"] | None = None  # what a teacher's sentences teach
    own: dict[str, Float[Tensor, ""]] = field(default_factory=dict)  # losses that only this model has, weighted

    @classmethod
    def of(
        cls, logits: Float[Tensor, "text video"], relevance: Float[Tensor, "pair frame"] | None = None
    ) -> "TrainingScores":
        """Make the scores of a model with one score and, perhaps, learned frame relevance that pools."""
        frames = {} if relevance is None else {"pooling": relevance}
        return cls(contrasts=[(1.0, logits)], rankings={"logits": logits}, frames=frames)


class RetrievalModel(nn.Module, ABC):
    """Base of every model, with all that training, evaluation, releases and galleries ask of it."""

    clip: ClipModel
    mask_padding: bool = False  # padded frames have no weight in its pooling, nor in the fine loss
    pool_temperature: float | None = None  # softmax(relevance / this) are the weights with which frames are pooled
    rerank_fields: tuple[str, ...] = ()  # fields that `similarity` reads beyond `vector`; () is one stage

    def encode_text(self, ids: Int[Tensor, "text word"]) -> TextFeatures:
        """Encode token ids; here to the end-of-text feature alone."""
        sentence, _ = self.clip.text(ids)
        return TextFeatures(sentence=sentence)

    @abstractmethod
    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Encode videos, from pixels or from the frozen stem's tokens; `real` is False on padded frames."""

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Return the scores that rank, without the logit scale: the sum of `score_parts`, or the cosine of sentence and
        vector where there are none."""
        parts = [part.score(text, video) for part in self.score_parts()]
        return torch.stack(parts).sum(0) if parts else cosine(text.sentence, video.vector)

    def logits(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Return the scores that losses see: similarity times the logit scale."""
        return self.clip.logit_scale(self.similarity(text, video))

    def encode_pair(
        self, ids: Int[Tensor, "pair word"], text: TextFeatures, video: VideoFeatures
    ) -> PairFeatures | None:
        """Return what only training needs of matched pairs (an auxiliary captioner); caption i belongs to video i."""
        return None

    def training_scores(self, text: TextFeatures, video: VideoFeatures, pair: PairFeatures | None) -> TrainingScores:
        """Return everything that losses see of a global batch; caption i belongs to video i."""
        return TrainingScores.of(self.logits(text, video), video.relevance)

    def rankings(self, text: TextFeatures, video: VideoFeatures) -> dict[str, Float[Tensor, "text video"]]:
        """Return the logits that teachers' rankings teach, `TrainingScores.rankings`, of any texts and videos."""
        return {"logits": self.logits(text, video)}

    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """Return how well each frame of video i answers text i: scores whose softmax over its frames are weights.

        Here the cosine of sentence and frame, divided by 0.1. It asks for no features but `sentence` and `frames`.
        """
        return self.frame_cosines(text, video) / ANSWER_TEMPERATURE

    def frame_cosines(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """Return the cosine of sentence i with each frame of video i, padding included, in float32 or better."""
        assert video.frames is not None, "relevance is that of frames"
        with torch.autocast(video.frames.device.type, enabled=False):
            return torch.einsum("pd,pfd->pf", unit(text.sentence), unit(video.frames))

    def score_parts(self) -> tuple[ScorePart, ...]:
        """Return the parts of which `similarity` is the sum, the first saying nearly all; () where it is no such sum.

        A search adds the others, which cost much beside what they change, for the best candidates alone.
        """
        return ()

    def query_vectors(self, text: TextFeatures) -> Float[Tensor, "text index"]:
        """Return query vectors, whose inner products with `index_vectors` rank a gallery or choose its candidates."""
        return unit(text.sentence)

    def index_vectors(self, video: VideoFeatures) -> Float[Tensor, "video index"]:
        """Return the vectors that a gallery stores of every video, to be searched by inner product."""
        return unit(video.vector)


class Interaction(nn.Module, ABC):
    """A teacher's light scoring head: stored features to scores of any batch, without the towers."""

    video_fields: tuple[str, ...] = ("vector", "frames")  # fields of `VideoFeatures` that a label set stores

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, to build this module again."""

    @abstractmethod
    def forward(self, text: TextFeatures, video: VideoFeatures, scaled: bool = True) -> Float[Tensor, "text video"]:
        """Return logits, or with `scaled=False` the similarity before the logit scale; in float32 or better."""

    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """Return the raw score of every frame of video i for caption i, before any softmax; here their cosine, as
        TeachCLIP's fine labels are made."""
        assert video.frames is not None, "relevance is that of frames"
        return (unit(text.sentence).unsqueeze(1) * unit(video.frames)).sum(-1)


class Teacher(RetrievalModel):
    """A model that can label: all that its score needs beyond the features is in `interaction`."""

    interaction: Interaction

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Return the interaction's scores, without the logit scale."""
        return self.interaction(text, video, scaled=False)

    def logits(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Return the interaction's scores, with the logit scale."""
        return self.interaction(text, video)

    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """Return the interaction's relevance, which a label set stores."""
        return self.interaction.relevance(text, video)


def teacher_logits(
    interaction: Interaction, texts: dict[str, Tensor], videos: dict[str, Tensor] | None = None
) -> Float[Tensor, "text video"]:
    """Return the teacher's logits of some texts and videos, rebuilt from stored features by its own scoring head.

    `texts` are label rows of captions, `videos` those of the videos that they are compared with: by default the matched
    ones, which stand in the same rows. Where the label set gives shortlists instead (tier `topk`), videos that are on
    none have their caption's tail; shortlists know the videos of pairs alone.
    """
    videos = texts if videos is None else videos
    if LIST in texts:
        return rebuilt_logits(texts, videos[LIST][:, 0])
    text, video = (
        {name: of[name] for name in FEATURES[side] if name in of} for side, of in (("text", texts), ("video", videos))
    )
    if "real" in video:
        video["real"] = video["real"].bool()
    return interaction(TextFeatures(**text), VideoFeatures(**video))
