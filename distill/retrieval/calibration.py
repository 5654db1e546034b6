"""Calibration: demotes videos that match almost every query (hubness), by a bank of known queries (QB-Norm).

    calibration/00005.safetensors   `log_sum` [row], `first` [row]

A query whose best video is also the best for at least one query b of the bank is answered in the order of

    exp(beta s[query, video]) / sum over b of exp(beta s[b, video]),

the dynamic inverted softmax of Bogolin et al. (CVPR 2022, section 3); any other keeps the order of its similarity s.
The file holds the logarithm of that sum for every row, and whether the row is the best for any b. Only the order
changes: scores stay similarities. Rows added later count with the median sum until the gallery is calibrated again.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from distill.ranking.topk import Answer
from distill.retrieval.stored import damaged, mapped_whole, write_columns

MEND = "make it again with tools/gallery.py calibrate"
BETA = 20.0  # inverse temperature, for similarities that behave like cosines (the paper's section 4)
AMONG = 200  # best videos by similarity that are put in order, at least; four times as many as are asked for, if more
SPARE = 4
CELLS = 2**22  # similarities of rows and bank held at once, in double precision


def write(
    path: Path, rows: Iterator[Float[Tensor, "_ dim"]], bank: Float[Tensor, "query dim"], best: Int64[Tensor, "query 1"]
) -> dict[str, Any]:
    """Compare all rows, given in blocks, with a bank of queries, whose `best` rows are known; return the facts."""
    log_sum = torch.cat([torch.logsumexp(BETA * (block @ bank.T).double(), 1).float() for block in rows])
    first = torch.zeros(len(log_sum), dtype=torch.bool)
    first[best.flatten()] = True
    write_columns(path, {"log_sum": log_sum, "first": first})
    return {"queries": len(bank)}


def inverted_softmax(
    similarity: Float[Tensor, "query row"], log_sum: Float[Tensor, "*query row"], applies: Bool[Tensor, "query 1"]
) -> Float64[Tensor, "query row"]:
    """Return scores that rank: the log of the dynamic inverted softmax where it applies, else the similarity."""
    return torch.where(applies, BETA * similarity.double() - log_sum, similarity.double())


class Calibration:
    """A calibration file, mapped into memory."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path, self.covers = path, facts["covers"]
        found = mapped_whole(path, MEND, log_sum=(1, torch.float32), first=(1, torch.bool))
        self.log_sum, self.first = found["log_sum"], found["first"]
        if len(self.log_sum) != self.covers or len(self.first) != self.covers:
            odd = f"holds log_sum [{len(self.log_sum)}], first [{len(self.first)}], expected {self.covers}"
            raise damaged(path, odd, MEND)

    def best(self, scores: Float[Tensor, "query row"], rows: Int64[Tensor, "query row"], k: int) -> Answer:
        """Reorder `rows`, the best by similarity in that order; return the similarities and rows of the `k` best."""
        known = rows < self.covers
        at = rows.clamp(max=self.covers - 1)
        log_sum = torch.where(known, self.log_sum[at].double(), self._common)
        if not (scores + log_sum).isfinite().all():
            raise damaged(self.path, "a sum is not finite", MEND)
        ranked = inverted_softmax(scores, log_sum, (self.first[at] & known)[:, :1])
        order = ranked.sort(dim=1, descending=True, stable=True).indices[:, :k]
        return scores.gather(1, order), rows.gather(1, order)

    @cached_property
    def _common(self) -> Float[Tensor, ""]:
        """The sum that counts for a row without one."""
        return self.log_sum.median().double()
