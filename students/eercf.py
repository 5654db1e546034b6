"""EERCF (Tian et al., AAAI 2024): one coarse vector chooses candidates; frames and patches rerank them.

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

from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.config import Config
from distill.errors import RecipeError
from distill.losses.correlation import channel_constraint
from distill.model.afa import AfaConfig, AttentiveFrameAggregation
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import RetrievalConfig, RetrievalModel, TrainingScores
from distill.model.features import PairFeatures, TextFeatures, VideoFeatures
from distill.model.pooling import attend
from distill.model.reading import Reading, ScorePart, Seen, parts_of, read
from distill.model.similarity import lengths, mean_pool, precise, unit
from distill.model.temporal import TemporalConfig, TemporalTransformer
from distill.model.towers import Towers
from distill.model.wiring import Wiring

WEAK_TEMPERATURE = 0.01  # of the softmax over cosines in the weak similarities
FRAME_GATE, PATCH_GATE = 0.1, 0.01  # temperatures of the gates in the strong ones
LEVELS = {  # compared with the sentence, added up where the gate lets them through, and the gate's temperature
    "frame": ("frames", "contextual", FRAME_GATE),
    "patch": ("patches", "patches", PATCH_GATE),
}
WEAK, STRONG = ("video", "weak_frame", "weak_patch"), ("strong_frame", "strong_patch")
OF_BEST = 2  # times k videos whose patches a search looks at: more find no more of the best ten in 10,000


class LossWeights(Config):
    """Weights of the losses: the five similarities in two groups with a contrastive loss each, and the constraints on
    the channels of the coarse vector and of the gated sums (paper: L_weak, L_strong, L_PC)."""

    video: float = Field(default=0.5, ge=0)  # in the weak group
    weak_frame: float = Field(default=0.5, ge=0)  # in the weak group
    weak_patch: float = Field(default=0.05, ge=0)  # in the weak group
    weak: float = Field(default=0.8, ge=0)  # of the three above together
    strong_frame: float = Field(default=1.0, ge=0)  # in the strong group
    strong_patch: float = Field(default=0.0, ge=0)  # in the strong group
    strong: float = Field(default=0.2, ge=0)  # of the two above together
    constraint_video: float = Field(default=0.001, ge=0)  # of L_PC on the coarse vector
    constraint_frame: float = Field(default=0.001, ge=0)  # of L_PC on the gated frames
    constraint_patch: float = Field(default=0.0, ge=0)  # of L_PC on the gated patches


class RerankWeights(Config):
    """The sum that ranks in the second stage. The authors' code has these numbers, which are not those of training."""

    video: float = Field(default=0.5, ge=0)  # of the coarse similarity
    weak_frame: float = Field(default=0.8, ge=0)  # of the weak frame similarity
    weak_patch: float = Field(default=0.2, ge=0)  # of the weak patch similarity
    strong_frame: float = Field(default=0.2, ge=0)  # of the gated frames
    strong_patch: float = Field(default=0.0, ge=0)  # of the gated patches


class EercfConfig(RetrievalConfig):
    """The towers, the comparisons, and how much each of them counts.

    `patches: false` leaves every patch term out, whatever its weight: a video is then stored in 51 KB, not in 1.26 MB
    (ViT-B/32, 12 frames). `pooling: afa` weighs the frames of the coarse vector by learned relevance; at first it is
    their mean. `gate: paired` is the authors' code: in training every video is gated by its own caption alone, without
    gradient, so that other captions are compared with a sum that was not made for them. Evaluation, and training with
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
        """Return the size of the matrix that mixes frames."""
        return {"frames": self.frames}

    def coarse_targets(self) -> tuple[str, ...]:
        """Return the names of the logits of the first stage and of the weak sum."""
        return ("coarse", "weak")

    def fine_targets(self) -> tuple[str, ...]:
        """Return the names of the gate of matched pairs and, with `afa`, of the relevance that pools."""
        return ("gate", "pooling") if self.pooling == "afa" else ("gate",)


class Mix(nn.Module):
    """Learned square matrix that rows are multiplied with, the identity at first."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size))

    def forward(self, rows: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        """Multiply rows with the matrix, in the precision of the rows."""
        return rows @ self.weight.to(rows.dtype)


class Eercf(RetrievalModel):
    """One coarse vector that chooses candidates, and frames and patches that rerank them."""

    def __init__(self, config: EercfConfig, towers: Towers):
        super().__init__()
        self.clip = clip = ClipModel(towers, Wiring(all_tokens=config.patches))
        self.frames, self.patches, self.gate = config.frames, config.patches, config.gate
        self.weights, self.rerank, self.mask_padding = config.weights, config.rerank, config.mask_padding
        self.temporal = TemporalTransformer.for_clip(clip, config.temporal)
        self.afa = None
        if config.pooling == "afa":
            pooling = AfaConfig(pool_temperature=config.pool_temperature, mask_padding=True)
            self.afa = AttentiveFrameAggregation(clip.dim, pooling, uniform=True)
            self.pool_temperature = config.pool_temperature
        self.global_proj, self.frame_cross = Mix(clip.dim), Mix(config.frames)
        reranks_patches = config.patches and (config.rerank.weak_patch or config.rerank.strong_patch)
        self.rerank_fields = ("frames", "contextual", *(["patches"] if reranks_patches else []), "real")

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return the unit coarse vector, CLIP's frames, the contextual ones, and patches where they are compared."""
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
        """Return t M, whose inner products with the coarse vectors are the similarity `video`."""
        with torch.autocast(text.sentence.device.type, enabled=False):
            return self.global_proj(unit(text.sentence))

    def score_parts(self) -> tuple[ScorePart, ...]:
        """Return the part of the coarse vector and the frames, and that of the patches where they are compared."""
        coarse = Reading(query=self.query_vectors, keys="vector")
        frame, patch = (self._reading(level, getattr(self.rerank, f"strong_{level}") != 0) for level in LEVELS)
        parts = (
            ScorePart((coarse, frame), self._by_frames),
            ScorePart((patch,), partial(self._by_level, "patch"), of_best=OF_BEST),
        )
        return parts if "patches" in self.rerank_fields else parts[:1]

    def training_scores(self, text: TextFeatures, video: VideoFeatures, pair: PairFeatures | None) -> TrainingScores:
        """Return the weak and the strong group, the constraint, and the scores that labels teach; pairs share a row."""
        sentence, weights, scale = unit(text.sentence), self.weights, self.clip.logit_scale
        scores = {"video": self.query_vectors(text) @ self.index_vectors(video).T}
        sums, frames = {"video": unit(video.vector)}, {}
        for level in LEVELS:
            strong, constraint = getattr(weights, f"strong_{level}"), getattr(weights, f"constraint_{level}")
            if level == "patch" and not (self.patches and (weights.weak_patch or strong or constraint)):
                continue
            reading = self._reading(level, strong != 0 and self.gate == "every")
            seen = read(reading, sentence, video)
            scores[f"weak_{level}"] = self._weak(level, seen)
            own = seen.products.diagonal(dim1=0, dim2=1).T  # pair part
            if level == "frame":
                frames["gate"] = own / reading.temperature
            if constraint or (strong and self.gate == "paired"):
                sums[level] = self._own_sums(level, own, seen.counted, video)
            if strong:
                scores[f"strong_{level}"] = sentence @ sums[level].T if self.gate == "paired" else seen.pooled()
        constraints = [
            getattr(weights, f"constraint_{name}") * channel_constraint(sentence, features)
            for name, features in sums.items()
            if getattr(weights, f"constraint_{name}")
        ]
        weak, coarse = scale(_sum(scores, weights, WEAK)), scale(scores["video"])
        if self.afa:
            assert video.relevance is not None, "learned relevance pools"
            frames["pooling"] = video.relevance / self.afa.pool_temperature
        return TrainingScores(
            contrasts=[(weights.weak, weak), (weights.strong, scale(_sum(scores, weights, STRONG)))],
            rankings={"coarse": coarse, "weak": weak},
            frames=frames,
            own={"constraint": torch.stack(constraints).sum()} if constraints else {},
        )

    def rankings(self, text: TextFeatures, video: VideoFeatures) -> dict[str, Float[Tensor, "text video"]]:
        """Return the logits of the coarse vectors and of the weak group."""
        scores = {"video": self.query_vectors(text) @ self.index_vectors(video).T}
        for level in LEVELS:
            if level == "frame" or (self.patches and self.weights.weak_patch):
                seen = read(self._reading(level, gated=False), unit(text.sentence), video)
                scores[f"weak_{level}"] = self._weak(level, seen)
        scale = self.clip.logit_scale
        return {"coarse": scale(scores["video"]), "weak": scale(_sum(scores, self.weights, WEAK))}

    def _reading(self, level: str, gated: bool) -> Reading:
        """Let a sentence read frames or patches and, if `gated`, sum up those that its gate lets through (TIB)."""
        keys, values, temperature = LEVELS[level]
        mask = "real" if self.mask_padding else None
        return Reading(keys=keys, values=values if gated else None, temperature=temperature, mask=mask)

    def _by_frames(self, coarse: Seen, frames: Seen) -> Float[Tensor, "text video"]:
        return self.rerank.video * coarse.whole() + self._by_level("frame", frames)

    def _by_level(self, level: str, seen: Seen) -> Float[Tensor, "text video"]:
        """Return the weighted similarities of frames or patches that rank in the second stage."""
        weak = getattr(self.rerank, f"weak_{level}") * self._weak(level, seen)
        return weak if seen.cosine is None else weak + getattr(self.rerank, f"strong_{level}") * seen.cosine

    def _weak(self, level: str, seen: Seen) -> Float[Tensor, "text video"]:
        """Sum the cosines with frames or patches, weighted by their own softmax, which a matrix mixes for frames."""
        weights = attend(seen.products, seen.counted, WEAK_TEMPERATURE)
        if level == "frame":
            weights = self.frame_cross(weights)
            if seen.counted is not None:  # the matrix has given padding a share again
                weights = weights * seen.counted
        return (weights * seen.products).sum(-1)

    def _own_sums(
        self,
        level: str,
        cosines: Float[Tensor, "pair part"],
        counted: Bool[Tensor, "pair part"] | None,
        video: VideoFeatures,
    ) -> Float[Tensor, "pair dim"]:
        """Sum the parts of video i that its text i lets through, to unit length; a `paired` gate gets no gradient."""
        _, name, temperature = LEVELS[level]
        gates = attend(cosines, counted, temperature)
        values = precise(parts_of(video.tensors(), name, video.vector))
        gates = (gates.detach() if self.gate == "paired" else gates) / lengths(values)
        return unit(torch.einsum("pn,pnd->pd", gates, values))


def _sum(
    scores: dict[str, Float[Tensor, "text video"]], weights: LossWeights, names: tuple[str, ...]
) -> Float[Tensor, "text video"]:
    """Return the weighted sum of those of the similarities that were computed."""
    parts = (getattr(weights, name) * scores[name] for name in names if name in scores)
    return sum(parts, torch.zeros_like(scores["video"]))
