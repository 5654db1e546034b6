"""The bench of the training loader: its videos per second beside PIL decoding the same JPEGs from memory, its limit.

Both sides run through `load_batches`. The process that takes the batches only waits for the workers, which stay busy
before and after the timed batches, so rates are those of a running loader.
"""

import io
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from distill.bench.rounds import Goal, ratio, take_turns, timed
from distill.data.datasets import PairDataset
from distill.data.frames import FrameSet
from distill.data.loader import load_batches
from distill.data.shards import Shards
from distill.data.tokens import Tokenizer
from distill.errors import ExpectedError
from distill.evaluation.report import aligned

PER_CORE = 0.9  # of the limit
MAX_WORDS = 32
TIMED = 6  # batches; a multiple of the usual numbers of workers, which take turns


@dataclass(frozen=True)
class LoaderSpeed:
    """The rates with one number of workers; 0 decodes in the process that takes the batches."""

    workers: int
    limit: float  # videos/s that PIL decodes in as many processes
    loader: float  # videos/s
    of_limit: float  # loader / limit
    mib: float  # of JPEG that the loader reads in a second


@dataclass(frozen=True)
class LoaderReport:
    """The rates of the loader on one frame set."""

    frames: str
    videos: int
    video_bytes: float  # of JPEG, on average
    num_frames: int
    batch: int
    rows: list[LoaderSpeed]
    parts: dict[str, float]  # milliseconds of the processor that one video takes without workers
    goals: list[Goal]

    def table(self) -> str:
        """Return the report as text."""
        lines = [["workers", "decoding alone", "loader", "ratio", "MiB/s"]]
        for row in self.rows:
            rates = f"{row.limit:.1f} videos/s", f"{row.loader:.1f} videos/s"
            lines.append([str(row.workers), *rates, f"{row.of_limit:.3f}", f"{row.mib:.1f}"])
        parts = [["of one video", "ms of the processor"]]
        parts += [[name, f"{value:.2f}"] for name, value in self.parts.items()]
        about = (
            f"{self.frames}: {self.videos} videos of {self.num_frames} frames, {self.video_bytes / 1024:.0f} KiB each, "
            f"batches of {self.batch}"
        )
        return "\n\n".join([about, aligned(lines), aligned(parts), "\n".join(goal.sentence() for goal in self.goals)])


class _Decoding(Dataset):
    """The limit: JPEGs from memory are decoded to arrays, which are dropped; a batch is one number."""

    def __init__(self, jpegs: list[list[bytes]]):
        self._jpegs = jpegs

    def __getitems__(self, pairs: list[tuple[int, int]]) -> int:
        return sum(self.video(video) for video, _ in pairs)

    def video(self, number: int) -> int:
        """Decode the frames of one video; return their number."""
        for jpeg in self._jpegs[number]:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
                np.asarray(image)
        return len(self._jpegs[number])


def measure_loader(frames: FrameSet, workers: Sequence[int], *, batch: int, rounds: int) -> LoaderReport:
    """Time the loader and decoding alone, in turns, for each number of workers.

    Raises `ExpectedError` if the frame set has fewer than `batch` videos.
    """
    if len(frames) < batch:
        raise ExpectedError(
            f"{frames.path}: {len(frames)} videos do not fill a batch of {batch}; give --batch {len(frames)} or less"
        )
    shards = Shards(frames.path, frames.manifest.files)
    reads = [
        [partial(shards.read, video.key, name) for name in shards.extensions(video.key) if name.endswith("jpg")]
        for video in frames.videos
    ]
    jpegs = [[read() for read in video] for video in reads]
    loading = PairDataset(frames, [], Tokenizer(MAX_WORDS), pixels=True)
    decoding = _Decoding(jpegs)
    sides = _part_sides(loading, decoding, reads, [video for video, _ in _batches(len(frames), batch, 1)[0]])
    for number in workers:
        batches = _batches(len(frames), batch, 1 + 4 * number + TIMED)  # of which two a worker are only begun
        sides[f"limit {number}"] = partial(_rate, decoding, batches, number)
        sides[f"loader {number}"] = partial(_rate, loading, batches, number)
    values = take_turns(sides, rounds, "loader and decoding in turns (rounds)")
    size = statistics.mean(sum(map(len, jpeg)) for jpeg in jpegs)
    rows, parts = [_row(number, values, size) for number in workers], _parts(values)
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


def _part_sides(
    loading: PairDataset, decoding: _Decoding, reads: Sequence[Sequence[Callable[[], bytes]]], videos: Sequence[int]
) -> dict[str, Callable[[], float]]:
    """Return by name what the processor does for one video: all of it, and its parts."""
    frames, tokenizer = loading.frames, loading.tokenizer
    texts = {video: frames.videos[video].captions[0].text for video in videos}
    return {
        "whole": lambda: _each(lambda _: loading.__getitems__([(v, 0) for v in videos]), [0]) / len(videos),
        "pixels": lambda: _each(frames.pixels, videos),
        "decode": lambda: _each(decoding.video, videos),
        "read": lambda: _each(lambda video: [read() for read in reads[video]], videos),
        "words": lambda: _each(lambda video: tokenizer([texts[video]]), videos),
    }


def _batches(videos: int, batch: int, count: int) -> list[list[tuple[int, int]]]:
    """Return batches of (video, first caption) in random order, repeating the videos as needed."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(videos) for _ in range(-(-count * batch // videos))]).tolist()
    return [[(video, 0) for video in order[start : start + batch]] for start in range(0, count * batch, batch)]


def _rate(dataset: Dataset, batches: list[list[tuple[int, int]]], workers: int) -> float:
    """Return the videos per second of a loader, after the batches in which its workers fill their queues."""
    loaded = load_batches(dataset, batches, workers)
    deque(islice(loaded, 1 + 2 * workers), maxlen=0)
    seconds = timed(lambda: deque(islice(loaded, TIMED), maxlen=0))
    loaded.close()  # type: ignore[attr-defined]
    return TIMED * len(batches[0]) / seconds


def _each(function: Callable[[int], object], videos: Sequence[int]) -> float:
    """Return the milliseconds of processor time that a function takes for a video."""
    start = time.process_time()
    for video in videos:
        function(video)
    return 1e3 * (time.process_time() - start) / len(videos)


def _row(workers: int, values: dict[str, list[float]], size: float) -> LoaderSpeed:
    limit, loader = values[f"limit {workers}"], values[f"loader {workers}"]
    rate = statistics.median(loader)
    return LoaderSpeed(workers, statistics.median(limit), rate, ratio(loader, limit), mib=rate * size / 2**20)


def _parts(values: dict[str, list[float]]) -> dict[str, float]:
    """Return the parts of a video's time. Differences of medians may be below zero where a part is small."""
    ms = {name: statistics.median(values[name]) for name in ("whole", "pixels", "decode", "read", "words")}
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
        why += f", and handing a video over from a worker takes {handed:.2f} ms of the worker's time"
    return Goal(f"loader over decoding alone, {row.workers} workers", row.of_limit, PER_CORE, at_least=True, why=why)
