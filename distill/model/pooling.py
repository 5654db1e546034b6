"""Pooling that asks the caption: a video has another vector for each text, so its score is that of a pair.

Sentences [text, dim] and frames [video, frame, dim] go in. Frames are weighed, by whatever function of their inner
products with the sentence, and added up (`weighted_cosine`); or read by one layer of cross-attention (X-Pool,
`CrossAttention`). `counted` is True on frames that may be read, None where all are.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill.model.similarity import inner, unit

LEFT_OUT = -1e18  # the score of a frame that must not be read, before a softmax
MAX_CELLS = 2**24  # numbers held at once, of weights [text, video, frame] or of pooled videos; a few copies of them are

Counted = Bool[Tensor, "video frame"] | None
Weights = Float[Tensor, "text video frame"]
Weigh = Callable[[Weights, Counted], Weights]  # inner products, and the frames that count, to weights


def attend(products: Weights, counted: Counted, temperature: float) -> Weights:
    """Weights by softmax."""
    scores = products / temperature
    return (scores if counted is None else scores.masked_fill(~counted, LEFT_OUT)).softmax(-1)


def best(products: Weights, counted: Counted, k: int) -> Weights:
    """Weight 1 for the `k` frames with the largest inner products, or all there are, and 0 for the others."""
    scores = products if counted is None else products.masked_fill(~counted, LEFT_OUT)
    chosen = scores.topk(min(k, scores.shape[-1]), dim=-1).indices
    weights = torch.zeros_like(products).scatter(-1, chosen, 1.0)
    return weights if counted is None else weights * counted


def weighted_cosine(
    sentence: Float[Tensor, "text dim"], frames: Float[Tensor, "video frame dim"], counted: Counted, weigh: Weigh
) -> Float[Tensor, "text video"]:
    """Cosine of every sentence s with g, the sum of frames x_f with the weights w that `weigh` makes of <s, x_f>."""
    parts = _parts(frames, counted, len(sentence) * frames.shape[1])
    return torch.cat([_weighted_cosine(sentence, part, mask, weigh) for part, mask in parts], dim=1)


def _weighted_cosine(
    sentence: Float[Tensor, "text dim"], frames: Float[Tensor, "video frame dim"], counted: Counted, weigh: Weigh
) -> Float[Tensor, "text video"]:
    """<s, g> = sum of w_f <s, x_f>. For many sentences |g|^2 = w G w with the frames' inner products G, so that nothing
    of size text x video x dim is made; for fewer than there are frames (a search) G would cost more than g itself.
    """
    products = inner(sentence, frames)
    weights = weigh(products, counted)
    if len(sentence) < frames.shape[1]:
        squares = torch.einsum("tvf,vfd->tvd", weights, frames).square().sum(-1)
    else:
        squares = (torch.einsum("tvf,vfg->tvg", weights, frames @ frames.transpose(-1, -2)) * weights).sum(-1)
    both = sentence.norm(dim=-1, keepdim=True) * squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()
    return (weights * products).sum(-1) / both


def _parts(
    frames: Float[Tensor, "video frame dim"], counted: Counted, cells: int
) -> list[tuple[Tensor, Tensor | None]]:
    """A few videos at a time; a video is `cells` numbers."""
    size = max(1, MAX_CELLS // cells)
    parts = frames.split(size)
    return list(zip(parts, [None] * len(parts) if counted is None else counted.split(size), strict=True))


class CrossAttention(nn.Module):
    """One layer of attention through which a sentence reads the frames of a video (X-Pool, equations 3 to 6).

    Sentences and frames share a norm. The linear layers are the identity at first.
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        assert dim % heads == 0, f"{heads} heads do not divide {dim}"
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.linear_proj = nn.Linear(dim, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.linear_proj):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, sentence: Float[Tensor, "text dim"], frames: Float[Tensor, "video frame dim"], counted: Counted = None
    ) -> Float[Tensor, "video text dim"]:
        """Every video as every sentence sees it."""
        normed = self._normed(frames)
        query, keys = self._heads(self.q_proj(self._normed(sentence))), self._heads(self.k_proj(normed))
        scores = torch.einsum("thc,vfhc->vhtf", query, keys) * query.shape[-1] ** -0.5
        if counted is not None:
            scores = scores.masked_fill(~counted[:, None, None], LEFT_OUT)
        read = torch.einsum("vhtf,vfhc->vthc", scores.softmax(-1), self._heads(self.v_proj(normed))).flatten(2)
        attended = self.norm2(self.out_proj(read))
        return self.norm3(attended + self.dropout(self.linear_proj(attended)))

    def cosine(
        self, sentence: Float[Tensor, "text dim"], frames: Float[Tensor, "video frame dim"], counted: Counted = None
    ) -> Float[Tensor, "text video"]:
        """Cosine of every sentence with every video as that sentence sees it."""
        unit_sentence, parts = unit(sentence), _parts(frames, counted, sentence.numel())
        return torch.cat(
            [torch.einsum("td,vtd->tv", unit_sentence, unit(self(sentence, part, mask))) for part, mask in parts], dim=1
        )

    def scores(
        self, sentence: Float[Tensor, "pair dim"], frames: Float[Tensor, "pair frame dim"]
    ) -> Float[Tensor, "pair head frame"]:
        """What every head's weights of the frames of video i for sentence i are a softmax of."""
        query, keys = self.q_proj(self._normed(sentence)), self.k_proj(self._normed(frames))
        query, keys = self._heads(query), self._heads(keys)
        return torch.einsum("phc,pfhc->phf", query, keys) * query.shape[-1] ** -0.5

    def _normed(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """In the precision of the weights."""
        return self.norm1(rows.to(self.norm1.weight.dtype))

    def _heads(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows head channel"]:
        return rows.unflatten(-1, (self.heads, -1))
