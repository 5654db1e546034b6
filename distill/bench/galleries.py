"""What it costs to search a gallery as it grows: exactly, approximately and in two stages, beside a plain product.

Two real galleries of each size are written, of features that nobody filmed (distill/bench/synthetic.py): one of vectors
alone, and one of an EERCF head with frame tokens, which reranks. They are searched by `Gallery.search`, whose queries
are encoded beforehand: the release is a stand-in that knows them by number. Searches take turns with the plain product
(`queries @ vectors.T` and `topk`, vectors in memory), so a busy machine slows all alike.

Exact search is compared with nothing: it is what a plain product finds. Approximate search is compared with it, and two
stages with the full score of every video.
"""

import itertools
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.bench.contenders import TEMPORAL, built
from distill.bench.rounds import Goal, ratio, take_turns, timed
from distill.bench.synthetic import Sizes, Synthetic, World
from distill.errors import ExpectedError
from distill.evaluation.report import aligned
from distill.log import progress
from distill.manifest import Manifest
from distill.model.contract import RetrievalModel
from distill.model.features import TextFeatures, VideoFeatures
from distill.retrieval import generation, upkeep
from distill.retrieval.gallery import Gallery, Hit
from distill.retrieval.generation import APPROXIMATE as APPROXIMATE_FOLDER
from distill.retrieval.generation import SEGMENTS, VERSION
from distill.retrieval.segment import TOKENS, sealed_segment, write_segment
from distill.retrieval.stored import Tokens, TokenWriter, row_bytes, stored
from distill.retrieval.vectors import best

QUERIES = 128  # of as many videos
AT_ONCE = (1, 64)
ROUNDS = {1: 20, 64: 5}
BEST = 10
CANDIDATES = (50, 200)  # videos that are ranked in full
DRAWN = 4096  # videos drawn at once
OPENED = 5  # times, of which the median counts
PLAIN, EXACT, APPROXIMATE, TWO, BY_INDEX = "plain product", "exact", "approximate", "two stages", ", by index"
SECONDS = 12.0  # of each video
NAME = "video"  # before its number
SEGMENT = f"{SEGMENTS}/00001"
LOOK = 0.001  # seconds between two looks at the memory
MEGA = 1e6
SLOWER, OPENING, MEMORY = 1.2, 1.0, 200.0  # goals: times the plain product, seconds, MB


@dataclass(kw_only=True)
class Release:
    """Encodes by number what was drawn before; otherwise as a release (distill/retrieval/encoder.py)."""

    path: Path
    manifest: Manifest
    frames_config: dict[str, Any]
    num_frames: int
    model: RetrievalModel
    text: TextFeatures
    searchable: bool = True

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """The features of queries by their numbers."""
        return self.text[torch.tensor([int(text) for text in texts])]

    def encode_frames(self, pixels: Tensor, real: Tensor) -> VideoFeatures:
        """Never: the gallery is drawn."""
        raise NotImplementedError

    def encode_video(self, video: Path) -> VideoFeatures:
        """Never: the gallery is drawn."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GallerySearch:
    """One way to search one gallery. Milliseconds are those of a query, by how many come at once."""

    search: str
    p50: dict[int, float]
    p95: dict[int, float]
    built: float | None  # seconds: files written and hashed, or an approximate index made of them
    bytes: int  # a video, of the search alone: vectors, vectors and index, vectors and tokens
    recall: float | None  # of the ten best, from 0 to 1


@dataclass(frozen=True, kw_only=True)
class Scale:
    """All searches of one size."""

    videos: int
    opening: float  # seconds
    memory: float | None  # MB beyond mapped files, while searching exactly; None where the system does not tell
    slower: dict[int, float]  # exact search over the plain product, by how many queries come at once
    rows: list[GallerySearch]

    def tree(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def check_sizes_fit(folder: Path, sizes: Sequence[int], of: Sizes) -> None:
    """Refuses what the disk does not hold."""
    numbers = 2 * of.dim * (1 + 2 * of.frames)  # float16: a vector, and frames twice
    needed = max(sizes, default=0) * (numbers + 2 * 4 * of.dim + 2 * of.dim)  # float32 vectors twice, and an index
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExpectedError(
            f"{folder}: {free / 1e9:.0f} GB are free, galleries of {max(sizes):,} videos take {needed / 1e9:.0f}; "
            "choose another folder by --folder, or smaller --sizes"
        )


@torch.inference_mode()
def measure_size(folder: Path, videos: int, sizes: Sizes, world: World) -> Scale:
    """Draws, writes, searches and removes the galleries of one size."""
    one, two = folder / "one", folder / "two"
    for old in (one, two):
        shutil.rmtree(old, ignore_errors=True)
    try:
        return _search_size(one, two, videos, _write(one, two, videos, sizes, world))
    finally:
        for old in (one, two):
            shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What both galleries were made of."""

    release: Release
    vectors: Tensor
    full: Tensor  # [query, BEST]: the videos with the highest full scores
    seconds: tuple[float, float]  # that writing and hashing took: without tokens, with tokens
    bytes: tuple[int, int]  # a video


def _write(one: Path, two: Path, videos: int, sizes: Sizes, world: World) -> _Written:
    """Both galleries, and what a search of every full score finds."""
    drawn = Synthetic(sizes, world)
    plots = drawn.plots(videos)
    head = {"kind": "eercf", "frames": sizes.frames, "patches": False, "temporal": TEMPORAL}
    model = built(head, sizes, world.seed)[1]
    release = Release(
        path=one.with_name("release"),
        manifest=Manifest(kind="release", version=1, config={}, counts={}, parents={}, files={}),
        frames_config={},
        num_frames=sizes.frames,
        model=model,
        text=drawn.texts(plots[:QUERIES]),
    )
    parts, answers, writing, row = [], [], 0.0, {}
    (two / SEGMENT).mkdir(parents=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or threads)  # drawing is not timed
    with (two / SEGMENT / TOKENS).open("wb") as file:
        writer = TokenWriter(file, videos)
        for start in progress(range(0, videos, DRAWN), f"draw {videos:,} videos (parts)"):
            video = drawn.videos(plots[start : start + DRAWN])
            parts.append(model.index_vectors(video))
            row = stored(video, model.rerank_fields)
            began = time.perf_counter()
            writer.append(row)
            writing += time.perf_counter() - began
            scores = model.similarity(release.text, Tokens(row)[:]).topk(min(BEST, len(parts[-1])))
            answers.append((scores.values, scores.indices + start))
    torch.set_num_threads(threads)
    vectors = torch.cat(parts)
    del parts
    took = [timed(lambda path=path: _seal(path, vectors, release, tokens=path == two)) for path in (one, two)]
    return _Written(
        release=release,
        vectors=vectors,
        full=best(answers, BEST)[1],
        seconds=(took[0], writing + took[1]),
        bytes=(vectors[0].nbytes, vectors[0].nbytes + row_bytes(row)),
    )


def _seal(path: Path, vectors: Tensor, release: Release, *, tokens: bool) -> None:
    """Writes all but the tokens, and the manifest. Without `tokens` nothing is ranked anew."""
    frames = release.num_frames
    times = [SECONDS * (frame + 0.5) / frames for frame in range(frames)]
    about = [
        {"id": f"{NAME}{row}", "source": f"{NAME}{row}.mp4", "timestamps": times, "duration": SECONDS}
        for row in range(len(vectors))
    ]
    weights = torch.full((len(vectors), frames), 1 / frames)
    write_segment(path / SEGMENT, about, {"vectors": vectors, "frame_weights": weights}, None, None)
    config = {"release": str(release.path), "vectors": "float32", "folders": []}
    manifest = Manifest(
        kind="gallery",
        version=VERSION,
        config=config | ({"tokens": ["vector", *release.model.rerank_fields]} if tokens else {}),
        counts={"videos": len(vectors), "rows": len(vectors), "dim": vectors.shape[1], "generation": 1},
        parents={"release": release.manifest.id},
        files={f"{SEGMENT}/{name}": file for name, file in sealed_segment(path / SEGMENT).items()},
    )
    generation.publish(path, manifest)


def _search_size(one: Path, two: Path, videos: int, written: _Written) -> Scale:
    release, vectors, k = written.release, written.vectors, min(BEST, videos)
    queries = release.model.query_vectors(release.text)
    names = [str(number) for number in range(len(queries))]
    opening = statistics.median(timed(lambda: Gallery.open(one, release)) for _ in range(OPENED))
    with _memory() as used:
        exact = Gallery.open(one, release)
        for number in AT_ONCE:
            exact.search(names[:number], BEST)
    indexing = timed(lambda: upkeep.approximate(one))
    approximate, reranking = Gallery.open(one, release), Gallery.open(two, release)
    index = next(file for name, file in approximate.manifest.files.items() if name.startswith(APPROXIMATE_FOLDER))
    index_bytes = index.bytes // videos
    upkeep.approximate(two)
    two_exact = (reranking, written.seconds[1], written.bytes[1])
    two_by_index = (reranking.refreshed(), indexing, written.bytes[1] + index_bytes)
    sides: dict[str, Callable[[list[str]], Any]] = {
        PLAIN: lambda asked: (queries[torch.tensor(list(map(int, asked)))] @ vectors.T).topk(k),
        EXACT: lambda asked: exact.search(asked, BEST),
        APPROXIMATE: lambda asked: approximate.search(asked, BEST),
    }
    nearest = sides[PLAIN](names).indices.tolist()
    shared: dict[str, float | None] = {name: None for name in sides}
    shared |= {name: _shared(sides[name](names), nearest) for name in (EXACT, APPROXIMATE)}
    costs: dict[str, tuple[float | None, int]] = {
        PLAIN: (None, written.bytes[0]),
        EXACT: (written.seconds[0], written.bytes[0]),
        APPROXIMATE: (indexing, written.bytes[0] + index_bytes),
    }
    for candidates, by_index in itertools.product((some for some in CANDIDATES if some < videos), (False, True)):
        name = f"{TWO}, {candidates:,} ranked{BY_INDEX if by_index else ''}"
        gallery, seconds, size = two_by_index if by_index else two_exact
        sides[name] = lambda asked, gallery=gallery, some=candidates: gallery.search(asked, BEST, some)
        shared[name], costs[name] = _shared(sides[name](names), written.full.tolist()), (seconds, size)
    took = {number: _turns(sides, names, number) for number in AT_ONCE}
    rows = [
        GallerySearch(
            search=name,
            p50={number: _percentile(took[number][name], 50) for number in AT_ONCE},
            p95={number: _percentile(took[number][name], 95) for number in AT_ONCE},
            built=costs[name][0],
            bytes=costs[name][1],
            recall=shared[name],
        )
        for name in sides
    ]
    slower = {number: ratio(took[number][EXACT], took[number][PLAIN]) for number in AT_ONCE}
    return Scale(videos=videos, opening=opening, memory=used[0] if used else None, slower=slower, rows=rows)


def _turns(
    searches: dict[str, Callable[[list[str]], Any]], names: Sequence[str], at_once: int
) -> dict[str, list[float]]:
    """Milliseconds of a query in every search, round by round; all ask the same in a round."""

    def side(search: Callable[[list[str]], Any]) -> Callable[[], float]:
        asked = itertools.cycle(names)
        return lambda: 1000 * timed(lambda: search(list(itertools.islice(asked, at_once)))) / at_once

    sides = {name: side(search) for name, search in searches.items()}
    return take_turns(sides, ROUNDS[at_once], f"time, {at_once} at once (rounds)")


def _percentile(values: Sequence[float], percent: int) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(percent / 100))


def _shared(answers: Sequence[Sequence[Hit]], expected: Sequence[Sequence[int]]) -> float:
    """How much of what is expected is found."""
    found = [{int(hit.video.removeprefix(NAME)) for hit in answer} for answer in answers]
    return sum(len(a & {*b}) for a, b in zip(found, expected, strict=True)) / sum(map(len, expected))


@contextmanager
def _memory() -> Iterator[list[float]]:
    """Into the list, when left: how many MB of its own the process took more than before, at most."""
    used: list[float] = []
    before = _anonymous()
    if before is None:
        yield used
        return
    most, over = [before], threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            most[0] = max(most[0], _anonymous() or 0)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield used
    finally:
        over.set()
        watcher.join()
    used.append((most[0] - before) / MEGA)


def _anonymous() -> int | None:
    """Bytes of memory that belong to no file; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    found = [line.split() for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
    return 1024 * int(found[0][1]) if found else None


def goals(scale: Scale) -> list[Goal]:
    """What is asked of exact search in the largest gallery."""
    found = [
        Goal(
            what=f"exact search over the plain product, {number} at once",
            found=times,
            limit=SLOWER,
            why="each answer also reads its videos' lines, which counts where vectors are few",
        )
        for number, times in scale.slower.items()
    ]
    found.append(
        Goal(what="seconds to open", found=scale.opening, limit=OPENING, why="every segment is opened by itself")
    )
    if scale.memory is not None:
        why = "scores of a chunk of videos and all queries are held at once"
        found.append(Goal(what="MB beyond mapped files", found=scale.memory, limit=MEMORY, why=why))
    return found


def table(scale: Scale) -> str:
    """The rows of a size."""
    head = ("", *(f"{what} ms ({n} at once)" for n in AT_ONCE for what in ("p50", "p95")), "built in", "bytes/video")
    lines: list[tuple[str, ...]] = [(*head, "top 10")]
    for row in scale.rows:
        times = [f"{value[n]:,.2f}" for n in AT_ONCE for value in (row.p50, row.p95)]
        built = "" if row.built is None else f"{row.built:,.1f} s"
        shared = "" if row.recall is None else f"{100 * row.recall:.1f} %"
        lines.append((row.search, *times, built, f"{row.bytes:,}", shared))
    title = f"gallery of {scale.videos:,} videos on disk"
    return "\n".join([title, "", aligned(lines)])
