"""Search that reads a quarter of the bytes: whole numbers first, and the vectors themselves only where it matters.

A sketch holds vectors [video, dim] rounded to int8, each with a scale. An inner product of rounded vectors, which is
exact in integers, is off by no more than

    |q v - q' v'| <= |q| |v - v'| + |q - q'| |v'|

(Cauchy and Schwarz; ' is rounded), 0.02 for vectors of length 1 and 512 numbers, and about 0.001 as a rule. So what
lies further than twice the bound below the k-th best rounded product cannot be among the k best, the few others are
scored as they are, and the answer is that of `topk.top_k`. A first stage that a full score follows need not be so
exact: it takes the k best rounded products (`recall`).

The sketch takes a quarter of the vectors' memory, and making it as long as some thirty searches without it.
"""

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor

from distill.retrieval.topk import top_k

LEVELS = 127
ROWS = 2**14  # vectors rounded at once
CELLS = 2**22  # rounded products held at once: 16 MiB, three times
SLACK = 1e-5  # what adding up in float32 may be off, beside the product of the lengths


class Sketch:
    """One vector or more, in float32 on the CPU, and what they are when rounded."""

    def __init__(self, vectors: Float[Tensor, "video dim"]):
        self.vectors, parts = vectors, [_rounded(part) for part in vectors.split(ROWS)]
        self.codes, self.scales = torch.cat([codes for codes, _ in parts]), torch.cat([scales for _, scales in parts])
        rounded = [codes * scales.unsqueeze(1) for codes, scales in parts]
        pairs = list(zip(vectors.split(ROWS), rounded, strict=True))
        self.far = max(_longest(part - again) for part, again in pairs)  # |v - v'|
        self.long = max(_longest(again) for _, again in pairs)  # |v'|

    def __len__(self) -> int:
        return len(self.vectors)

    def top_k(
        self, queries: Float[Tensor, "query dim"], k: int
    ) -> tuple[Float[Tensor, "query k"], Int64[Tensor, "query k"]]:
        """The `k` highest inner products of every query, best first; fewer where there are fewer videos."""
        answers = []
        for asking in queries.split(self._together):
            products, rest = self._products(asking)
            off = asking.norm(dim=1) * self.far + rest.norm(dim=1) * self.long
            off += SLACK * asking.norm(dim=1) * (self.far + self.long)
            least = products.topk(min(k, len(self)), sorted=False).values.amin(1) - 2 * off
            near = products >= least.unsqueeze(1)
            answers += [self._among(query, marked, k) for query, marked in zip(asking, near, strict=True)]
        return torch.cat([scores for scores, _ in answers]), torch.cat([rows for _, rows in answers])

    def recall(self, queries: Float[Tensor, "query dim"], k: int) -> Int64[Tensor, "query k"]:
        """The `k` highest rounded products of every query, in ascending order of videos."""
        k = min(k, len(self))
        found = [self._products(asking)[0].topk(k, sorted=False).indices for asking in queries.split(self._together)]
        return torch.cat(found).sort(dim=1).values

    @property
    def _together(self) -> int:
        """Queries at once."""
        return max(1, CELLS // len(self))

    def _products(
        self, queries: Float[Tensor, "query dim"]
    ) -> tuple[Float[Tensor, "query video"], Float[Tensor, "query dim"]]:
        """Rounded products, and what rounding has left of the queries."""
        codes, scales = _rounded(queries)
        products = torch._int_mm(codes, self.codes.T) * scales.unsqueeze(1) * self.scales
        return products, queries - codes * scales.unsqueeze(1)

    def _among(
        self, query: Float[Tensor, " dim"], near: Tensor, k: int
    ) -> tuple[Float[Tensor, "1 k"], Int64[Tensor, "1 k"]]:
        """The best of those videos that `near` marks."""
        rows = near.nonzero()[:, 0]  # ascending, so that the lower number still wins among equals
        scores, found = top_k(query.unsqueeze(0), self.vectors.index_select(0, rows), k)
        return scores, rows[found]


def _rounded(vectors: Float[Tensor, "row dim"]) -> tuple[Int8[Tensor, "row dim"], Float[Tensor, " row"]]:
    """Whole numbers and a scale each."""
    scales = vectors.abs().amax(1).clamp(min=torch.finfo(vectors.dtype).tiny) / LEVELS
    return (vectors / scales.unsqueeze(1)).round().to(torch.int8), scales


def _longest(vectors: Float[Tensor, "row dim"]) -> float:
    return float(vectors.norm(dim=1).max())
