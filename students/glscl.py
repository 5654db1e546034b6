"""GLSCL (Zhang et al., TIP 2025): a caption weighs the frames of a video, and learned queries read both.

Frames [video, frame, 3, row, column] or stem tokens and token ids [text, word] go in. The score of a pair is the sum of

* a global one (GIM, no parameters): the cosine of the sentence with the mean of the frames, weighed by a softmax of
  their inner products with the sentence;
* half a local one (LIM): shared queries read `count` concepts from all words of the text and as many from all frames of
  the video, each side alone; the mean cosine of paired concepts, which is one inner product of `count` x `dim` numbers.

In training the queries read after the batch has been gathered, as in the authors' code, so that their dropout falls
where every process sees the whole batch: then any number of processes trains alike.

    here                     the authors' checkpoint
    queries.queries          spatial_queries
    queries.text_queries     noun_queries, where queries are not shared
    queries.decoder          transformer_decoder_noun.layers
    queries.video_decoder    transformer_decoder_spatial.layers, where decoders are not shared
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import AliasChoices, Field
from torch import Tensor

from distill.losses.consistency import Over, consistency
from distill.losses.diversity import diversity
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import RetrievalConfig, RetrievalModel, TrainingScores
from distill.model.features import PairFeatures, TextFeatures, VideoFeatures
from distill.model.queries import LearnedQueries, QueryConfig
from distill.model.reading import Reading, ScorePart, Seen
from distill.model.similarity import mean_pool, unit
from distill.model.temporal import TemporalConfig, TemporalTransformer
from distill.model.towers import Towers
from distill.model.wiring import Wiring

OF_BEST = 4  # times k videos that get the local score in a search: more find no more of the best ten in 10,000


class GlsclConfig(RetrievalConfig):
    """The towers, the queries, and the weights of the two scores and of the two losses that only GLSCL has.

    `mask_padding`: in the authors' code the queries read padded frames and words as well as real ones, and so do the
    defaults; True hides them, and leaves padded frames out of the fine loss. Padded frames never weigh anything in the
    global score: the authors multiply their weights by zero after the softmax, and a cosine does not see that the
    others no longer sum to one. `consistency: batch` corrects the authors' division by the number of queries.
    `index_by` says by which vectors a gallery is searched before `similarity` ranks the candidates: the concepts
    (`count` x `dim` numbers a video; their inner product is the local score), or the coarse mean over frames (`dim`).
    """

    kind: Literal["glscl"]
    temporal: TemporalConfig = TemporalConfig()
    queries: QueryConfig = QueryConfig()
    temperature: float = Field(default=3.0, gt=0)  # of the softmax over the sentence's inner products with the frames
    local_weight: float = Field(default=0.5, ge=0)  # of the local score beside the global one
    mask_padding: bool = False  # true: padded words and frames are not read
    alpha: float = Field(default=1e-4, ge=0)  # weight of the diversity loss (IDL)
    beta: float = Field(default=5e-3, ge=0)  # weight of the agreement's distance from 0.75 in the consistency loss
    consistency: Over = "queries"  # mean of the consistency loss over queries (authors) or over the batch
    concept_temperature: float = Field(default=0.1, gt=0)  # of the softmax that weighs concepts by their agreement
    index_by: Literal["concepts", "coarse"] = Field(  # releases of version 0.1 say `recall`
        default="concepts", validation_alias=AliasChoices("index_by", "recall")
    )

    def coarse_targets(self) -> tuple[str, ...]:
        """Return the names of the whole score and of the local one, by which a gallery may be searched first."""
        return ("whole", "local")

    def fine_targets(self) -> tuple[str, ...]:
        """Return the names of the weights of the global score, and of the frames that agreeing concepts read."""
        return ("gate", "concepts")


def _flat(concepts: Float[Tensor, "sample concept dim"] | None) -> Float[Tensor, "sample index"]:
    """Join unit concepts, one after the other, to one unit vector: inner products are means over concepts."""
    assert concepts is not None
    return unit(concepts.flatten(1))


LOCAL = ScorePart((Reading(query=lambda text: _flat(text.concepts), keys="concepts"),), Seen.whole)


def local_score(text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
    """Return the mean over concepts of the cosine of those of a text with those of a video (LIM).

    Concepts have length 1, so this is the cosine of all of a text with all of a video, one after the other.
    """
    return LOCAL.score(text, video)


class Glscl(RetrievalModel):
    """The weighted frames and the concepts of a video, against the sentence and the concepts of a text."""

    rerank_fields = ("frames", "concepts", "real")

    def __init__(self, config: GlsclConfig, towers: Towers):
        super().__init__()
        self.mask_padding, self.index_by = config.mask_padding, config.index_by
        self.temperature, self.concept_temperature = config.temperature, config.concept_temperature
        self.local_weight, self.alpha, self.beta = config.local_weight, config.alpha, config.beta
        self.over: Over = config.consistency
        self.clip = clip = ClipModel(towers, Wiring(mask_padding=True))
        self.temporal = TemporalTransformer.for_clip(clip, config.temporal)
        self.queries = LearnedQueries(clip.dim, config.queries)

    def encode_text(self, ids: Int[Tensor, "text word"]) -> TextFeatures:
        """Return the end-of-text feature and the concepts; in training the words, still to be read."""
        sentence, words = self.clip.text(ids)
        text = TextFeatures(sentence=sentence, words=words, real=self.clip.text.real_words(ids))
        return text if self.training else self.read_text(text)

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return the contextual frames, their coarse mean, and the concepts; in training these are still to be read."""
        contextual = self.temporal(self.clip.encode_frames(frames, real), real)
        video = VideoFeatures(vector=mean_pool(contextual, real), frames=contextual, real=real)
        return video if self.training else self.read_video(video)

    def read_text(self, text: TextFeatures) -> TextFeatures:
        """Return the concepts in place of the words."""
        if text.concepts is not None:
            return text
        assert text.words is not None, "queries read words"
        concepts, _ = self.queries(text.words, "text", text.real if self.mask_padding else None)
        return TextFeatures(sentence=text.sentence, concepts=concepts)

    def read_video(self, video: VideoFeatures) -> VideoFeatures:
        """Return the concepts beside the frames, and how much of each frame each of them read."""
        if video.concepts is not None:
            return video
        assert video.frames is not None, "queries read frames"
        concepts, reading = self.queries(video.frames, "video", video.real if self.mask_padding else None)
        return replace(video, concepts=concepts, reading=reading)

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Return the global score plus the weighted local one, without the logit scale."""
        return super().similarity(self.read_text(text), self.read_video(video))

    def score_parts(self) -> tuple[ScorePart, ...]:
        """Return the global score (GIM), and the weighted local one of texts and videos that queries have read."""
        frames = Reading(
            query=lambda text: text.sentence,
            keys="frames",
            values="frames",
            temperature=self.temperature,
            mask="real",
            unit=False,
        )
        return (
            ScorePart((frames,), Seen.pooled),
            ScorePart(LOCAL.readings, lambda concepts: self.local_weight * concepts.whole(), of_best=OF_BEST),
        )

    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """Return the inner products of sentence i with the frames of video i, over the temperature of their softmax."""
        assert video.frames is not None, "relevance is that of frames"
        return torch.einsum("pd,pfd->pf", text.sentence, video.frames) / self.temperature

    def global_score(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Return the cosine of every sentence with every video's frames, weighted for that sentence (GIM)."""
        return self.score_parts()[0].score(text, video)

    def training_scores(self, text: TextFeatures, video: VideoFeatures, pair: PairFeatures | None) -> TrainingScores:
        """Return the whole score and the local one, two scores of the frames, and the two losses on the concepts."""
        text, video = self.read_text(text), self.read_video(video)
        assert text.concepts is not None and video.concepts is not None and video.reading is not None
        rankings = self.rankings(text, video)
        through = self._read_through_concepts(text.concepts, video.concepts, video.reading)
        return TrainingScores(
            contrasts=[(1.0, rankings["whole"])],
            rankings=rankings,
            frames={"gate": self.relevance(text, video), "concepts": through},
            own={
                "idl": self.alpha * diversity(video.concepts),
                "icl": consistency(text.concepts, video.concepts, self.beta, self.over),
            },
        )

    def rankings(self, text: TextFeatures, video: VideoFeatures) -> dict[str, Float[Tensor, "text video"]]:
        """Return the logits of the whole score and of the local one."""
        text, video = self.read_text(text), self.read_video(video)
        local, scale = local_score(text, video), self.clip.logit_scale
        return {"whole": scale(self.global_score(text, video) + self.local_weight * local), "local": scale(local)}

    def _read_through_concepts(
        self,
        text: Float[Tensor, "pair concept dim"],
        video: Float[Tensor, "pair concept dim"],
        reading: Float[Tensor, "pair concept frame"],
    ) -> Float[Tensor, "pair frame"]:
        """Return the log of how much of each frame was read by the concepts on which video and caption agree."""
        agreement = ((text * video).sum(-1) / self.concept_temperature).softmax(-1)
        read = torch.einsum("pc,pcf->pf", agreement, reading)
        return read.clamp(min=torch.finfo(read.dtype).tiny).log()  # hidden frames are not read at all

    def query_vectors(self, text: TextFeatures) -> Float[Tensor, "text index"]:
        """Return the concepts as one unit vector, or the sentence."""
        return _flat(self.read_text(text).concepts) if self.index_by == "concepts" else unit(text.sentence)

    def index_vectors(self, video: VideoFeatures) -> Float[Tensor, "video index"]:
        """Return the concepts as one unit vector, or the coarse mean over frames."""
        return _flat(self.read_video(video).concepts) if self.index_by == "concepts" else unit(video.vector)
