"""Calibration: what a bank of known queries says of a gallery: which videos match almost every query, and how well the
best video of a query matches at least.

    calibration/00005.safetensors   `log_sum` [row], `first` [row], `mean` [dim]

A query whose best video is also the best for at least one query b of the bank is answered in the order of

    exp(beta s[query, video]) / sum over b of exp(beta s[b, video]),

the dynamic inverted softmax of Bogolin et al. (CVPR 2022, section 3); any other keeps the order of its similarity s.
The file holds the logarithm of that sum for every row, and whether the row is the best for any b. Only the order
changes: scores stay similarities. Rows added later count with the median sum until the gallery is calibrated again.

Something fits a query if the mean similarity of its three best videos is as far above that of the `mean` of all vectors
as it is for 98 of 100 queries of the bank (`weakest`, among the facts). Words that mean nothing to a model are nearly
as similar to all videos as to the best, whatever the numbers are. Files of former versions know no mean.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from distill.retrieval.columns import damaged, mapped_whole, write_columns
from distill.retrieval.vectors import Answer, descending

MEND = "make it again with tools/gallery.py calibrate"
BETA = 20.0  # inverse temperature, for similarities that behave like cosines (the paper's section 4)
AMONG = 200  # best videos by similarity that are put in order, at least; four times as many as are asked for, if more
SPARE = 4
BEST = 3  # videos whose mean similarity says whether anything fits: one alone may be there by chance
ALARMS = 0.02  # part of the bank's queries whose best video is said not to fit
CELLS = 2**22  # similarities of rows and bank held at once, in double precision


def write(
    path: Path,
    blocks: Iterator[tuple[Float32[np.ndarray, "_ dim"], Bool[np.ndarray, " _"]]],
    bank: Float32[np.ndarray, "query dim"],
    best: Answer,
) -> dict[str, Any]:
    """Compare all rows with a bank of queries, whose `BEST` scores and rows are known; return the facts.

    Rows come in blocks, with a mask that is False on deleted ones.
    """
    sums, total, count = [], np.zeros(bank.shape[1]), 0
    for rows, live in blocks:
        sums.append(_log_sum(BETA * (rows @ bank.T).astype(np.float64)).astype(np.float32))
        total, count = total + rows[live].sum(0, dtype=np.float64), count + int(live.sum())
    first = np.zeros(sum(map(len, sums)), np.bool_)
    first[best[1][:, 0]] = True
    mean = (total / count).astype(np.float32)
    write_columns(path, {"log_sum": np.concatenate(sums), "first": first, "mean": mean})
    above = np.quantile(best[0].mean(1) - bank @ mean, ALARMS)
    return {"queries": len(bank), "weakest": float(above)}


def _log_sum(scores: Float64[np.ndarray, "row query"]) -> Float64[np.ndarray, " row"]:
    """Return the logarithm of the sum of exp(score) of each row; the sum itself may overflow."""
    highest = scores.max(1, keepdims=True)
    return highest[:, 0] + np.log(np.exp(scores - highest).sum(1))


class Calibration:
    """A calibration file, mapped into memory."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path, self.covers, self.weakest = path, facts["covers"], facts.get("weakest")
        mean = {} if self.weakest is None else {"mean": (1, np.float32)}
        found = mapped_whole(path, MEND, log_sum=(1, np.float32), first=(1, np.bool_), **mean)
        self.log_sum, self.first, self.mean = found["log_sum"], found["first"], found.get("mean")
        if len(self.log_sum) != self.covers or len(self.first) != self.covers:
            odd = f"holds log_sum [{len(self.log_sum)}], first [{len(self.first)}], expected {self.covers}"
            raise damaged(path, odd, MEND)

    def best(self, scores: Float32[np.ndarray, "query row"], rows: Int64[np.ndarray, "query row"], k: int) -> Answer:
        """Reorder `rows`, the best by similarity in that order; return the similarities and rows of the `k` best."""
        known = rows < self.covers
        at = rows.clip(max=self.covers - 1)
        log_sum = np.where(known, self.log_sum[at].astype(np.float64), self._common)
        if not np.isfinite(scores + log_sum).all():
            raise damaged(self.path, "a sum is not finite", MEND)
        applies = (self.first[at] & known)[:, :1]
        ranked = np.where(applies, BETA * scores.astype(np.float64) - log_sum, scores)  # in logarithms
        order = descending(ranked)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def fits(
        self, queries: Float32[np.ndarray, "query dim"], best: Float32[np.ndarray, "query best"]
    ) -> Bool[np.ndarray, " query"] | None:
        """Return whether anything fits the queries, whose best similarities are given; None where it is not known."""
        if self.mean is None or self.weakest is None:
            return None
        if self.mean.shape != queries.shape[1:] or not np.isfinite(self.mean).all():
            raise damaged(self.path, f"mean {list(self.mean.shape)}", MEND)
        return best.mean(1) - queries @ self.mean >= self.weakest

    @cached_property
    def _common(self) -> float:
        """The sum that counts for a row without one: the lower of the two in the middle."""
        return float(np.sort(self.log_sum)[(self.covers - 1) // 2])
