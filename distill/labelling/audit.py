"""Statistics of a label set, and a comparison of two sets of the same frames.

Entropy is that of the relevance softmaxed over a video's real frames at temperature 1. Relative to the uniform
distribution's, 1 means that the labels do not tell the frames apart at that temperature. Correlations are Pearson's,
over real frames; a row whose values are all equal (one frame, a still picture) has none and is left out.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.catalogue import scoring_head
from distill.data.labels import TAIL, StoredLabels, tier_of
from distill.errors import ArtefactError
from distill.labelling.softness import coarse_tier, entropy, measured
from distill.log import progress
from distill.model.contract import teacher_logits

BINS = 10  # of the histogram of relative entropies
BATCHES, PAIRS = 8, 64  # random batches that both sets score, and pairs in each


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest value of a count per video."""

    least: int
    mean: float
    most: int


@dataclass(frozen=True)
class Statistics:
    """Size, coverage and entropy of one label set; a row is a caption."""

    videos: int
    rows: int
    frames: Spread
    captions: Spread
    short: int  # videos with fewer frames than the sampler takes: the rest is padding
    entropy: float | None  # nats, mean over rows; None without captions
    relative_entropy: float | None  # over that of the uniform distribution, mean over rows
    histogram: list[int]  # rows by relative entropy, in `BINS` equal steps from 0 to 1
    bytes: dict[str, int]  # by tier
    softness: dict[str, dict[str, float | None] | None]  # `LabelSoftness` as sealed, or measured now


@dataclass(frozen=True)
class Agreement:
    """How far two label sets agree on the same rows."""

    rows: int
    correlation: float | None  # mean over rows
    same_best: float  # share of rows whose best frame (in logits: best video) is the same


@dataclass(frozen=True)
class Comparison:
    """Differences of two sets' relevance, row by row."""

    rows: int
    largest: float
    mean: float
    worst_video: str  # where the largest difference is
    worst_caption: str
    coarse: Agreement | None  # on the logits of random batches, if both sets can rebuild them


def check_rows(stored: StoredLabels) -> int:
    """Check that every caption has a finite row of relevance with a value per frame; returns how many rows there are.

    Raises `ArtefactError` for the first sample where it is not so, and if the manifest counts other rows.
    """
    if stored.config.sampler is None:
        return _check_texts(stored)
    rows, width = 0, stored.config.sampler.num_frames
    for key in progress(stored.keys, f"check {stored.path} (videos)"):
        captions = stored.about(key)["captions"]
        if not captions:
            continue
        if "relevance" not in stored.tiers:
            _check_features(stored, key)
            rows += len(captions)
            continue
        relevance = stored.tensor(key, "relevance")
        if list(relevance.shape) != [len(captions), width] or not relevance.isfinite().all():
            raise ArtefactError(
                f"{stored.path}: relevance of sample {key} is {list(relevance.shape)}, expected "
                f"{[len(captions), width]} finite numbers; label again"
            )
        rows += len(captions)
    if rows != stored.manifest.counts["captions"]:
        counted = stored.manifest.counts["captions"]
        raise ArtefactError(f"{stored.path}: {rows} rows of labels, but the manifest counts {counted}; label again")
    return rows


def _check_texts(stored: StoredLabels) -> int:
    """Check that every caption of a set without videos has finite features."""
    rows = 0
    for key in progress(stored.keys, f"check {stored.path} (thousands of captions)"):
        _check_features(stored, key)
        rows += len(stored.tensor(key, "sentence"))
    return rows


def _check_features(stored: StoredLabels, key: str) -> None:
    """Check that all that is stored of a sample is finite, but for the empty tail of a shortlist."""
    for name in stored.header(key):
        if name != TAIL and not stored.tensor(key, name).isfinite().all():
            raise ArtefactError(f"{stored.path}: {name} of sample {key} is not finite; label again")


def _frames(stored: StoredLabels) -> int:
    """Return how many frames a video has; raise `ArtefactError` for captions without videos."""
    if stored.config.sampler is None:
        raise ArtefactError(f"{stored.path}: labels of captions without videos; only `verify` reads such a set")
    return stored.config.sampler.num_frames


def statistics(stored: StoredLabels) -> Statistics:
    """Read every row once and sum up. Raises `ArtefactError` for captions without videos, which have no relevance."""
    most = _frames(stored)
    entropies, relative, frames, captions = [], [], [], []
    sizes: dict[str, int] = dict.fromkeys(stored.tiers, 0)
    for key in progress(stored.keys, f"read {stored.path} (descriptions)"):
        about = stored.about(key)
        frames.append(len(about["timestamps"]))
        captions.append(len(about["captions"]))
        for name, entry in stored.header(key).items():
            sizes[tier_of(name)] += entry.end - entry.begin
    for _, relevance in _relevance(stored):
        entropies += torch.special.entr(relevance.double().softmax(-1)).sum(-1).tolist()
        if relevance.shape[1] > 1:
            relative += entropy(relevance, 1.0).tolist()
    histogram, _ = np.histogram(np.clip(relative, 0, 1), bins=BINS, range=(0, 1))
    return Statistics(
        videos=len(frames),
        rows=sum(captions),
        frames=_spread(frames),
        captions=_spread(captions),
        short=sum(count < most for count in frames),
        entropy=float(np.mean(entropies)) if entropies else None,
        relative_entropy=float(np.mean(relative)) if relative else None,
        histogram=histogram.tolist(),
        bytes=sizes,
        softness=(stored.config.softness or measured(stored)).model_dump(),
    )


def agreement(one: StoredLabels, other: StoredLabels) -> Agreement:
    """Return how alike two teachers rank the frames of the same rows."""
    return _agreement((first, second) for _, first, second in _pairs(one, other))


def compare(one: StoredLabels, other: StoredLabels, seed: int) -> Comparison:
    """Compare two sets row by row, and on random batches of pairs of different videos."""
    largest, total, numbers, rows, worst = -1.0, 0.0, 0, 0, ("", 0)
    for key, first, second in _pairs(one, other):
        off = (first - second).abs()
        by_row = off.amax(-1)
        if by_row.max() > largest:
            largest, worst = by_row.max().item(), (key, int(by_row.argmax()))
        total, numbers, rows = total + off.double().sum().item(), numbers + off.numel(), rows + len(first)
    if not rows:
        raise ArtefactError(f"{one.path}: its videos have no captions, so there is no relevance to compare")
    about = one.about(worst[0])
    coarse = _agreement(_logits(one, other, seed)) if coarse_tier(one) and coarse_tier(other) else None
    return Comparison(rows, largest, total / numbers, about["video"], about["captions"][worst[1]]["id"], coarse)


def _agreement(pairs: Iterable[tuple[Tensor, Tensor]]) -> Agreement:
    correlations, same, rows = [], 0, 0
    for first, second in pairs:
        correlations += _correlations(first, second)
        same += int((first.argmax(-1) == second.argmax(-1)).sum())
        rows += len(first)
    return Agreement(rows, float(np.mean(correlations)) if correlations else None, same / rows if rows else 0.0)


def _pairs(one: StoredLabels, other: StoredLabels) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield key and both sets' relevance [caption, real frame] of every video; refuse sets of different frames."""
    for stored in (one, other):
        _frames(stored)
        stored.require("relevance", "a comparison of relevance")
    frames, others = (labels.manifest.parents["frames"] for labels in (one, other))
    if frames != others:
        raise ArtefactError(
            f"{other.path}: made from frames {others[:12]}, but {one.path} from {frames[:12]}; only labels of the same "
            f"frame set can be compared"
        )
    for (key, first), (_, second) in zip(_relevance(one), _relevance(other), strict=True):
        yield key, first, second


def _logits(one: StoredLabels, other: StoredLabels, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the text x video logits of random batches, as each set gives them."""
    rng = np.random.default_rng(seed)
    captions = {key: len(one.about(key)["captions"]) for key in one.keys}
    keys = [key for key, count in captions.items() if count]
    first, second = _scorer(one), _scorer(other)
    for _ in range(BATCHES):
        chosen = rng.permutation(len(keys))[:PAIRS]
        places = [(keys[i], int(rng.integers(captions[keys[i]]))) for i in chosen]
        yield first(places), second(places)


def _scorer(stored: StoredLabels) -> Callable[[list[tuple[str, int]]], Tensor]:
    """Return the function from rows (key, caption) to the teacher's logits of their batch."""
    tier, head = coarse_tier(stored), scoring_head(stored)
    assert tier is not None
    return lambda places: teacher_logits(head, stored.rows(places, tier))


def _relevance(stored: StoredLabels) -> Iterator[tuple[str, Tensor]]:
    """Yield key and relevance [caption, real frame] of every video that has captions, if the set holds relevance."""
    if "relevance" not in stored.tiers:
        return
    for key in progress(stored.keys, f"read {stored.path} (videos)"):
        about = stored.about(key)
        if about["captions"]:
            yield key, stored.tensor(key, "relevance")[:, : len(about["timestamps"])]


def _correlations(one: Tensor, other: Tensor) -> list[float]:
    """Return Pearson's correlation of each row of one with the same row of the other, where neither is constant."""
    one, other = (rows.double() - rows.double().mean(-1, keepdim=True) for rows in (one, other))
    scale = one.norm(dim=-1) * other.norm(dim=-1)
    return ((one * other).sum(-1)[scale > 0] / scale[scale > 0]).tolist()


def _spread(counts: list[int]) -> Spread:
    return Spread(min(counts), float(np.mean(counts)), max(counts))
