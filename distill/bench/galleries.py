"""The bench of galleries on disk: exact, approximate and two-stage searches beside a plain matrix product, by size.

Two galleries of each size are written, of drawn features (distill/bench/synthetic.py): one of vectors alone, and one of
an EERCF head with frame tokens, which reranks. `Gallery.search` searches them, with queries that are encoded
beforehand. Searches take turns with the plain product (`queries @ vectors.T` and `topk`, vectors in memory), so other
load on the machine slows all alike.

Exact and approximate searches are compared with the answers of the plain product, two-stage searches with the best full
scores of all videos.
"""

import itertools
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.bench.retrieval import BEST
from distill.bench.rounds import Goal, peak_memory, ratio, take_turns, timed
from distill.bench.written import NAME, Written, write
from distill.evaluation.report import aligned
from distill.retrieval import upkeep
from distill.retrieval.gallery import Gallery
from distill.retrieval.generation import APPROXIMATE as APPROXIMATE_FOLDER
from distill.retrieval.hits import Hit

AT_ONCE = (1, 64)
ROUNDS = {1: 20, 64: 5}
CANDIDATES = (50, 200)  # videos that a second stage ranks
OPENED = 5  # times, of which the median counts
PLAIN, EXACT, APPROXIMATE = "plain product", "exact", "approximate"
SLOWER, OPENING, MEMORY = 1.2, 1.0, 200.0  # goals: times the plain product, seconds, MB


@dataclass(frozen=True, kw_only=True)
class GallerySearch:
    """One way to search one gallery. Milliseconds are those of a query, by how many come at once."""

    search: str
    p50: dict[int, float]
    p95: dict[int, float]
    built: float | None  # seconds for writing and hashing the files, or for making the approximate index
    bytes: int  # a video, of the search alone: vectors, vectors and index, vectors and tokens
    recall: float | None  # of the ten best, from 0 to 1


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The searches of the galleries of one size."""

    videos: int
    opening: float  # seconds
    memory: float | None  # MB beyond mapped files during exact search; None where the system does not tell
    slower: dict[int, float]  # exact search over the plain product, by how many queries come at once
    rows: list[GallerySearch]


@dataclass(frozen=True)
class _Side:
    """One search: `ask` takes the numbers of queries, and `expected` are the videos that it should find."""

    ask: Callable[[list[str]], Any]
    built: float | None
    bytes: int
    expected: Sequence[Sequence[int]] | None


@torch.inference_mode()
def measure_size(folder: Path, videos: int) -> Scale:
    """Draw, write, search and remove the galleries of one size in `folder`."""
    one, two = folder / "one", folder / "two"

    def remove() -> None:
        for gallery in (one, two):
            shutil.rmtree(gallery, ignore_errors=True)

    remove()  # those of a run that was killed
    try:
        return _measure(one, two, videos, write(one, two, videos))
    finally:
        remove()


def _measure(one: Path, two: Path, videos: int, written: Written) -> Scale:
    release, names = written.release, [str(number) for number in range(len(written.release.text))]
    opening = statistics.median(timed(lambda: Gallery.open(one, release)) for _ in range(OPENED))
    with peak_memory() as used:
        exact = Gallery.open(one, release)
        for number in AT_ONCE:
            exact.search(names[:number], BEST)
    sides = _sides(one, two, videos, written, exact, names)
    took = {number: _turns(sides, names, number) for number in AT_ONCE}
    rows = [
        GallerySearch(
            search=name,
            p50={number: float(np.percentile(took[number][name], 50)) for number in AT_ONCE},
            p95={number: float(np.percentile(took[number][name], 95)) for number in AT_ONCE},
            built=side.built,
            bytes=side.bytes,
            recall=None if side.expected is None else _shared(side.ask(names), side.expected),
        )
        for name, side in sides.items()
    ]
    slower = {number: ratio(took[number][EXACT], took[number][PLAIN]) for number in AT_ONCE}
    return Scale(videos=videos, opening=opening, memory=used[0] if used else None, slower=slower, rows=rows)


def _sides(one: Path, two: Path, videos: int, written: Written, exact: Gallery, names: list[str]) -> dict[str, _Side]:
    """Return all searches by name; make the approximate indexes on the way."""
    indexing = timed(lambda: upkeep.approximate(one))
    approximate, reranking = Gallery.open(one, written.release), Gallery.open(two, written.release)
    index = next(file for name, file in approximate.manifest.files.items() if name.startswith(APPROXIMATE_FOLDER))
    upkeep.approximate(two)
    by_index = reranking.refreshed()
    queries, vectors = written.release.model.query_vectors(written.release.text), written.vectors

    def plain(asked: list[str]) -> Any:
        return (queries[torch.tensor(list(map(int, asked)))] @ vectors.T).topk(min(BEST, videos))

    (seconds, seconds_two), (size, size_two), index_size = written.seconds, written.bytes, index.bytes // videos
    nearest, full = plain(names).indices.tolist(), written.full.tolist()
    sides = {
        PLAIN: _Side(plain, None, size, None),
        EXACT: _Side(lambda asked: exact.search(asked, BEST), seconds, size, nearest),
        APPROXIMATE: _Side(lambda asked: approximate.search(asked, BEST), indexing, size + index_size, nearest),
    }
    for count in (count for count in CANDIDATES if count < videos):
        exactly, estimated = (partial(gallery.search, k=BEST, candidates=count) for gallery in (reranking, by_index))
        name = f"two stages, {count:,} ranked"
        sides[name] = _Side(exactly, seconds_two, size_two, full)
        sides[f"{name}, by index"] = _Side(estimated, indexing, size_two + index_size, full)
    return sides


def _turns(sides: dict[str, _Side], names: Sequence[str], at_once: int) -> dict[str, list[float]]:
    """Return the milliseconds of a query in every search, by round; in a round all ask the same queries."""

    def turn(ask: Callable[[list[str]], Any]) -> Callable[[], float]:
        asked = itertools.cycle(names)
        return lambda: 1000 * timed(lambda: ask(list(itertools.islice(asked, at_once)))) / at_once

    return take_turns(
        {name: turn(side.ask) for name, side in sides.items()}, ROUNDS[at_once], f"time, {at_once} at once (rounds)"
    )


def _shared(answers: Sequence[Sequence[Hit]], expected: Sequence[Sequence[int]]) -> float:
    """Return the part of the expected videos that the answers hold, from 0 to 1."""
    videos = [{int(hit.video.removeprefix(NAME)) for hit in answer} for answer in answers]
    return sum(len(a & {*b}) for a, b in zip(videos, expected, strict=True)) / sum(map(len, expected))


def goals(scale: Scale) -> list[Goal]:
    """Return the goals of exact search, which the largest gallery must reach."""
    why = "an answer also reads the records of its videos, which counts where vectors are few"
    what = "exact search over the plain product"
    goals = [Goal(f"{what}, {number} at once", times, SLOWER, why=why) for number, times in scale.slower.items()]
    goals.append(Goal("seconds to open", scale.opening, OPENING, why="every segment is opened separately"))
    if scale.memory is not None:
        why = "the scores of a chunk of videos for all queries are held at once"
        goals.append(Goal("MB beyond mapped files", scale.memory, MEMORY, why=why))
    return goals


def table(scale: Scale) -> str:
    """Return the searches of one size as a table."""
    head = ("", *(f"{what} ms ({n} at once)" for n in AT_ONCE for what in ("p50", "p95")), "built in", "bytes/video")
    lines: list[tuple[str, ...]] = [(*head, "top 10")]
    for row in scale.rows:
        times = [f"{value[n]:,.2f}" for n in AT_ONCE for value in (row.p50, row.p95)]
        built = "" if row.built is None else f"{row.built:,.1f} s"
        shared = "" if row.recall is None else f"{100 * row.recall:.1f} %"
        lines.append((row.search, *times, built, f"{row.bytes:,}", shared))
    title = f"gallery of {scale.videos:,} videos on disk"
    return "\n".join([title, "", aligned(lines)])
