"""Pooling that asks the caption: a video has another vector for each text, so its score is that of a pair.

Sentences [text, dim] and the parts of videos [video, part, dim] go in, frames or patches. Parts are weighted by their
inner products with the sentence and summed (`pooled_cosine`), or read by one layer of cross-attention (X-Pool,
`CrossAttention`). `counted` is True on parts that may be read, None where all are.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from distill.model.similarity import inner, lengths, unit

LEFT_OUT = -1e18  # the score of a part that must not be read, before a softmax
SHORTEST_SUM = 1e-6  # the least length that a weighted sum is divided by
MAX_CELLS = 2**24  # numbers of pooled videos held at once; a few copies of them are

Counted = Bool[Tensor, "video part"] | None
Weights = Float[Tensor, "*text video part"]


def attend(products: Weights, counted: Counted, temperature: float) -> Weights:
    """Return the softmax of inner products / temperature over the parts that count; over all where none does."""
    scores = products / temperature
    return (scores if counted is None else scores.masked_fill(~counted, LEFT_OUT)).softmax(-1)


def best(products: Weights, counted: Counted, k: int) -> Weights:
    """Return weight 1 for the `k` parts with the largest inner products, or all there are, and 0 for the others."""
    scores = products if counted is None else products.masked_fill(~counted, LEFT_OUT)
    chosen = scores.topk(min(k, scores.shape[-1]), dim=-1).indices
    weights = torch.zeros_like(products).scatter(-1, chosen, 1.0)
    return weights if counted is None else weights * counted


def pooled_cosine(
    sentence: Float[Tensor, "text dim"],
    parts: Float[Tensor, "video part dim"],
    weights: Float[Tensor, "text video part"],
    along: Float[Tensor, "text video"] | None = None,
) -> Float[Tensor, "text video"]:
    """Return the cosine of every sentence s with g, the sum of a video's parts x_i with the weights w_i of that pair.

    `along` is <s, g>, where it is known already. For many sentences |g|^2 = w G w with the parts' inner products G, so
    that nothing of size text x video x dim is made; for fewer than there are parts (a search) G costs more than g.
    """
    if len(sentence) < parts.shape[1]:
        sums = torch.einsum("tvp,vpd->tvd", weights, parts)
        squares = sums.square().sum(-1)
        along = torch.einsum("td,tvd->tv", sentence, sums) if along is None else along
    else:
        squares = (torch.einsum("tvp,vpq->tvq", weights, parts @ parts.transpose(1, 2)) * weights).sum(-1)
        along = (weights * inner(sentence, parts)).sum(-1) if along is None else along
    return along / (lengths(sentence).unsqueeze(1) * squares.clamp(min=SHORTEST_SUM**2).sqrt())


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
        self, sentence: Float[Tensor, "text dim"], frames: Float[Tensor, "video part dim"], counted: Counted = None
    ) -> Float[Tensor, "video text dim"]:
        """Return every video as every sentence reads it."""
        normed = self._normed(frames)
        query, keys = self._heads(self.q_proj(self._normed(sentence))), self._heads(self.k_proj(normed))
        scores = torch.einsum("thc,vfhc->vhtf", query, keys) * query.shape[-1] ** -0.5
        if counted is not None:
            scores = scores.masked_fill(~counted[:, None, None], LEFT_OUT)
        read = torch.einsum("vhtf,vfhc->vthc", scores.softmax(-1), self._heads(self.v_proj(normed))).flatten(2)
        attended = self.norm2(self.out_proj(read))
        return self.norm3(attended + self.dropout(self.linear_proj(attended)))

    def paired(
        self, sentence: Float[Tensor, "pair dim"], parts: Float[Tensor, "pair part dim"], counted: Counted = None
    ) -> tuple[Float[Tensor, "pair dim"], Float[Tensor, "pair head part"]]:
        """Return video i as sentence i reads it, and the scores whose softmax are its weights.

        Dropout draws one mask for all videos of a call, so that a video's vector depends neither on what else is in a
        batch nor on which process sees it; forward, which reads a whole batch at once, draws one for each pair.
        """
        scores, values = self.scores(sentence, parts), self._heads(self.v_proj(self._normed(parts)))
        if counted is not None:
            scores = scores.masked_fill(~counted.unsqueeze(1), LEFT_OUT)
        attended = self.norm2(self.out_proj(torch.einsum("phf,pfhc->phc", scores.softmax(-1), values).flatten(1)))
        kept = self.dropout(torch.ones_like(attended[:1]))
        return self.norm3(attended + kept * self.linear_proj(attended)), scores

    def cosine(
        self, sentence: Float[Tensor, "text dim"], frames: Float[Tensor, "video part dim"], counted: Counted = None
    ) -> Float[Tensor, "text video"]:
        """Return the cosine of every sentence with every video as that sentence reads it."""
        size, normed, scores = max(1, MAX_CELLS // sentence.numel()), unit(sentence), []
        for start in range(0, len(frames), size):
            few = slice(start, start + size)
            pooled = self(sentence, frames[few], None if counted is None else counted[few])
            scores.append(torch.einsum("td,vtd->tv", normed, unit(pooled)))
        return torch.cat(scores, dim=1)

    def scores(
        self, sentence: Float[Tensor, "pair dim"], frames: Float[Tensor, "pair frame dim"]
    ) -> Float[Tensor, "pair head frame"]:
        """Return every head's scores of the frames of video i for sentence i, whose softmax are its weights."""
        query, keys = self.q_proj(self._normed(sentence)), self.k_proj(self._normed(frames))
        query, keys = self._heads(query), self._heads(keys)
        return torch.einsum("phc,pfhc->phf", query, keys) * query.shape[-1] ** -0.5

    def _normed(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Apply the shared norm, in the precision of its weights."""
        return self.norm1(rows.to(self.norm1.weight.dtype))

    def _heads(self, rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows head channel"]:
        return rows.unflatten(-1, (self.heads, -1))
