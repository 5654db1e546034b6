"""How near the loader comes to what it cannot beat: PIL decoding the same JPEGs, held in memory, in as many processes.

Both sides run through the same `load_batches`, so a side's processes, batches and order are the other's; the limit
reads nothing, keeps nothing and hands over a number. Cores are the decoding processes; the one that takes the batches
only waits for them. Rates are those of a loader that runs on: workers stay busy before and after what is timed.
"""

import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from distill.bench.rounds import Goal, ratio, take_turns
from distill.data.frames import FrameSet
from distill.data.loader import PairDataset, load_batches
from distill.data.shards import Shards
from distill.data.tokens import Tokenizer
from distill.errors import ExpectedError
from distill.evaluation.report import aligned

PER_CORE = 0.9  # of the limit
MAX_WORDS = 32
TIMED = 6  # batches; a multiple of the usual numbers of workers, who take turns


@dataclass(frozen=True, kw_only=True)
class LoaderSpeed:
    """One number of workers; 0 decodes in the process that takes the batches."""

    workers: int
    limit: float  # videos/s that PIL decodes in as many processes
    loader: float  # videos/s
    of_limit: float  # loader / limit
    mib: float  # of JPEG that the loader reads in a second


@dataclass(frozen=True, kw_only=True)
class LoaderReport:
    """The loader on one frame set."""

    frames: str
    videos: int
    video_bytes: float  # of JPEG, on average
    num_frames: int
    batch: int
    rows: list[LoaderSpeed]
    parts: dict[str, float]  # milliseconds of the processor that one video takes without workers
    goals: list[Goal]

    def tree(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self), "goals": [goal.tree() for goal in self.goals]}

    def table(self) -> str:
        """As people read it."""
        lines = [["workers", "decoding alone", "loader", "of it", "MiB/s"]]
        for row in self.rows:
            rates = f"{row.limit:.1f} videos/s", f"{row.loader:.1f} videos/s"
            lines.append([str(row.workers), *rates, f"{row.of_limit:.3f}", f"{row.mib:.1f}"])
        parts = [
            ["of one video", "ms of the processor"],
            *([name, f"{value:.2f}"] for name, value in self.parts.items()),
        ]
        about = (
            f"{self.frames}: {self.videos} videos of {self.num_frames} frames, {self.video_bytes / 1024:.0f} KiB each, "
            f"batches of {self.batch}"
        )
        return "\n\n".join([about, aligned(lines), aligned(parts), "\n".join(goal.sentence() for goal in self.goals)])


class _Decoding(Dataset):
    """The limit: JPEGs held in memory, decoded to arrays one after the other, and nothing made of them."""

    def __init__(self, jpegs: list[list[bytes]]):
        self._jpegs = jpegs

    def __getitems__(self, pairs: list[tuple[int, int]]) -> int:
        return sum(self.video(video) for video, _ in pairs)

    def video(self, number: int) -> int:
        """Decodes the frames of one video."""
        for jpeg in self._jpegs[number]:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
                np.asarray(image)
        return len(self._jpegs[number])


def measure_loader(frames: FrameSet, workers: Sequence[int], *, batch: int, rounds: int) -> LoaderReport:
    """Times both sides in turns."""
    if len(frames) < batch:
        raise ExpectedError(f"{frames.path}: {len(frames)} videos do not fill a batch of {batch}; give --batch")
    shards = Shards(frames.path, frames.manifest.files)
    names = [[name for name in shards.extensions(video.key) if name.endswith("jpg")] for video in frames.videos]
    jpegs = [[shards.read(video.key, n) for n in found] for video, found in zip(frames.videos, names, strict=True)]
    tokenizer = Tokenizer(MAX_WORDS)
    loading, decoding = PairDataset(frames, [], tokenizer, frames.num_frames, pixels=True), _Decoding(jpegs)
    sides: dict[str, Callable[[], float]] = {}
    for number in workers:
        batches = _batches(len(frames), batch, _warm(number) + TIMED + 2 * number)
        sides[f"limit {number}"] = partial(_rate, decoding, batches, number)
        sides[f"loader {number}"] = partial(_rate, loading, batches, number)
    some = [video for video, _ in _batches(len(frames), batch, 1)[0]]
    texts = [frames.videos[video].captions[0].text for video in some]

    def read(video: int) -> None:
        for name in names[video]:
            shards.read(frames.videos[video].key, name)

    def spell(video: int) -> None:
        tokenizer(texts[video : video + 1])

    sides |= {
        "whole": lambda: _each(lambda first: loading.__getitems__([(v, 0) for v in some]), [0]) / len(some),
        "pixels": lambda: _each(frames.pixels, some),
        "decode": lambda: _each(decoding.video, some),
        "read": lambda: _each(read, some),
        "words": lambda: _each(spell, range(len(some))),
    }
    found = take_turns(sides, rounds, "loader and decoding in turns (rounds)")
    size = statistics.mean(sum(map(len, jpeg)) for jpeg in jpegs)
    rows = [_row(number, found, size) for number in workers]
    parts = _parts(found)
    return LoaderReport(
        frames=str(frames.path),
        videos=len(frames),
        video_bytes=size,
        num_frames=frames.num_frames,
        batch=batch,
        rows=rows,
        parts=parts,
        goals=[_goal(row, parts) for row in rows],
    )


def _batches(videos: int, batch: int, count: int) -> list[list[tuple[int, int]]]:
    """Batches of (video, first caption) in random order, over and over."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(videos) for _ in range(-(-count * batch // videos))]).tolist()
    return [[(video, 0) for video in order[start : start + batch]] for start in range(0, count * batch, batch)]


def _warm(workers: int) -> int:
    """Batches that are taken before time counts: workers have filled their queues meanwhile."""
    return 1 + 2 * workers


def _rate(dataset: Dataset, batches: list[list[tuple[int, int]]], workers: int) -> float:
    """Videos per second."""
    loaded = load_batches(dataset, batches, workers)
    for _ in range(_warm(workers)):
        next(loaded)
    start = time.perf_counter()
    for _ in range(TIMED):
        next(loaded)
    seconds = time.perf_counter() - start
    loaded.close()  # type: ignore[attr-defined]
    return TIMED * len(batches[0]) / seconds


def _each(function: Callable[[int], object], videos: Sequence[int]) -> float:
    """Milliseconds of the processor a video."""
    start = time.process_time()
    for video in videos:
        function(video)
    return 1e3 * (time.process_time() - start) / len(videos)


def _row(workers: int, found: dict[str, list[float]], size: float) -> LoaderSpeed:
    limit, loader = found[f"limit {workers}"], found[f"loader {workers}"]
    rate = statistics.median(loader)
    return LoaderSpeed(
        workers=workers,
        limit=statistics.median(limit),
        loader=rate,
        of_limit=ratio(loader, limit),
        mib=rate * size / 2**20,
    )


def _parts(found: dict[str, list[float]]) -> dict[str, float]:
    """Where the time of a video goes; differences of medians, so small ones may come out below zero."""
    ms = {name: statistics.median(found[name]) for name in ("whole", "pixels", "decode", "read", "words")}
    return {
        "decode": ms["decode"],
        "read from the shard": ms["read"],
        "one array of a video": ms["pixels"] - ms["decode"] - ms["read"],
        "captions to tokens": ms["words"],
        "into a batch": ms["whole"] - ms["pixels"] - ms["words"],
    }


def _goal(row: LoaderSpeed, parts: dict[str, float]) -> Goal:
    beside = sum(parts.values()) - parts["decode"]
    why = f"beside {parts['decode']:.2f} ms of decoding a video takes {beside:.2f} ms of the processor (table above)"
    if row.workers:
        handed = 1e3 * row.workers * (1 / row.loader - 1 / row.limit)
        why += f", and with workers {handed:.2f} ms of their time beside decoding, to be handed over too"
    return Goal(
        what=f"loader over decoding alone, {row.workers} workers",
        found=row.of_limit,
        limit=PER_CORE,
        at_least=True,
        why=why,
    )
