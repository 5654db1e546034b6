"""Retrieval metrics: ranks from a similarity matrix, R@k with median and mean rank, and bootstraps over videos.

The functions take the similarity [text, video] and the video of every text. Ranks are 0-based here and 1-based in
summaries. A tie counts against the model: a wrong video with the score of the right one ranks before it, so a model
that gives every pair the same score finds nothing. A score that is not finite is an error: leaving its query out would
change the denominator of R@k.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from distill.errors import ExpectedError

DRAWS = 2000  # of a bootstrap


def ranks_t2v(similarity: Float[Tensor, "text video"], video_of_text: Int[Tensor, " text"]) -> Int64[Tensor, " text"]:
    """Return for every text how many other videos score at least as high as its own.

    Rows are independent: the ranks of chunks of texts, concatenated, are the ranks of all.
    """
    _check_finite(similarity)
    right = similarity.gather(1, video_of_text.long().unsqueeze(1))
    return (similarity >= right).sum(1) - 1  # the right video is not above itself


def ranks_v2t(
    similarity: Float[Tensor, "text video"], video_of_text: Int[Tensor, " text"]
) -> Int64[Tensor, " captioned"]:
    """Return for every captioned video, in ascending order, how many other videos' captions rank before its own.

    The captions of one video count as one group that scores by its best member (the protocol of MSVD and VATEX).
    Columns are independent given all texts.
    """
    _check_finite(similarity)
    captioned, group = video_of_text.long().unique(return_inverse=True)
    columns = similarity[:, captioned]  # a video without captions is no query
    best = columns.new_full((len(captioned), len(captioned)), -torch.inf)
    best.scatter_reduce_(0, group.unsqueeze(1).expand_as(columns), columns, "amax")  # group video
    return (best >= best.diagonal()).sum(0) - 1


@dataclass(frozen=True)
class Ranks:
    """Ranks, counted from 0, and their summary."""

    t2v: Int64[Tensor, " text"]
    v2t: Int64[Tensor, " captioned"]

    @classmethod
    def of(
        cls,
        by_text: Float[Tensor, "text video"],
        by_video: Float[Tensor, "text video"],
        video_of_text: Int[Tensor, " text"],
    ) -> "Ranks":
        """Take the ranks of the scores by which texts rank videos, and videos texts."""
        return cls(ranks_t2v(by_text, video_of_text), ranks_v2t(by_video, video_of_text))

    @cached_property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The summary of both directions: `metrics["t2v"]["R@1"]` in percent, `MdR` and `MnR` from 1."""
        return {"t2v": summarise(self.t2v), "v2t": summarise(self.v2t)}


def summarise(ranks: Int[Tensor, " query"]) -> dict[str, float]:
    """Return R@1, R@5, R@10 in percent, median rank and mean rank (1-based).

    The median of an even count is the mean of the two middle ranks, as in NumPy. CLIP4Clip and its descendants do
    the same where each video has one caption, but take the lower one in T2V where videos have several.
    """
    if not len(ranks):
        raise ExpectedError("no ranks to summarise: the evaluation set has no queries; give one with captions")
    counted = ranks.cpu().numpy()
    recall = {f"R@{k}": 100 * float((counted < k).mean()) for k in (1, 5, 10)}
    return recall | {"MdR": float(np.median(counted)) + 1, "MnR": float(counted.mean()) + 1}


def recall_interval(
    ranks: Int[Tensor, " query"], groups: Int[Tensor, " query"], k: int, seed: int
) -> tuple[float, float]:
    """Return the ends of the 95 % percentile bootstrap interval of R@k, in percent.

    Whole groups (videos) are drawn with replacement, all captions of a video together; the gallery stays as it is. At
    0 and at 100 the interval has no width, because every draw has the same recall.
    """
    return _interval(_of_query(ranks, f"R@{k}"), groups, seed)


def paired_bootstrap(
    ranks_a: Int[Tensor, " query"],
    ranks_b: Int[Tensor, " query"],
    groups: Int[Tensor, " query"],
    seed: int,
    metric: str = "R@1",
    runs: Int[Tensor, " query"] | None = None,
) -> tuple[float, float, float]:
    """Return the metric (R@k in percentage points, or MnR) of a minus that of b, and the ends of its 95 % interval.

    Whole groups (videos) are drawn with replacement, not captions: the captions of one video are not independent. With
    `runs` (trainings of both models, each of another seed) these are drawn with replacement too, and every run drawn
    answers the queries of the same videos.
    """
    assert len(ranks_a) == len(ranks_b) == len(groups), "the two models must have answered the same queries"
    gain = _of_query(ranks_a, metric) - _of_query(ranks_b, metric)
    return float(gain.mean()), *_interval(gain, groups, seed, runs)


def mean_interval(values: Float[Tensor, " query"], groups: Int[Tensor, " query"], seed: int) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the mean of any value of queries, drawn as for `recall_interval`."""
    return _interval(values, groups, seed)


def _of_query(ranks: Int[Tensor, " query"], metric: str) -> Float[Tensor, " query"]:
    """Return the values of which R@k or MnR is the mean."""
    return ranks.double() + 1 if metric == "MnR" else 100 * (ranks < int(metric.removeprefix("R@"))).double()


def _interval(
    values: Float[Tensor, " query"],
    groups: Int[Tensor, " query"],
    seed: int,
    runs: Int[Tensor, " query"] | None = None,
) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of the mean value, over draws of groups, and of runs, with replacement."""
    names, group = np.unique(groups.cpu().numpy(), return_inverse=True)
    trained, run = np.unique(np.zeros(len(group)) if runs is None else runs.cpu().numpy(), return_inverse=True)
    shape = len(names), len(trained)
    cell = group * shape[1] + run
    sums = np.bincount(cell, weights=values.cpu().numpy(), minlength=shape[0] * shape[1]).reshape(shape)
    sizes = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    by_group, by_run = _draws(seed, shape)
    total, number = (((by_group @ table) * by_run).sum(1) for table in (sums, sizes))
    low, high = np.percentile(total / number, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=1)
def _draws(seed: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each group, and each run, is drawn in every draw; the same for all metrics of one test.

    These counts follow a multinomial, which avoids an index array of draws x groups.
    """
    rng = np.random.default_rng(seed)
    by_group, by_run = (rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) for count in shape)
    return by_group, by_run


def _check_finite(similarity: Float[Tensor, "text video"]) -> None:
    bad = ~similarity.isfinite()
    if bad.any():
        text, video = bad.nonzero()[0].tolist()
        raise not_finite(text, video, similarity[text, video].item(), int(bad.sum()))


def not_finite(text: int, video: int, value: float, number: int) -> ExpectedError:
    """Return the error for scores that are not finite numbers: the first of them, and how many there are."""
    return ExpectedError(
        f"similarity of text {text} and video {video} is {value}, as are {number - 1} others, expected finite numbers; "
        f"the model or its features are damaged: make them again"
    )
