"""Retrieval metrics: ranks from a similarity matrix, the usual summary of ranks, and bootstraps over videos.

Similarity [text, video] and the video of every text go in. Ranks are 0-based here and 1-based in summaries. A tie
counts against the model: a wrong video that scores the same as the right one ranks before it, so a model that gives
every pair the same score finds nothing (counting every tied position would reward it). A score that is not finite is
an error, never a query dropped from the denominator.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from distill.errors import ExpectedError


def ranks_t2v(similarity: Float[Tensor, "text video"], video_of_text: Int[Tensor, " text"]) -> Int64[Tensor, " text"]:
    """For every text, how many other videos score at least as high as its own.

    Rows are independent: the ranks of chunks of texts, concatenated, are the ranks of all.
    """
    _check_finite(similarity)
    own = similarity.gather(1, video_of_text.long().unsqueeze(1))
    return (similarity >= own).sum(1) - 1


def ranks_v2t(
    similarity: Float[Tensor, "text video"], video_of_text: Int[Tensor, " text"]
) -> Int64[Tensor, " captioned"]:
    """For every video that has captions, in ascending order: how many other videos' captions beat or equal its own.

    The captions of one video count as one group that scores by its best member (the protocol of MSVD and VATEX).
    Columns are independent given all texts.
    """
    _check_finite(similarity)
    captioned, group = video_of_text.long().unique(return_inverse=True)
    columns = similarity[:, captioned]
    best = columns.new_full((len(captioned), len(captioned)), -torch.inf)
    best.scatter_reduce_(0, group.unsqueeze(1).expand_as(columns), columns, "amax")  # group video
    return (best >= best.diagonal()).sum(0) - 1


def summarise(ranks: Int[Tensor, " query"]) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median rank and mean rank (1-based).

    The median of an even count is the mean of the two middle ranks, as NumPy has it. CLIP4Clip and its descendants take
    that too where each video has one caption, but the lower of the two in T2V where it has several.
    """
    if not len(ranks):
        raise ExpectedError("no ranks to summarise: the evaluation set has no queries")
    found = ranks.cpu().numpy()
    recall = {f"R@{k}": 100 * float((found < k).mean()) for k in (1, 5, 10)}
    return recall | {"MdR": float(np.median(found)) + 1, "MnR": float(found.mean()) + 1}


def recall_interval(
    ranks: Int[Tensor, " query"], groups: Int[Tensor, " query"], k: int, seed: int, draws: int = 2000
) -> tuple[float, float]:
    """The ends of the 95 % percentile interval of R@k, in percent, when the queries are drawn again from their like.

    Whole groups (videos) are drawn with replacement, all captions of a video together; the gallery stays as it is. At
    0 and at 100 the interval has no width: no draw can show what no query did.
    """
    return _interval((ranks < k).double(), groups, seed, draws)


def paired_bootstrap(
    ranks_a: Int[Tensor, " query"],
    ranks_b: Int[Tensor, " query"],
    groups: Int[Tensor, " query"],
    seed: int,
    draws: int = 2000,
) -> tuple[float, float, float]:
    """R@1 of a minus R@1 of b in percentage points, and the ends of its 95 % interval.

    Whole groups (videos) are drawn with replacement, not captions: the captions of one video are not independent.
    """
    assert len(ranks_a) == len(ranks_b) == len(groups), "the two models must have answered the same queries"
    gain = (ranks_a == 0).double() - (ranks_b == 0).double()
    return 100 * float(gain.mean()), *_interval(gain, groups, seed, draws)


def _interval(
    values: Float[Tensor, " query"], groups: Int[Tensor, " query"], seed: int, draws: int
) -> tuple[float, float]:
    """2.5th and 97.5th percentile of 100 x the mean over the queries of as many groups, drawn with replacement."""
    _, group = np.unique(groups.cpu().numpy(), return_inverse=True)
    sums, sizes = np.bincount(group, weights=values.cpu().numpy()), np.bincount(group)
    rng = np.random.default_rng(seed)
    picked = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)  # draw group
    low, high = np.percentile(100 * (picked @ sums) / (picked @ sizes), [2.5, 97.5])
    return float(low), float(high)


def _check_finite(similarity: Float[Tensor, "text video"]) -> None:
    bad = ~similarity.isfinite()
    if bad.any():
        text, video = bad.nonzero()[0].tolist()
        raise ExpectedError(
            f"similarity of text {text} and video {video} is {similarity[text, video].item()}, "
            f"as are {int(bad.sum()) - 1} others; the model or its features are damaged, no ranks are reported"
        )
