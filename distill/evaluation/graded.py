"""Metrics against graded truth: nDCG@10, and R@1 with false negatives forgiven. They are not the papers' metrics.

Ties count against the model, as in distill/evaluation/metrics.py: among equal scores the lower grade ranks first.
"""

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from distill.evaluation.evaluate import TEXT_BATCH
from distill.evaluation.metrics import mean_interval
from distill.evaluation.result import Graded
from distill.evaluation.truth import Truth

DEPTH = 10


def graded(
    truth: Truth, by_text: Float[Tensor, "text video"], by_video: Float[Tensor, "text video"], seed: int
) -> Graded:
    """Return the metrics of both directions with their 95 % intervals; videos and their captions are drawn together."""
    videos = torch.arange(truth.grades.shape[1])
    sides = {"t2v": (by_text, truth.video_of_text, False), "v2t": (by_video.T, videos, True)}
    metrics, intervals, relevant = {}, {}, int((truth.grades > 0).sum())
    for side, (scores, groups, turned) in sides.items():
        parts = [_measured(scores, truth, turned, start) for start in range(0, len(scores), TEXT_BATCH)]
        values = {
            f"nDCG@{DEPTH}": 100 * torch.cat([gain for gain, _ in parts]),
            "R@1": 100 * torch.cat([right for _, right in parts]).double(),
        }
        metrics[side] = {name: float(value.mean()) for name, value in values.items()}
        intervals[side] = {name: mean_interval(value, groups, seed) for name, value in values.items()}
    return Graded(
        kind=truth.kind,
        source=truth.source,
        source_id=truth.source_id,
        share=truth.share,
        relevant=relevant,
        several=truth.several(),
        metrics=metrics,
        intervals=intervals,
    )


def ndcg(
    scores: Float[Tensor, "query item"], grades: Shaped[Tensor, "query item"], depth: int = DEPTH
) -> Float64[Tensor, " query"]:
    """Return nDCG at a depth of every query, from 0 to 1.

    DCG = sum over ranks i up to the depth of grade(i) / log2(i + 1), divided by that of the best possible order; 0
    where nothing is relevant (Järvelin and Kekäläinen, TOIS 20(4), 2002, with the discount and the linear gains of
    trec_eval's ndcg_cut). Of equal scores the lower grade ranks first.
    """
    gains = grades.double()
    lowest_first = gains.argsort(dim=1, stable=True)
    order = scores.gather(1, lowest_first).argsort(dim=1, descending=True, stable=True)
    ranked = gains.gather(1, lowest_first).gather(1, order)[:, :depth]
    best = gains.topk(min(depth, gains.shape[1]), dim=1).values
    discount = torch.log2(torch.arange(ranked.shape[1], dtype=torch.float64) + 2)
    ideal = (best / discount).sum(1)
    return (ranked / discount).sum(1) / ideal.where(ideal > 0, torch.ones_like(ideal))


def first_is_right(scores: Float[Tensor, "query item"], right: Bool[Tensor, "query item"]) -> Bool[Tensor, " query"]:
    """Return whether the item that ranks first is right; a wrong item with the same score ranks before it."""
    of_right, of_wrong = (scores.masked_fill(~kept, -torch.inf).amax(1) for kept in (right, ~right))
    return of_right > of_wrong


def _measured(
    scores: Float[Tensor, "query item"], truth: Truth, turned: bool, start: int
) -> tuple[Float64[Tensor, " part"], Bool[Tensor, " part"]]:
    """Return nDCG, and whether the first item is right, of a part of the queries: texts, or (turned) videos."""
    rows = slice(start, start + TEXT_BATCH)
    if not turned:
        return ndcg(scores[rows], truth.grades[rows]), first_is_right(scores[rows], truth.right(rows))
    parts = [slice(at, at + TEXT_BATCH) for at in range(0, len(truth.grades), TEXT_BATCH)]
    right = torch.cat([truth.right(part)[:, rows].T for part in parts], dim=1)
    return ndcg(scores[rows], truth.grades[:, rows].T), first_is_right(scores[rows], right)
