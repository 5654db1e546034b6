"""PIG, of the Hybrid-Tower framework (Lan et al., ICCV 2025): a video imagines its query, and reads itself by it.

A tower in which frames meet through proxy tokens (`distill/model/proxies.py`) gives tokens. A generator, a second text
transformer, makes of them a pseudo-query (`distill/model/generator.py`), which is drawn to the sentence of the caption.
One layer of X-Pool's cross-attention lets the pseudo-query read the video's class token, proxies and frame tokens. All
of it runs when a video is stored: one vector, searched by a cosine, that a query seems to have chosen.

Frames [video, frame, 3, row, column] and token ids [text, word] go in. In the words of the paper, with t the sentence
and t_p the pseudo-query: v = phi_f(t_p, tokens), L = InfoNCE(v, t) + mean |n(t_p) - n(t)|^2, nothing detached. The
authors add the two directions of InfoNCE; here they are averaged as everywhere, so their loss is
`losses.contrastive.weight: 2.0`.

Labels teach the vector's ranking (coarse), the scores by which the pseudo-query reads frames (fine target `pooling`:
the same expression that X-Pool's relevance is), and the pseudo-query itself (`losses.sentence`: the teacher's sentence
in place of the student's own).

The authors' videos have no padding. Here short videos are completed with their last frame, as Prompt Switch does, and
these copies count as frames; with `mask_padding` nothing reads them. Dropout draws one mask for all of a batch.
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from distill.errors import RecipeError
from distill.losses.generation import generation
from distill.model.afa import PADDED_RELEVANCE
from distill.model.clip import ClipModel, StemTokens, VideoPixels
from distill.model.contract import RetrievalConfig, RetrievalModel, TrainingScores
from distill.model.features import PairFeatures, TextFeatures, VideoFeatures
from distill.model.generator import GeneratorConfig, QueryGenerator, informativeness, most_informative
from distill.model.pooling import CrossAttention
from distill.model.prompts import repeat_last
from distill.model.proxies import ProxyTokens
from distill.model.similarity import precise
from distill.model.towers import Towers
from distill.model.wiring import Wiring

MAX_LOG = math.log(200)  # of the logit scale, where CLIP's own limit is the logarithm of 100


class PigConfig(RetrievalConfig):
    """The towers, their proxies, the generator, and how a pseudo-query reads its video."""

    kind: Literal["pig"]
    proxies: int = Field(default=3, ge=1)  # learned tokens beside the class token, through which frames meet
    frames: int = Field(default=12, ge=1)  # positions in time; videos of other lengths interpolate them
    generator: GeneratorConfig = GeneratorConfig()
    dropout: float = Field(default=0.1, ge=0, lt=1)  # after the last linear layer of the reading, training only
    mask_padding: bool = False  # true: copies of the last frame are not read, nor taught

    def fine_targets(self) -> tuple[str, ...]:
        """Return the name of the scores by which the pseudo-query reads frames."""
        return ("pooling",)

    def makes_queries(self) -> bool:
        """Return True: the pseudo-query is what a teacher's sentences teach."""
        return True


class Pig(RetrievalModel):
    """A video as its own pseudo-query reads it, against the sentence."""

    pool_temperature = 1.0

    def __init__(self, config: PigConfig, towers: Towers):
        super().__init__()
        self.clip = clip = ClipModel(towers, Wiring(proxies=config.proxies))
        clip.logit_scale.max_log = MAX_LOG
        self.global_tokens, self.per_frame = 1 + config.proxies, len(clip.plain[0].positional_embedding)
        patches = config.frames * (self.per_frame - 1)
        if config.generator.selected > patches:
            raise RecipeError(
                f"model.generator.selected: {config.generator.selected}, but {config.frames} frames have {patches} "
                f"patches; select so many or fewer"
            )
        self.proxies = ProxyTokens(config.proxies, config.frames, clip.plain[0].class_embedding)
        self.generator = QueryGenerator(clip.plain[1], clip.dim, config.generator)
        self.generator.check_room(self.global_tokens + config.frames + config.generator.selected)
        self.cross = CrossAttention(clip.dim, heads=1, dropout=config.dropout)
        self.selected, self.generation_weight = config.generator.selected, config.generator.weight
        self.mask_padding = config.mask_padding

    def encode_video(self, frames: VideoPixels | StemTokens, real: Bool[Tensor, "video frame"]) -> VideoFeatures:
        """Return the vector, the pseudo-query, the raw scores by which it reads frames, and in use the frame tokens."""
        counted = real if self.mask_padding else None
        proxies, images = self.proxies(real.shape[1]), repeat_last(frames, real).flatten(0, 1)
        hidden = None if counted is None else counted.flatten()
        tokens, attention = self.clip.visual(images, proxies=proxies, counted=hidden)
        context = torch.cat([tokens[:, : self.global_tokens], tokens[:, self.global_tokens :: self.per_frame]], dim=1)
        scores = informativeness(attention[:, :, 0], self.global_tokens, self.per_frame, counted)
        chosen, there = most_informative(tokens, scores, self.selected)
        readable = generated = None
        if counted is not None:
            readable = torch.nn.functional.pad(counted, (self.global_tokens, 0), value=True)
            generated = torch.cat([readable, there], dim=1)
        query = self.generator(torch.cat([context, chosen], dim=1), generated)
        vector, read = self.cross.paired(query, context, readable)
        relevance = precise(read[:, 0, self.global_tokens :])
        if counted is not None:
            relevance = relevance.masked_fill(~counted, PADDED_RELEVANCE)
        kept = None if self.training else context[:, self.global_tokens :]
        return VideoFeatures(vector=vector, frames=kept, pseudo_query=query, relevance=relevance, real=real)

    def training_scores(self, text: TextFeatures, video: VideoFeatures, pair: PairFeatures | None) -> TrainingScores:
        """Return the scores of the vector, the pseudo-queries, and the loss that draws these to their captions."""
        assert video.pseudo_query is not None, "videos bring their pseudo-queries"
        loss = self.generation_weight * generation(video.pseudo_query, text.sentence)
        scores = super().training_scores(text, video, pair)
        return replace(scores, pseudo_query=video.pseudo_query, own={"generation": loss})

    def relevance(self, text: TextFeatures, video: VideoFeatures) -> Float[Tensor, "pair frame"]:
        """Return the scores by which text i, in place of the pseudo-query, would read the frames of video i."""
        assert video.frames is not None, "relevance is that of frames"
        with torch.autocast(video.frames.device.type, enabled=False):
            return self.cross.scores(precise(text.sentence), precise(video.frames)).squeeze(1)
