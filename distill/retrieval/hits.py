"""Hits: a video that answers, how well it matches, and when.

Where a gallery stores frames (or tokens, in two stages), the frames of a hit are weighed by the query, as the release
does it. Otherwise, and where a video asks, by what weighs most in the video.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64

from distill.retrieval.columns import damaged
from distill.retrieval.moment import best_moment
from distill.retrieval.segment import file_of
from distill.retrieval.table import Table
from distill.retrieval.vectors import Answer

# The weights of the frames of some rows by a query, which is given by its number; None where nothing tells them.
Weigh = Callable[[int, Int64[np.ndarray, " k"]], Float32[np.ndarray, "k frame"] | None]
SPANS = 4  # rows asked for in place of a file, and again as many if these are of too few files
OTHERS = 4  # further spans of a file under one hit, at most


@dataclass(frozen=True)
class Hit:
    """One answer: a video, how well it matches, and when. Seconds are those of the file."""

    video: str  # id
    source: str  # the file, inside the video folder where the gallery knows it
    score: float  # the model's
    seconds: tuple[float, float]  # the moment with the highest frame weights
    duration: float  # of the file
    timestamps: tuple[float, ...]  # of the frames that the model saw
    weights: tuple[float, ...]  # of these frames; padding, if the model pools it too, has the rest of 1
    span: tuple[float, float] | None  # seconds of the file that this row stands for; None: the whole file
    weighed_by: Literal["query", "video"]  # whether weights say what answers the query, or what weighs most in it
    fits: bool | None = None  # whether anything here fits the query as well as known queries fit; None: not known
    others: tuple["Hit", ...] = ()  # further spans of its file that match, best first, where hits are grouped by file


@dataclass(frozen=True)
class CaptionHit:
    """One answer of `search_captions`: a stored caption, the video that it was said of, and how well it matches."""

    caption: str  # id
    text: str
    video: str  # id
    score: float


def hits_of(
    table: Table, weigh: Weigh, scores: Float32[np.ndarray, "query k"], rows: Int64[np.ndarray, "query k"]
) -> list[list[Hit]]:
    """Return the hits of rows that were found for some queries."""
    if not rows.shape[1]:
        return [[] for _ in range(len(rows))]
    answers = []
    for query in range(len(rows)):
        found = rows[query]
        answering = weigh(query, found)
        weights = table.frame_weights(found) if answering is None else answering
        by: Literal["query", "video"] = "video" if answering is None else "query"
        triples = zip(found.tolist(), scores[query].tolist(), weights.tolist(), strict=True)
        answers.append([_hit(table, row, score, own, by) for row, score, own in triples])
    return answers


def enough_files(table: Table, find: Callable[[int], Answer], k: int) -> tuple[Answer, list[list[str]]]:
    """Return rows of at least `k` files for every query, or all there are, as `find` does, and the file of each row."""
    asked = SPANS * k
    while True:
        answer = find(asked)
        files = [[file_of(table.about(row)) for row in rows] for rows in answer[1].tolist()]
        if answer[1].shape[1] < asked or asked >= len(table) or all(len(set(found)) >= k for found in files):
            return answer, files
        asked *= SPANS


def grouped(hits: Iterable[tuple[str, Hit]], k: int) -> list[Hit]:
    """Return the best `k` files of hits (each after its file), best first, each with its other spans."""
    files: dict[str, list[Hit]] = {}
    for file, hit in hits:
        if file in files or len(files) < k:
            files.setdefault(file, []).append(hit)
    return [replace(first, others=tuple(others[:OTHERS])) for first, *others in files.values()]


def fitted(answers: Sequence[Sequence[Hit]], fits: Sequence[bool | None]) -> list[list[Hit]]:
    """Return the hits of some queries with what is known of how anything fits each of them."""
    return [
        [replace(hit, fits=fit, others=tuple(replace(other, fits=fit) for other in hit.others)) for hit in hits]
        for hits, fit in zip(answers, fits, strict=True)
    ]


def _hit(table: Table, row: int, score: float, weights: Sequence[float], by: Literal["query", "video"]) -> Hit:
    part, _ = table.place(row)
    about = table.about(row)
    if not 0 < len(about["timestamps"]) <= len(weights) or not all(math.isfinite(weight) for weight in weights):
        raise damaged(part.folder, f"frame weights of {about['id']!r} are missing or not finite")
    timestamps, duration, span = about["timestamps"], about["duration"], about.get("span")
    folder = table.folder(about)
    begin, end = span or (0.0, duration)
    return Hit(
        video=about["id"],
        source=about["source"] if folder is None else str(folder / about["source"]),
        score=score,
        seconds=best_moment(weights, timestamps, end, begin),
        duration=duration,
        timestamps=tuple(timestamps),
        weights=tuple(weights[: len(timestamps)]),
        span=None if span is None else (begin, end),
        weighed_by=by,
    )
