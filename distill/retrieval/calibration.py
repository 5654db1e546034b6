"""Calibration: videos that come up for everything step back, by how well they fit a bank of queries (QB-Norm).

    calibration/00005.safetensors   `log_sum` [row], `first` [row]

A query whose best video comes first for at least one query b of the bank too is answered in the order of

    exp(beta s[query, video]) / sum over b of exp(beta s[b, video]),

the dynamic inverted softmax of Bogolin et al. (CVPR 2022, section 3); any other keeps the order of its similarity s. Of
every row is kept the logarithm of that sum, and whether it comes first for any b. Only the order changes: scores stay
similarities. Rows that came later stand where the median row does, until calibrated again.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from safetensors.torch import save
from torch import Tensor

from distill.errors import ArtefactError, check_regular
from distill.publishing import published
from distill.retrieval.stored import mapped

BETA = 20.0  # inverse temperature, for similarities that behave like cosines (the paper's section 4)
AMONG = 200  # best videos by similarity that are put in order, at least; four times as many as are asked for, if more
SPARE = 4
CELLS = 2**22  # similarities of rows and bank held at once, in double precision


def write(
    path: Path,
    blocks: Iterator[Float[Tensor, "_ dim"]],
    bank: Float[Tensor, "query dim"],
    nearest: Callable[[Float[Tensor, "query dim"], int], tuple[Tensor, Int64[Tensor, "query k"]]],
) -> dict[str, Any]:
    """Writes what a bank of query vectors says of all rows, given in `blocks`; returns facts for the manifest.

    `nearest` searches the rows that are not deleted.
    """
    log_sum = torch.cat([torch.logsumexp(BETA * (block @ bank.T).double(), 1).float() for block in blocks])
    first = torch.zeros(len(log_sum), dtype=torch.bool)
    first[nearest(bank, 1)[1].flatten()] = True
    with published(path) as file:
        file.write(save({"log_sum": log_sum, "first": first}))
    return {"queries": len(bank)}


def inverted_softmax(
    similarity: Float[Tensor, "query row"], log_sum: Float[Tensor, "*query row"], applies: Bool[Tensor, "query 1"]
) -> Float64[Tensor, "query row"]:
    """The logarithm of the dynamic inverted softmax, which ranks alike, for queries to which it applies; for any other
    the similarity.
    """
    return torch.where(applies, BETA * similarity.double() - log_sum, similarity.double())


class Calibration:
    """A calibration file, mapped into memory."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path, self.covers = path, facts["covers"]
        check_regular(path)
        try:
            found = mapped(path)
        except ArtefactError:
            raise self._damaged("not whole") from None
        expected = {"log_sum": ((self.covers,), torch.float32), "first": ((self.covers,), torch.bool)}
        if {name: (tuple(value.shape), value.dtype) for name, value in found.items()} != expected:
            raise self._damaged(f"holds {', '.join(f'{name} {list(value.shape)}' for name, value in found.items())}")
        self.log_sum, self.first = found["log_sum"], found["first"]

    def best(
        self, scores: Float[Tensor, "query row"], rows: Int64[Tensor, "query row"], k: int
    ) -> tuple[Float[Tensor, "query k"], Int64[Tensor, "query k"]]:
        """The `k` best of the best `rows` by similarity, which come in its order, and their similarities."""
        known = rows < self.covers
        at = rows.clamp(max=self.covers - 1)
        log_sum = torch.where(known, self.log_sum[at].double(), self._common)
        if not (scores + log_sum).isfinite().all():
            raise self._damaged("a sum that is no finite number")
        ranked = inverted_softmax(scores, log_sum, (self.first[at] & known)[:, :1])
        order = ranked.sort(dim=1, descending=True, stable=True).indices[:, :k]
        return scores.gather(1, order), rows.gather(1, order)

    @cached_property
    def _common(self) -> Float[Tensor, ""]:
        """What counts for a row without a sum."""
        return self.log_sum.median().double()

    def _damaged(self, found: str) -> ArtefactError:
        return ArtefactError(f"{self.path}: damaged ({found}); make it again with tools/gallery.py calibrate")
