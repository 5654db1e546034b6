"""Prompt Switch (Deng et al., ICCV 2023): frames inform one another inside CLIP, by prompts that change places.

One vector per video, as cheap to search as CLIP4Clip's, and no temporal transformer on top: prompt tokens carry what
each frame has seen to the others before every visual block (`distill/model/prompts.py`), and in training a captioner
has to say each caption from the frames (`distill/model/captioner.py`; it is not released). Frames [video, frame, 3,
row, column] or stem tokens and token ids [text, word] go in.

The authors train on 6 frames and test on 12, which are then two clips of 6 that meet only in the mean: that is
`frames: 6` on data of 12 frames, here in training too. Their loader completes short videos with their last frame, and
so does this model, whatever lies in the padding.
"""

from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from distill.errors import RecipeError
from distill.losses.captioning import caption_loss, captioning
from distill.model.afa import AfaConfig, AttentiveFrameAggregation
from distill.model.captioner import CaptionConfig, Captioner, frames_read, next_words
from distill.model.clip import Clip, Video, VideoTokens
from distill.model.contract import RetrievalConfig, RetrievalModel, TrainingScores
from distill.model.features import PairFeatures, TextFeatures, VideoFeatures
from distill.model.prompts import PromptAggregation, PromptCube, repeat_last, switch_prompts
from distill.model.similarity import cosine, mean_pool


class PromptSwitchConfig(RetrievalConfig):
    """The towers, the cube of prompts, how frames are pooled, and the captioner (null: none).

    `prompts` frames make a cube; `frames`, a multiple, make a clip, whose prompts each of its frames reads at the end;
    a video is a whole number of clips. `pooling: mean` is published; `afa` learns the weight of every frame from the
    frame itself (TeachCLIP's aggregation), so that a teacher can teach it, and starts as the mean.

    `mask_padding: false` is what the authors' code does: the copies of the last frame that complete a short video
    count as frames. With true they only fill the cube: they have no weight in the pooling and are not read, neither at
    the end nor by the captioner, and the fine loss leaves them out.
    """

    kind: Literal["prompt_switch"]
    prompts: int = Field(default=6, ge=1)
    frames: int = Field(default=6, ge=1)
    pooling: Literal["mean", "afa"] = "mean"
    pool_temperature: float = Field(default=0.1, gt=0)  # of the learned weights; read by afa only
    mask_padding: bool = False
    captions: CaptionConfig | None = CaptionConfig()

    @model_validator(mode="after")
    def _whole_cubes(self) -> "PromptSwitchConfig":
        if self.frames % self.prompts:
            raise ValueError(
                f"frames: {self.frames} is no multiple of prompts, {self.prompts}; frames of two videos would share a "
                f"cube of prompts"
            )
        return self

    def released(self) -> RetrievalConfig:
        """Without the captioner: 33.8 of 187.4 million parameters with ViT-B/32, most of them its head of words."""
        return self.model_copy(update={"captions": None})

    def frame_step(self) -> int:
        """A video is a whole number of clips."""
        return self.frames

    def framed(self) -> tuple[str, ...]:
        """The frame aggregation, and what the captioner reads."""
        places = {"pooling": self.pooling == "afa", "captioner": self.captions is not None}
        return tuple(name for name, there in places.items() if there)


class PromptSwitch(RetrievalModel):
    """The mean of a video's unit frames, which have seen one another, against the sentence."""

    def __init__(self, config: PromptSwitchConfig, clip: Clip):
        super().__init__()
        self.clip = clip
        self.prompts = PromptCube(config.prompts, clip.visual.width)
        aggregation = PromptAggregation(clip.visual.width, clip.visual.heads, config.frames)
        clip.visual.take_prompts(partial(switch_prompts, prompts=config.prompts), aggregation)
        self.frames, self.mask_padding = config.frames, config.mask_padding
        self.afa = self.captioner = None
        if config.pooling == "afa":
            afa = AfaConfig(pool_temperature=config.pool_temperature, mask_padding=config.mask_padding)
            self.afa = AttentiveFrameAggregation(clip.dim, afa, uniform=True)
            self.pool_temperature = config.pool_temperature
        if config.captions is not None:
            self.captioner = Captioner(clip.text, clip.dim, config.captions, config.clip.model)
            self.caption_weight = config.captions.weight

    def encode_text(self, ids: Int[Tensor, "text word"]) -> TextFeatures:
        """The end-of-text feature."""
        sentence, _ = self.clip.text(ids)
        return TextFeatures(sentence=sentence)

    def encode_video(self, frames: Video | VideoTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """The pooled vector and the frames it was pooled of; with `afa` also the raw frame relevance."""
        if real.shape[1] % self.frames:
            raise RecipeError(
                f"model.frames: {self.frames}, but videos have {real.shape[1]} frames; Prompt Switch takes a multiple, "
                f"or frames of two videos would share a clip"
            )
        images = repeat_last(frames, real).flatten(0, 1)
        counted = real if self.mask_padding else torch.ones_like(real)
        features = self.clip.visual(images, prompts=self.prompts(len(images)), counted=counted.flatten())
        features = features.unflatten(0, real.shape)
        if self.afa is None:
            return VideoFeatures(vector=mean_pool(features, counted), frames=features, real=real)
        vector, relevance = self.afa(features, counted)
        return VideoFeatures(vector=vector, frames=features, relevance=relevance, real=real)

    def encode_pair(
        self, ids: Int[Tensor, "pair word"], text: TextFeatures, video: VideoFeatures
    ) -> PairFeatures | None:
        """What the captioner makes of the pairs; the embeddings that it hears are not trained by it."""
        if self.captioner is None:
            return None
        assert video.frames is not None and video.real is not None, "the captioner reads frames"
        heard, targets, said = next_words(ids)
        with torch.no_grad():
            words = self.clip.text.embed(heard)
        counted = video.real if self.mask_padding else None
        logits, attention = self.captioner(words, video.frames, said, counted)
        counts = self.captioner.counts(targets, said)
        return PairFeatures(
            caption_loss=caption_loss(logits, targets, said, counts),
            caption_weight=counts.sum(1),
            attention=frames_read(attention, counts),
        )

    def training_scores(self, text: TextFeatures, video: VideoFeatures, pair: PairFeatures | None) -> TrainingScores:
        """One contrastive loss and one ranking, the captioning loss, and the two sorts of frame scores."""
        logits = self.logits(text, video)
        frames, own = {}, {}
        if video.relevance is not None and self.pool_temperature is not None:
            frames["pooling"] = video.relevance / self.pool_temperature  # taught as it pools
        if pair is not None:
            frames["captioner"] = pair.attention.clamp(min=torch.finfo(pair.attention.dtype).tiny).log()
            own["caption"] = self.caption_weight * captioning(pair.caption_loss, pair.caption_weight)
        return TrainingScores(contrasts=[(1.0, logits)], rankings={"logits": logits}, frames=frames, own=own)

    def similarity(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Cosine of sentence and video."""
        return cosine(text.sentence, video.vector)

    def logits(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "text video"]:
        """Similarity times the logit scale."""
        return self.clip.logit_scale(self.similarity(text, video))
