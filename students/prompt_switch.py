"""Prompt Switch (Deng et al., ICCV 2023): frames inform one another inside CLIP, by prompts that change places.

Prompt tokens carry what each frame has seen to the others before every visual block (`distill/model/prompts.py`), so no
temporal transformer stands on top, and in training a captioner has to say each caption from the frames
(`distill/model/captioner.py`; it is not released). Frames [video, frame, 3, row, column] or stem tokens and token ids
[text, word] go in.

As published a video is one vector, the mean of its unit frames, as cheap to search as CLIP4Clip's. The authors' code
can also ask the caption which frames to pool; then the mean chooses candidates, and stored frames rerank them.

The authors train on 6 frames and test on 12, which are then two clips of 6 that meet only in the mean: that is
`frames: 6` on data of 12 frames, here in training too. Their loader completes short videos with their last frame, and
so does this model, whatever lies in the padding.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from open_clip.model import CLIPVisionCfg
from pydantic import Field, model_validator
from torch import Tensor

from distill.errors import RecipeError
from distill.losses.captioning import caption_loss, captioning
from distill.model.afa import AfaConfig, AttentiveFrameAggregation
from distill.model.captioner import CaptionConfig, Captioner, frames_read, next_words
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import RetrievalConfig, RetrievalModel, TrainingScores
from distill.model.features import PairFeatures, TextFeatures, VideoFeatures
from distill.model.pooling import LEFT_OUT, CrossAttention
from distill.model.prompts import PromptCube, repeat_last
from distill.model.reading import Reading, ScorePart, Seen
from distill.model.similarity import mean_pool, unit
from distill.model.towers import Towers
from distill.model.wiring import Wiring

ASKING = ("top_k", "attention", "transformer")  # poolings that look at the sentence


class PromptSwitchConfig(RetrievalConfig):
    """The towers, the cube of prompts, how frames are pooled, and the captioner (null: none).

    `prompts` frames make a cube; `frames`, a multiple, make a clip, whose prompts each of its frames reads at the end;
    a video is a whole number of clips. `pooling` says how frames become what a sentence is compared with:

        mean          of all frames, as published
        afa           weighted by what is learned of each frame alone, so that a teacher can teach it (TeachCLIP's
                      aggregation); it starts as the mean
        top_k         the sum of those `k` that are most like the sentence (the authors name no `k`)
        attention     weighted by a softmax of their cosines with the sentence
        transformer   read by the sentence in one layer of cross-attention (X-Pool's)

    The first two need no sentence: one vector, one stage. The others search in two stages.

    `mask_padding: false` is the authors' code: the copies of the last frame that complete a short video
    count as frames. With true they only fill the cube: they have no weight in the pooling and are not read, neither at
    the end nor by the captioner, and the fine loss leaves them out.
    """

    kind: Literal["prompt_switch"]
    prompts: int = Field(default=6, ge=1)  # frames of a cube, and prompts of each frame
    frames: int = Field(default=6, ge=1)  # of a clip, a multiple of prompts
    pooling: Literal["mean", "afa", "top_k", "attention", "transformer"] = "mean"  # of frames, see above
    pool_temperature: float = Field(default=0.1, gt=0)  # of the learned weights; read by afa only
    k: int | None = Field(default=None, ge=1)  # frames that top_k adds up; all, where a video has fewer
    attention_temperature: float = Field(default=0.01, gt=0)  # read by attention only
    heads: int = Field(default=1, ge=1)  # this and the next: read by transformer only
    dropout: float = Field(default=0.3, ge=0, lt=1)  # read by transformer only
    mask_padding: bool = False  # true: copies of the last frame are not read
    captions: CaptionConfig | None = CaptionConfig()

    @model_validator(mode="after")
    def _whole_cubes(self) -> "PromptSwitchConfig":
        if self.frames % self.prompts:
            raise ValueError(
                f"frames: {self.frames} is no multiple of prompts, {self.prompts}; frames of two videos would share a "
                f"cube of prompts"
            )
        return self

    @model_validator(mode="after")
    def _number_of_best(self) -> "PromptSwitchConfig":
        if (self.pooling == "top_k") != (self.k is not None):
            raise ValueError("k: pooling top_k adds up so many frames, and no other pooling does; give both or neither")
        return self

    def released(self) -> RetrievalConfig:
        """Leave the captioner out: 33.8 of 187.4 million parameters with ViT-B/32, most of them its head of words."""
        return self.model_copy(update={"captions": None})

    def frame_step(self) -> int:
        """Return the frames of a clip, since a video is a whole number of clips."""
        return self.frames

    def fine_targets(self) -> tuple[str, ...]:
        """Return the names of the weights of frames, where they are learned or a softmax, and of the captioner's."""
        weighed = self.pooling in ("afa", "attention", "transformer")
        targets = {"pooling": weighed, "captioner": self.captions is not None}
        return tuple(name for name, there in targets.items() if there)


class PromptSwitch(RetrievalModel):
    """A video's frames, which have seen one another, pooled, against the sentence."""

    def __init__(self, config: PromptSwitchConfig, towers: Towers):
        super().__init__()
        # Drawn before what the tower draws for its prompts, so that a seed gives the weights that it always gave.
        cube = PromptCube(config.prompts, towers.architecture["vision_cfg"].get("width", CLIPVisionCfg.width))
        self.clip = clip = ClipModel(towers, Wiring(prompts=config.prompts, frames=config.frames))
        self.prompts = cube
        self.frames, self.mask_padding, self.pooling = config.frames, config.mask_padding, config.pooling
        self.k, self.attention_temperature = config.k, config.attention_temperature
        self.afa = self.cross = self.captioner = None
        if config.pooling == "afa":
            afa = AfaConfig(pool_temperature=config.pool_temperature, mask_padding=config.mask_padding)
            self.afa = AttentiveFrameAggregation(clip.dim, afa, uniform=True)
            self.pool_temperature = config.pool_temperature
        if config.pooling == "transformer":
            if clip.dim % config.heads:
                raise RecipeError(f"model.heads: {config.heads} does not divide the {clip.dim} numbers of a frame")
            self.cross = CrossAttention(clip.dim, config.heads, config.dropout)
        if config.pooling in ASKING:
            self.rerank_fields = ("frames", "real")
        if config.captions is not None:
            self.captioner = Captioner(clip.plain[1], clip.dim, config.captions, config.clip.folder)
            self.caption_weight = config.captions.weight

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return the frames and a vector pooled of them: their mean or, with `afa`, one weighted by raw relevance."""
        if real.shape[1] % self.frames:
            raise RecipeError(
                f"model.frames: {self.frames}, but videos have {real.shape[1]} frames; Prompt Switch takes a multiple, "
                f"or frames of two videos would share a clip"
            )
        images = repeat_last(frames, real).flatten(0, 1)
        counted = real if self.mask_padding else torch.ones_like(real)
        features = self.clip.visual(images, prompts=self.prompts(images.shape[0]), counted=counted.flatten())
        features = features.unflatten(0, real.shape)
        if self.afa is None:
            return VideoFeatures(vector=mean_pool(features, counted), frames=features, real=real)
        vector, relevance = self.afa(features, counted)
        return VideoFeatures(vector=vector, frames=features, relevance=relevance, real=real)

    def encode_pair(
        self, ids: Int[Tensor, "pair word"], text: TextFeatures, video: VideoFeatures
    ) -> PairFeatures | None:
        """Caption the pairs, if there is a captioner; the embeddings that it hears are not trained by it."""
        if self.captioner is None:
            return None
        heard, targets, said = next_words(ids)
        with torch.no_grad():
            words = self.clip.plain[1].embed(heard)
        frames, counted = self._frames(video)
        logits, attention = self.captioner(words, frames, said, counted)
        counts = self.captioner.counts(targets, said)
        return PairFeatures(
            caption_loss=caption_loss(logits, targets, said, counts),
            caption_weight=counts.sum(1),
            attention=frames_read(attention, counts),
        )

    def training_scores(self, text: TextFeatures, video: VideoFeatures, pair: PairFeatures | None) -> TrainingScores:
        """Return one contrast and one ranking, the captioning loss, and the two sorts of frame scores."""
        logits = self.logits(text, video)
        frames, own = {}, {}
        weights = self._pair_scores(text, video)
        if weights is not None:
            frames["pooling"] = weights
        if pair is not None:
            frames["captioner"] = _log(pair.attention)
            own["caption"] = self.caption_weight * captioning(pair.caption_loss, pair.caption_weight)
        return TrainingScores(contrasts=[(1.0, logits)], rankings={"logits": logits}, frames=frames, own=own)

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Return the cosine of sentence and video, pooled for that sentence where the pooling asks it."""
        if self.cross is None:
            return super().similarity(text, video)
        with torch.autocast(text.sentence.device.type, enabled=False):
            frames, counted = self._frames(video)
            return self.cross.cosine(unit(text.sentence), unit(frames), counted)

    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """Return the scores whose softmax weighs frames in `attention`, the log of what the heads of `transformer`
        read, and with any other pooling the base's cosines; frames that do not count are left out."""
        if self.pooling not in ("attention", "transformer"):
            return super().relevance(text, video)
        frames, counted = self._frames(video)
        if self.cross is None:
            scores = self.frame_cosines(text, video) / self.attention_temperature
            return scores if counted is None else scores.masked_fill(~counted, LEFT_OUT)
        scores = self.cross.scores(unit(text.sentence), unit(frames))
        if counted is not None:
            scores = scores.masked_fill(~counted.unsqueeze(1), LEFT_OUT)
        return _log(scores.softmax(-1).mean(1))

    def score_parts(self) -> tuple[ScorePart, ...]:
        """Return the cosine with the frames that a sentence weighs; () where it weighs none."""
        if self.pooling not in ("top_k", "attention"):
            return ()
        mask = "real" if self.mask_padding else None
        weighed = Reading(keys="frames", values="frames", temperature=self.attention_temperature, k=self.k, mask=mask)
        return (ScorePart((weighed,), Seen.pooled),)

    def _frames(
        self, video: VideoFeatures
    ) -> tuple[Float[Tensor, "video frame dim"], Bool[Tensor, "video frame"] | None]:
        """Return the frames, and which of them count (None: all)."""
        assert video.frames is not None and video.real is not None, "frames are pooled, and read by the captioner"
        return video.frames, video.real if self.mask_padding else None

    def _pair_scores(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"] | None:
        """Return the scores whose softmax are the weights of video i's frames for text i, if there are such weights."""
        if self.afa is not None:
            assert video.relevance is not None, "learned relevance pools"
            return video.relevance / self.afa.pool_temperature
        return self.relevance(text, video) if self.pooling in ("attention", "transformer") else None


def _log(weights: Float[Tensor, "pair frame"]) -> Float[Tensor, "pair frame"]:
    """Return the log of weights that may be 0."""
    return weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
