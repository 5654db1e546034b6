"""What a label set says, whether the teacher still says so, and how another set differs.

Entropies are those of the relevance softmaxed over a video's real frames at temperature 1: 1 relative to uniform means
labels that tell nothing apart at that temperature. Correlations are Pearson's, over real frames; a row without spread
(one frame, a still picture) has none and is left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.catalogue import build_interaction
from distill.data.labels import PER_VIDEO, SHORTLIST, Coarse, StoredLabels, tier_of
from distill.data.loader import VideoDataset
from distill.errors import ArtefactError
from distill.labelling.job import Teaching
from distill.log import progress
from distill.model.contract import teacher_logits
from distill.model.features import VideoFeatures

BINS = 10  # of the histogram of relative entropies
BATCHES, PAIRS = 8, 64  # random batches that are scored by both sets, and pairs in each
# How far a recomputed row may be off, over the largest value of its kind: other processors and batches round otherwise.
COMPUTED = {"fp32": 1e-3, "bf16": 5e-2}
STORED = {"float32": 0.0, "float16": 2**-10, "bfloat16": 2**-7}


@dataclass(frozen=True)
class Difference:
    """Of one stored tensor over the sampled rows: the largest deviation, and the largest value beside it."""

    largest: float
    scale: float


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest of a count per video."""

    least: int
    mean: float
    most: int


@dataclass(frozen=True)
class Statistics:
    """Of one set. `histogram` counts rows by relative entropy in equal steps from 0 to 1."""

    videos: int
    rows: int
    frames: Spread
    captions: Spread
    short: int  # videos with fewer frames than the others: the rest is padding
    entropy: float  # nats, mean over rows
    relative_entropy: float  # over that of the uniform distribution, mean over rows
    histogram: list[int]
    bytes: dict[str, int]  # by tier


@dataclass(frozen=True)
class Agreement:
    """Of two sets over the same rows."""

    rows: int
    correlation: float | None  # mean over rows
    same_best: float  # share of rows whose best frame (of logits: video) is the same


@dataclass(frozen=True)
class Comparison:
    """Two sets row by row; `coarse` is there where both can rebuild the logits of a batch."""

    rows: int
    largest: float
    mean: float
    worst_video: str
    worst_caption: str
    coarse: Agreement | None


def check_rows(stored: StoredLabels) -> int:
    """Every sample has a finite row of relevance per caption, as long as the sampler says; returns how many."""
    rows, width = 0, stored.manifest.config["sampler"]["num_frames"]
    for key in progress(stored.keys, f"check {stored.path} (videos)"):
        captions, relevance = stored.about(key)["captions"], stored.tensor(key, "relevance")
        if list(relevance.shape) != [len(captions), width] or not relevance.isfinite().all():
            raise ArtefactError(
                f"{stored.path}: relevance of sample {key} is {list(relevance.shape)}, expected "
                f"{[len(captions), width]} finite numbers; make the set again"
            )
        rows += len(captions)
    if rows != stored.manifest.counts["captions"]:
        raise ArtefactError(f"{stored.path}: {rows} rows, the manifest says {stored.manifest.counts['captions']}")
    return rows


@torch.inference_mode()
def recompute(stored: StoredLabels, job: Teaching, rows: int, seed: int) -> dict[str, Difference]:
    """Lets the teacher say a random sample of rows again; how far each stored tensor is off.

    Raises `ArtefactError` where that is more than rounding explains. Of shortlists the matched video and the best other
    one are scored.
    """
    videos = job.frames.videos
    pairs = [(video, caption) for video in range(len(videos)) for caption in range(len(videos[video].captions))]
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:rows]
    found: dict[str, list[tuple[float, float]]] = {}
    for video, caption in progress([pairs[i] for i in sorted(chosen)], "recompute (rows)"):
        features = _encode(job, video)
        text = job.encode_texts([videos[video].captions[caption].text])
        said = job.rows(text, features, job.order(video))
        said = {name: value if name in PER_VIDEO else value[0] for name, value in said.items()}
        kept = {name: stored.tensor(videos[video].key, name, None if name in PER_VIDEO else caption) for name in said}
        if "topk" in stored.tiers:
            listed, scores, best, _ = (stored.tensor(videos[video].key, name, caption) for name in SHORTLIST)
            both = VideoFeatures.cat([features, *(_encode(job, int(other)) for other in listed[1:2])])
            said[SHORTLIST[1]] = job.interaction(text.to(job.device), both.to(job.device))[0].cpu()
            kept[SHORTLIST[1]] = best + scores[: len(both)].float()
        for name, value in said.items():
            off = (kept[name].float() - value.float()).abs().max().item()
            found.setdefault(name, []).append((off, value.float().abs().max().item()))
    differences = {
        name: Difference(max(off for off, _ in all_of), max(scale for _, scale in all_of))
        for name, all_of in found.items()
    }
    config = stored.manifest.config
    allowed = COMPUTED[config["precision"]] + STORED[config["storage"]]
    for name, difference in differences.items():
        if not difference.largest <= allowed * difference.scale:
            raise ArtefactError(
                f"{stored.path}: {name} is {difference.largest:.2g} off what the teacher says (largest value "
                f"{difference.scale:.2g}), more than rounding explains; it is not this teacher's: label again"
            )
    return differences


def _encode(job: Teaching, video: int) -> VideoFeatures:
    pixels, real = VideoDataset(job.frames, job.frames.num_frames).__getitems__([video])
    return job.encode_videos(pixels, real, [video])


def statistics(stored: StoredLabels) -> Statistics:
    """Reads every row once."""
    entropies, relative, frames, captions = [], [], [], []
    sizes: dict[str, int] = dict.fromkeys(stored.tiers, 0)
    for key, relevance in _relevance(stored):
        count = relevance.shape[1]
        frames.append(count)
        captions.append(len(relevance))
        entropy = torch.special.entr(relevance.double().softmax(-1)).sum(-1)
        entropies += entropy.tolist()
        if count > 1:
            relative += (entropy / math.log(count)).tolist()
        for name in stored.names(key):
            sizes[tier_of(name)] += stored.nbytes(key, name)
    histogram, _ = np.histogram(np.clip(relative, 0, 1), bins=BINS, range=(0, 1))
    return Statistics(
        videos=len(frames),
        rows=len(entropies),
        frames=_spread(frames),
        captions=_spread(captions),
        short=sum(count < stored.manifest.config["sampler"]["num_frames"] for count in frames),
        entropy=float(np.mean(entropies)),
        relative_entropy=float(np.mean(relative)) if relative else 0.0,
        histogram=histogram.tolist(),
        bytes=sizes,
    )


def agreement(one: StoredLabels, other: StoredLabels) -> Agreement:
    """How alike two teachers rank the frames of the same rows."""
    check_same_frames(one, other)
    correlations, same, rows = [], 0, 0
    for (_, first), (_, second) in zip(_relevance(one), _relevance(other), strict=True):
        correlations += _correlations(first, second)
        same += int((first.argmax(-1) == second.argmax(-1)).sum())
        rows += len(first)
    return Agreement(rows, float(np.mean(correlations)) if correlations else None, same / rows)


def compare(one: StoredLabels, other: StoredLabels, seed: int) -> Comparison:
    """Row by row, and on random batches of pairs of different videos."""
    check_same_frames(one, other)
    largest, total, numbers, rows, worst = -1.0, 0.0, 0, 0, ("", 0)
    for (key, first), (_, second) in zip(_relevance(one), _relevance(other), strict=True):
        off = (first - second).abs()
        by_row = off.amax(-1)
        if by_row.max() > largest:
            largest, worst = by_row.max().item(), (key, int(by_row.argmax()))
        total, numbers, rows = total + off.double().sum().item(), numbers + off.numel(), rows + len(first)
    about = one.about(worst[0])
    tiers = _coarse(one), _coarse(other)
    coarse = None if None in tiers else _batches(one, other, seed)
    caption = about["captions"][worst[1]]["id"]
    return Comparison(rows, largest, total / numbers, about["video"], caption, coarse)


def check_same_frames(one: StoredLabels, other: StoredLabels) -> None:
    """Refuses to compare rows that are not the same."""
    first, second = (labels.manifest.parents["frames"] for labels in (one, other))
    if first != second:
        raise ArtefactError(
            f"{other.path}: made from frames {second[:12]}, {one.path} from {first[:12]}; only labels of the same "
            f"frame set have the same rows"
        )


def _batches(one: StoredLabels, other: StoredLabels, seed: int) -> Agreement:
    """The text x video logits of random batches, as each set gives them; a row is a caption."""
    rng = np.random.default_rng(seed)
    captions = {key: len(one.about(key)["captions"]) for key in one.keys}
    keys = [key for key, count in captions.items() if count]
    correlations, same, rows = [], 0, 0
    for _ in range(BATCHES):
        chosen = rng.permutation(len(keys))[:PAIRS]
        places = [(keys[i], int(rng.integers(captions[keys[i]]))) for i in chosen]
        first, second = _logits(one, places), _logits(other, places)
        correlations += _correlations(first, second)
        same += int((first.argmax(-1) == second.argmax(-1)).sum())
        rows += len(first)
    return Agreement(rows, float(np.mean(correlations)) if correlations else None, same / rows)


def _logits(stored: StoredLabels, places: list[tuple[str, int]]) -> Tensor:
    tier = _coarse(stored)
    assert tier is not None
    head = build_interaction(
        **stored.manifest.config["interaction"], weights=stored.interaction_weights(), where=str(stored.path)
    )
    return teacher_logits(head, stored.rows(places, tier))


def _coarse(stored: StoredLabels) -> Coarse | None:
    if "features" in stored.tiers:
        return "features"
    return "topk" if "topk" in stored.tiers else None


def _relevance(stored: StoredLabels) -> Iterator[tuple[str, Tensor]]:
    """Key and relevance [caption, real frame] of every video that has captions and frames."""
    for key in progress(stored.keys, f"read {stored.path} (videos)"):
        relevance = stored.tensor(key, "relevance")[:, : len(stored.about(key)["timestamps"])]
        if relevance.numel():
            yield key, relevance


def _correlations(one: Tensor, other: Tensor) -> list[float]:
    """Pearson's correlation of each row with its like, where both have spread."""
    one, other = (rows.double() - rows.double().mean(-1, keepdim=True) for rows in (one, other))
    scale = one.norm(dim=-1) * other.norm(dim=-1)
    return ((one * other).sum(-1)[scale > 0] / scale[scale > 0]).tolist()


def _spread(counts: list[int]) -> Spread:
    return Spread(min(counts), float(np.mean(counts)), max(counts))
