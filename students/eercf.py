"""EERCF (Tian et al., AAAI 2024): one coarse vector recalls videos; frames and patches rerank those that were recalled.

Frames [video, frame, 3, row, column] or stem tokens and token ids [text, word] go in. Five similarities of a sentence
with a video, all of unit vectors:

    video         t M v, with v the mean of the frames that have seen one another; the matrix M is the identity at first
    weak_frame    cosines with CLIP's own frames, weighted by their own softmax, which a learned matrix mixes
    weak_patch    cosines with all patches of all frames, weighted by their own softmax
    strong_frame  cosine with the sum of frames that the text lets through (TIB, the text-gated interaction block)
    strong_patch  the same with patches

Stage one ranks by `video` alone, an inner product; stage two by the weighted sum `rerank`, which `similarity` is here.
Training contrasts two sums of the five, weak and strong, and makes the channels of texts and videos vary alike.

    here                 the authors' checkpoint
    global_proj.weight   global_mat_weight
    frame_cross.weight   frame_logit_weight
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.config import Config
from distill.errors import RecipeError
from distill.losses.correlation import channel_constraint
from distill.model import inplace
from distill.model.afa import PADDED_RELEVANCE, AfaConfig, AttentiveFrameAggregation
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import RetrievalConfig, RetrievalModel, ScorePart, TrainingScores
from distill.model.features import PairFeatures, TextFeatures, VideoFeatures
from distill.model.similarity import inner, lengths, mean_pool, precise, unit
from distill.model.temporal import TemporalConfig, TemporalTransformer

WEAK_TEMPERATURE = 0.01  # of the softmax over cosines in the weak similarities
FRAME_GATE, PATCH_GATE = 0.1, 0.01  # temperatures of the gates in the strong ones
WEAK, STRONG = ("video", "weak_frame", "weak_patch"), ("strong_frame", "strong_patch")
MAX_CELLS = 2**24  # numbers of frames or patches held at once, or their cosines: 64 MiB in float32, and a few copies
OF_BEST = 2  # times k videos whose patches a search looks at: more find no more of the best ten in 10,000
SHORTEST = 1e-6  # length of a gated sum below which it counts as this long


class LossWeights(Config):
    """What training minimises: the five similarities in two groups with a contrastive loss each, and the constraints on
    the channels of the coarse vector and of the gated sums (paper: L_weak, L_strong, L_PC)."""

    video: float = 0.5  # in the weak group
    weak_frame: float = 0.5  # in the weak group
    weak_patch: float = 0.05  # in the weak group
    weak: float = 0.8  # of the three above together
    strong_frame: float = 1.0  # in the strong group
    strong_patch: float = 0.0  # in the strong group
    strong: float = 0.2  # of the two above together
    constraint_video: float = 0.001  # of L_PC on the coarse vector
    constraint_frame: float = 0.001  # of L_PC on the gated frames
    constraint_patch: float = 0.0  # of L_PC on the gated patches


class RerankWeights(Config):
    """The sum that ranks in the second stage. The authors' code has these numbers, which are not those of training."""

    video: float = 0.5  # of the coarse similarity
    weak_frame: float = 0.8  # of the weak frame similarity
    weak_patch: float = 0.2  # of the weak patch similarity
    strong_frame: float = 0.2  # of the gated frames
    strong_patch: float = 0.0  # of the gated patches


class EercfConfig(RetrievalConfig):
    """The towers, what is compared, and how much each comparison counts.

    `patches: false` leaves every patch term out, whatever its weight: a video is then stored in 51 KB, not in 1.26 MB
    (ViT-B/32, 12 frames). `pooling: afa` weighs the frames of the coarse vector by learned relevance; at first it is
    their mean. `gate: paired` is what the authors' code does: in training every video is gated by its own caption
    alone, without gradient, so that other captions meet a sum that was not made for them. Evaluation, and training with
    `every`, gates each pair by its own text. `mask_padding: false` is the authors' code too: padded frames have weight
    in every softmax.
    """

    kind: Literal["eercf"]
    temporal: TemporalConfig = TemporalConfig()
    frames: int = Field(ge=1)  # of every video, padding included: the size of a learned matrix
    patches: bool = True  # false: leave all patch terms out
    pooling: Literal["mean", "afa"] = "mean"  # of frames into the coarse vector
    pool_temperature: float = Field(default=0.1, gt=0)  # of afa, where it pools and where it is taught
    gate: Literal["paired", "every"] = "paired"  # in training, by the video's own caption or by every caption
    mask_padding: bool = False  # true: padded frames get no weight
    weights: LossWeights = LossWeights()
    rerank: RerankWeights = RerankWeights()

    @model_validator(mode="after")
    def _padding(self) -> "EercfConfig":
        if self.pooling == "afa" and not self.mask_padding:
            raise ValueError(
                "pooling: afa leaves padded frames out, as the mean does, and so must what teaches it; set "
                "mask_padding: true, or pooling: mean"
            )
        return self

    def fixed_sizes(self) -> dict[str, int]:
        """The matrix's that mixes frames."""
        return {"frames": self.frames}

    def coarse_targets(self) -> tuple[str, ...]:
        """The logits of the first stage, and the weak sum."""
        return ("coarse", "weak")

    def fine_targets(self) -> tuple[str, ...]:
        """The gate of the matched pairs, and what pools."""
        return ("gate", "pooling") if self.pooling == "afa" else ("gate",)


class Mix(nn.Module):
    """A learned square matrix that rows are multiplied with, the identity at first."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))

    def forward(self, rows: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        """Row vector times matrix, in the precision of the rows."""
        return rows @ self.weight.to(rows.dtype)


@dataclass(frozen=True)
class Seen:
    """The parts of some videos, frames or patches: how much each resembles every text."""

    cosines: Float[Tensor, "text video part"]
    counted: Bool[Tensor, "video part"] | None  # None: padding counts too

    def attention(self) -> Float[Tensor, "text video part"]:
        """Weights of the weak similarity."""
        return _softmax(self.cosines / WEAK_TEMPERATURE, self.counted)


@dataclass(frozen=True)
class Level(Seen):
    """The same, and what each part adds to a sum.

    What is added are unit vectors; they are kept with their lengths, because dividing a gate by it is less to do.
    """

    values: Float[Tensor, "video part dim"]
    lengths: Float[Tensor, "video part"]  # of the values
    temperature: float  # of the gate

    def own_scores(self) -> Float[Tensor, "pair part"]:
        """What the gate of video i is a softmax of, for its own text i."""
        return self.cosines.diagonal(dim1=0, dim2=1).T / self.temperature

    def own_sums(self, *, detach: bool) -> Float[Tensor, "pair dim"]:
        """Video i as its own text i lets it through, of length 1; `detach` keeps the gradient out of the gate."""
        gates = _softmax(self.own_scores(), self.counted)
        return unit(torch.einsum("vn,vnd->vd", (gates.detach() if detach else gates) / self.lengths, self.values))

    def gated(self, sentence: Float[Tensor, "text dim"]) -> Float[Tensor, "text video"]:
        """Cosine of every text with what it lets through of every video.

        For many texts the length of the sum comes from the inner products of the values, so that no tensor has both
        texts and dimensions; for fewer than there are parts (a search) those would cost more than the sum itself.
        """
        gates = _softmax(self.cosines / self.temperature, self.counted) / self.lengths
        if len(sentence) < self.values.shape[1]:
            sums = torch.einsum("tvn,vnd->tvd", gates, self.values)
            return torch.einsum("td,tvd->tv", sentence, sums) / lengths(sums)
        along = (gates * inner(sentence, self.values)).sum(-1)
        of_video = gates.transpose(0, 1)  # video text part
        squared = (of_video @ (self.values @ self.values.transpose(1, 2)) * of_video).sum(-1).T
        return along / squared.clamp(min=SHORTEST**2).sqrt()


class Eercf(RetrievalModel):
    """A vector to find candidates by, frames and patches to rerank them."""

    def __init__(self, config: EercfConfig, clip: ClipModel):
        super().__init__()
        self.clip = clip
        self.frames, self.patches, self.gate = config.frames, config.patches, config.gate
        self.weights, self.rerank, self.mask_padding = config.weights, config.rerank, config.mask_padding
        if config.patches:
            clip.visual.give_tokens(config.frames, shift_layers=0)
        self.temporal = TemporalTransformer(clip.dim, config.temporal)
        self.afa = None
        if config.pooling == "afa":
            pooling = AfaConfig(pool_temperature=config.pool_temperature, mask_padding=True)
            self.afa = AttentiveFrameAggregation(clip.dim, pooling, uniform=True)
            self.pool_temperature = config.pool_temperature
        self.global_proj, self.frame_cross = Mix(clip.dim), Mix(config.frames)
        reranks_patches = config.patches and (config.rerank.weak_patch or config.rerank.strong_patch)
        self.rerank_fields = ("frames", "contextual", *(["patches"] if reranks_patches else []), "real")
        if config.temporal.init == "clip_text":
            self.temporal.init_from_text(clip.text)

    def encode_text(self, ids: Int[Tensor, "text word"]) -> TextFeatures:
        """The end-of-text feature."""
        sentence, _ = self.clip.text(ids)
        return TextFeatures(sentence=sentence)

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """The coarse vector, of length 1; CLIP's frames, the contextual ones, and patches where they are compared."""
        if real.shape[1] != self.frames:
            raise RecipeError(
                f"EERCF was built for {self.frames} frames, but the videos have {real.shape[1]}; encode with the sizes "
                f"of the model"
            )
        tokens = self.clip.encode_frames(frames, real)
        original, patches = (tokens[:, :, 0], tokens[:, :, 1:]) if self.patches else (tokens, None)
        contextual = self.temporal(original, real)
        vector, relevance = self.afa(contextual, real) if self.afa else (mean_pool(contextual, real), None)
        return VideoFeatures(
            vector=unit(vector),
            frames=original,
            contextual=contextual,
            patches=patches,
            relevance=relevance,
            real=real,
        )

    def query_vectors(self, text: TextFeatures) -> Float[Tensor, "text dim"]:
        """t M, whose inner products with the coarse vectors are the similarity `video`."""
        with torch.autocast(text.sentence.device.type, enabled=False):
            return self.global_proj(unit(text.sentence))

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """The score of the second stage, without the logit scale, of every text with every video: gates per pair."""
        assert video.frames is not None, "EERCF compares frames"
        parts = self.frames * (video.patches.shape[2] if video.patches is not None else 1)
        size = max(1, MAX_CELLS // (parts * max(len(text), self.clip.dim)))
        chunks = [video[start : start + size] for start in range(0, len(video), size)]
        parts = self.score_parts()
        return torch.cat([torch.stack([p.score(text, chunk) for p in parts]).sum(0) for chunk in chunks], dim=1)

    def score_parts(self) -> tuple[ScorePart, ...]:
        """What the coarse vector and the frames say, and then the patches where they are compared."""
        frames = ScorePart(("frames", "contextual", "real"), self._by_frames, in_place=self._frames_in_place)
        patches = ScorePart(("patches", "real"), self._by_patches, of_best=OF_BEST, in_place=self._patches_in_place)
        return (frames, patches) if "patches" in self.rerank_fields else (frames,)

    def logits(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Similarity times the logit scale."""
        return self.clip.logit_scale(self.similarity(text, video))

    def training_scores(self, text: TextFeatures, video: VideoFeatures, pair: PairFeatures | None) -> TrainingScores:
        """The weak and the strong group, the constraint, and what labels teach; caption i belongs to video i."""
        sentence, weights, scale = unit(text.sentence), self.weights, self.clip.logit_scale
        levels = {"frame": self._frames(sentence, video)}
        if self.patches and (weights.weak_patch or weights.strong_patch or weights.constraint_patch):
            levels["patch"] = self._patches(sentence, video)
        scores = {"video": self.query_vectors(text) @ self.index_vectors(video).T, **self._weak(levels)}
        paired = self.gate == "paired"
        sums = {name: level.own_sums(detach=paired) for name, level in levels.items()}
        for name, level in levels.items():
            if getattr(weights, f"strong_{name}"):
                scores[f"strong_{name}"] = sentence @ sums[name].T if paired else level.gated(sentence)
        alike = {"video": unit(video.vector), **sums}
        constraints = [
            getattr(weights, f"constraint_{name}") * channel_constraint(sentence, features)
            for name, features in alike.items()
            if getattr(weights, f"constraint_{name}")
        ]
        weak, coarse = scale(_sum(scores, weights, WEAK)), scale(scores["video"])
        frames = {"gate": levels["frame"].own_scores()}
        if self.afa:
            assert video.relevance is not None, "learned relevance pools"
            frames["pooling"] = video.relevance / self.afa.pool_temperature
        return TrainingScores(
            contrasts=[(weights.weak, weak), (weights.strong, scale(_sum(scores, weights, STRONG)))],
            rankings={"coarse": coarse, "weak": weak},
            frames=frames,
            own={"constraint": torch.stack(constraints).sum()} if constraints else {},
        )

    def _by_frames(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """The part of the second stage's score that needs no patches."""
        with torch.autocast(text.sentence.device.type, enabled=False):
            sentence, coarse = unit(text.sentence), self.query_vectors(text) @ self.index_vectors(video).T
            return self.rerank.video * coarse + self._level_score("frame", self._frames(sentence, video), sentence)

    def _by_patches(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """What patches add to it."""
        with torch.autocast(text.sentence.device.type, enabled=False):
            sentence = unit(text.sentence)
            return self._level_score("patch", self._patches(sentence, video), sentence)

    def _level_score(self, name: str, level: Level, sentence: Tensor) -> Float[Tensor, "text video"]:
        """The weighted similarities of a level that rank in the second stage."""
        return self._ranking(name, level, level.gated(sentence) if self._gates(name) else None)

    def _ranking(self, name: str, seen: Seen, gated: Tensor | None) -> Float[Tensor, "text video"]:
        scores = self._weak({name: seen})
        if gated is not None:
            scores[f"strong_{name}"] = gated
        return _sum(scores, self.rerank, WEAK + STRONG)

    def _gates(self, name: str) -> bool:
        """Whether what a text lets through of a level counts in the second stage."""
        return bool(getattr(self.rerank, f"strong_{name}"))

    def _frames_in_place(
        self, text: TextFeatures, stored: Mapping[str, Tensor], rows: Int64[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        query, vectors = self.query_vectors(text)[0], stored["vector"].unsqueeze(1)
        coarse = inplace.products(query, vectors, rows, unit=True)[:, 0]
        frames, contextual = stored["frames"], stored["contextual"]
        by_frames = self._level_in_place("frame", text, frames, contextual, FRAME_GATE, stored["real"], rows)
        return self.rerank.video * coarse + by_frames

    def _patches_in_place(
        self, text: TextFeatures, stored: Mapping[str, Tensor], rows: Int64[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        patches = stored["patches"].flatten(1, 2)
        return self._level_in_place("patch", text, patches, patches, PATCH_GATE, stored["real"], rows)

    def _level_in_place(
        self,
        name: str,
        text: TextFeatures,
        keys: Tensor,
        values: Tensor,
        temperature: float,
        real: Bool[Tensor, "video frame"],
        rows: Int64[Tensor, " row"],
    ) -> Float[Tensor, " row"]:
        """`_level_score` where the parts are stored."""
        sentence, counted, gated = unit(text.sentence)[0], real if self.mask_padding else None, None
        if self._gates(name):
            cosines, gated = inplace.pooled(
                sentence, keys, values, rows, temperature=temperature, counted=counted, unit=True
            )
            gated = gated.unsqueeze(0)
        else:
            cosines = inplace.products(sentence, keys, rows, unit=True)
        if counted is not None:
            counted = counted[rows].repeat_interleave(keys.shape[1] // real.shape[1], dim=1)
        return self._ranking(name, Seen(cosines.unsqueeze(0), counted), gated)[0]

    def _frames(self, sentence: Tensor, video: VideoFeatures) -> Level:
        assert video.frames is not None and video.contextual is not None and video.real is not None
        frames, contextual = precise(video.frames), precise(video.contextual)
        cosines = inner(sentence, frames) / lengths(frames)
        counted = video.real if self.mask_padding else None
        return Level(cosines, counted, contextual, lengths(contextual), FRAME_GATE)

    def _patches(self, sentence: Tensor, video: VideoFeatures) -> Level:
        assert video.patches is not None and video.real is not None, "patches have a weight"
        patches = precise(video.patches.flatten(1, 2))  # video (frame patch) dim
        long = lengths(patches)
        counted = video.real.repeat_interleave(video.patches.shape[2], dim=1) if self.mask_padding else None
        return Level(inner(sentence, patches) / long, counted, patches, long, PATCH_GATE)

    def _weak(self, levels: Mapping[str, Seen]) -> dict[str, Tensor]:
        """The similarities of levels that are the same in training and in evaluation."""
        scores = {}
        for name, level in levels.items():
            attention = level.attention()
            if name == "frame":
                attention = self.frame_cross(attention)
                if level.counted is not None:  # the matrix has given padding a share again
                    attention = attention * level.counted
            scores[f"weak_{name}"] = (attention * level.cosines).sum(-1)
        return scores


def _softmax(
    scores: Float[Tensor, "*text video part"], counted: Bool[Tensor, "video part"] | None
) -> Float[Tensor, "*text video part"]:
    return (scores if counted is None else scores.masked_fill(~counted, PADDED_RELEVANCE)).softmax(-1)


def _sum(scores: dict[str, Tensor], weights: LossWeights | RerankWeights, names: tuple[str, ...]) -> Tensor:
    """Weighted sum of those of the similarities that were computed."""
    parts = (getattr(weights, name) * scores[name] for name in names if name in scores)
    return sum(parts, torch.zeros_like(next(iter(scores.values()))))
