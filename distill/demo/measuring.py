"""Figures of a release on the demo's frames, whose every second is known to be true of a caption or not.

mass          percent of the frame weights, whatever is asked, on frames that are relevant to a caption
moment        percent of the captions whose best frame, of those of the caption's own video, is relevant to it
moment_part   the same over captions that are about a part of what their video
ms            milliseconds to answer one encoded query
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill.data.frames import FrameSet
from distill.evaluation.evaluate import Encoded, encode
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.second_look import second_look as look_again
from distill.release.release import Release
from distill.retrieval.finding import CANDIDATES

QUERIES = 50  # timed one by one


@torch.inference_mode()
def measured(release: Release, frames: FrameSet, truth: Path, looks: Sequence[bool]) -> list[dict[str, float]]:
    """Return the figures, once for each of `looks`: a second look costs time and changes no weights.

    `truth` is the corpus's `relevance.json`.
    """
    seen = encode(release.model, frames, release.tokenizer, all_features=True)
    relevant, part = _truth(frames, truth, release.num_frames)
    figures = {"mass": _mass(release, seen, relevant), **_moments(release, seen, relevant, part)}
    scores = (_looking(release, seen.video) if look else _scoring(release, seen.video) for look in looks)
    return [{**figures, "ms": _milliseconds(score, seen.text)} for score in scores]


def _truth(frames: FrameSet, truth: Path, num_frames: int) -> tuple[Bool[Tensor, "text frame"], Bool[Tensor, " text"]]:
    """Return whether the second of each frame is one that the caption is true of, and which captions are about a part.

    Padding is never relevant. A caption is about a part if its video shows something in other seconds too.
    """
    known, relevant, part = json.loads(truth.read_text()), [], []
    for about in frames.videos:
        for caption in about.captions:
            seconds = known["captions"][about.id][caption.id]
            relevant.append(_at(seconds, about.timestamps, num_frames))
            part.append(known["content"][about.id] != [second for second, true in enumerate(seconds) if true])
    return torch.tensor(relevant), torch.tensor(part)


def _at(seconds: list[int], timestamps: tuple[float, ...], num_frames: int) -> list[bool]:
    values = [bool(seconds[min(int(at), len(seconds) - 1)]) for at in timestamps]
    return values + [False] * (num_frames - len(values))


def _mass(release: Release, seen: Encoded, relevant: Bool[Tensor, "text frame"]) -> float:
    """Return the mean over captions; a model that averages frames weighs all alike."""
    if seen.video.relevance is None or release.pool_temperature is None:
        return 100 * float(relevant.double().mean())
    weights = (seen.video.relevance.float() / release.pool_temperature).softmax(-1)
    return 100 * float((weights[seen.video_of_text] * relevant).sum(1).double().mean())


def _moments(
    release: Release, seen: Encoded, relevant: Bool[Tensor, "text frame"], part: Bool[Tensor, " text"]
) -> dict[str, float]:
    """Return how often the frame that answers a caption best is relevant to it."""
    own = seen.video[seen.video_of_text]
    assert own.real is not None, "videos come with what is padding"
    scores = release.model.relevance(seen.text, own).masked_fill(~own.real, -torch.inf)
    right = relevant.gather(1, scores.argmax(1, keepdim=True)).squeeze(1).double()
    return {"moment": 100 * float(right.mean()), "moment_part": 100 * float(right[part].mean())}


def _scoring(release: Release, video: VideoFeatures) -> Callable[[TextFeatures], Float[Tensor, "text video"]]:
    return lambda text: release.model.similarity(text, video)


def _looking(release: Release, video: VideoFeatures) -> Callable[[TextFeatures], Float[Tensor, "text candidate"]]:
    """Return the score of a gallery's search: all vectors, then the frames of the candidates."""
    look, vectors = release.second_look, release.model.index_vectors(video)
    assert look is not None, "the release carries a second look"
    part = look_again(look.temperature, look.t2v)

    def score(text: TextFeatures) -> Float[Tensor, "text candidate"]:
        coarse = release.model.query_vectors(text) @ vectors.T
        return part.score(text, video[coarse.topk(min(CANDIDATES, len(video))).indices[0]])

    return score


def _milliseconds(score: Callable[[TextFeatures], Tensor], text: TextFeatures) -> float:
    """Return the median time to score one query and take the ten best."""
    times = []
    for query in range(-3, min(QUERIES, len(text))):  # the first three warm up
        one = text[slice(max(query, 0), max(query, 0) + 1)]
        start = time.perf_counter()
        found = score(one)
        found.topk(min(10, found.shape[1]))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[3:])
