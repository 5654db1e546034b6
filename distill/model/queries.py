"""Learned queries that read a text or a video, so that GLSCL need not compare all words with all frames (its LIM).

Features [sample, item, dim] go in, words of a text or frames of a video; out come as many concepts as there are queries
[sample, concept, dim], unit vectors, and how much of each item each of them read. Because one set of queries and one
decoder read both sides, concept i of a text is compared with concept i of a video. Decisions:

* The decoder is torch's post-norm `nn.TransformerDecoder` without a final norm (distill/model/decoder.py).
* All layers start as copies of the first, as `nn.TransformerDecoder` makes them.
* It computes in float32 or better, also where the towers run in half precision.
"""

import copy
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from distill.config import Config
from distill.errors import RecipeError
from distill.model.decoder import DecoderLayer
from distill.model.similarity import precise, unit

Side = Literal["text", "video"]


class QueryConfig(Config):
    """Size of the queries' decoder, and the parts that both sides share.

    `init: uniform` is the authors' U[0, 1), with which any two queries begin at a cosine of about 0.75; `normal` is
    N(0, 1), with which they begin unlike.
    """

    count: int = Field(default=8, ge=2)  # of learned queries, and so of concepts
    layers: int = Field(default=3, ge=1)  # decoder blocks
    heads: int = Field(default=8, ge=1)  # attention heads
    feed_forward: int = Field(default=2048, ge=1)  # hidden width of the decoder's MLP
    dropout: float = Field(default=0.1, ge=0, lt=1)  # in the decoder, training only
    share_queries: bool = True  # False: texts are read by queries of their own
    share_decoder: bool = True  # False: videos are read by a decoder of their own
    init: Literal["uniform", "normal"] = "uniform"  # distribution of the first queries: U[0, 1) or N(0, 1)


class LearnedQueries(nn.Module):
    """The queries and the decoder through which they read (GLSCL, local interaction module)."""

    def __init__(self, dim: int, config: QueryConfig):
        super().__init__()
        if dim % config.heads:
            raise RecipeError(f"model.queries.heads: {config.heads} heads do not divide features of size {dim}")
        draw = torch.rand if config.init == "uniform" else torch.randn
        self.queries = nn.Parameter(draw(config.count, dim))  # of videos, and of texts unless these have their own
        self.text_queries = None if config.share_queries else nn.Parameter(draw(config.count, dim))
        self.decoder = _decoder(dim, config)  # of texts, and of videos unless these have their own
        self.video_decoder = None if config.share_decoder else _decoder(dim, config)

    def forward(
        self, items: Float[Tensor, "sample item dim"], side: Side, real: Bool[Tensor, "sample item"] | None = None
    ) -> tuple[Float[Tensor, "sample concept dim"], Float[Tensor, "sample concept item"]]:
        """Return concepts, and how much of each item the last layer read for each; without `real`, padding too."""
        queries, decoder = self.queries, self.decoder
        if side == "text" and self.text_queries is not None:
            queries = self.text_queries
        if side == "video" and self.video_decoder is not None:
            decoder = self.video_decoder
        with torch.autocast(items.device.type, enabled=False):
            items = precise(items)
            readable = None if real is None else real.unsqueeze(1)
            first, *others = decoder
            concepts, reading = first(queries.expand(items.shape[0], -1, -1), items, readable=readable)
            for layer in others:
                concepts, reading = layer(concepts, items, readable=readable)
            return unit(concepts), reading


def _decoder(dim: int, config: QueryConfig) -> nn.ModuleList:
    first = DecoderLayer(dim, config.heads, config.feed_forward, config.dropout)
    return nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(config.layers - 1))])
