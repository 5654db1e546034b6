"""Sources of videos to index: a frame set, or video files. Each yields the future rows of a gallery in order."""

import math
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from pydantic import TypeAdapter

from distill.data import files
from distill.data.files import VideoFile
from distill.data.frames import FrameSet
from distill.data.pictures import Fit
from distill.data.sampler import Sampler
from distill.data.sampling import SampledVideo, attempt, sample_video
from distill.data.timeline import Span
from distill.data.video import probe
from distill.errors import ArtefactError, ExpectedError, VideoError
from distill.log import progress
from distill.manifest import NAME
from distill.remote import Place
from distill.retrieval.encoder import Encoder
from distill.workers import worker_pool

Result = TypeVar("Result")
Frames = UInt8[np.ndarray, "frame 3 height width"]
Sampled = list[SampledVideo | VideoError]  # of each span of a file
Note = dict[str, str]  # why a video is left out: video (id), source, reason; of a span also file (id)
Found = tuple[Path, list[VideoFile], list[Note]]  # by `files.find`

FEW = 16  # up to so many files are decoded in this process, because a pool of processes takes longer to start
AHEAD = 4  # finished jobs that may wait, per worker
LEAST_STEP = 0.1  # seconds from one span to the next; frames lie closer in few videos
MOST_SHARING = 100  # spans that may hold the same second
MOST_SPANS = 1_000_000  # of one file: a hundred hours in steps of a second are 360,000


@dataclass(frozen=True)
class Cut:
    """How to divide long files: into spans of `seconds` that overlap by `overlap` seconds."""

    seconds: float
    overlap: float = 0.0

    def __post_init__(self):
        cut = f"segments of {self.seconds:g} s that overlap by {self.overlap:g} s"
        if not (math.isfinite(self.seconds) and 0 <= self.overlap < self.seconds):
            raise ExpectedError(f"{cut}: expected a positive length, and an overlap shorter than that")
        least = max(LEAST_STEP, self.seconds / MOST_SHARING)
        if self.step < least * (1 - 1e-9):  # 0.3 - 0.2 is a little less than 0.1
            raise ExpectedError(
                f"{cut}: each begins {self.step:.3g} s after the one before; make the overlap at least {least:g} s "
                "shorter than the length"
            )

    @property
    def step(self) -> float:
        """Seconds from the beginning of one span to the next."""
        return self.seconds - self.overlap


@dataclass(frozen=True)
class Item:
    """A future row of the gallery."""

    id: str
    file: str  # id of its file; the row's own id, unless the file is divided into spans
    mark: tuple[Any, ...]  # identifies its input: source, bytes and span, or source and hash of the frames
    changed: int  # time of the file's last change, nanoseconds; 0 if the mark holds a hash
    place: int  # position in its source
    span: Span = None  # of its file; None: all of it


@dataclass(frozen=True)
class Loaded:
    """The description and the frames of one item."""

    item: Item
    about: dict[str, Any]
    pixels: Frames  # without padding


class VideoSource(ABC):
    """The videos to index, in the order of their rows."""

    name: str  # path of the source, as the user gave it
    parents: dict[str, str]  # ids of the manifests it comes from
    folder: Path | None  # where the video files are
    items: list[Item]
    broken: list[Note]  # files left out before any was loaded

    @abstractmethod
    def seen(self, item: Item) -> tuple[str, list[int | str]]:
        """Return the path of an item's file below its folder, and what changes with its content."""

    @abstractmethod
    def load(self, items: Sequence[Item]) -> Iterator[Loaded | Note]:
        """Yield the input of these rows in order, or a note for each that cannot be read."""

    def captions(self, item: Item) -> Sequence[tuple[str, str]]:
        """Return (id, text) of each caption of a video; files have none."""
        return []


@contextmanager
def open_source(
    path: Place, folder: Path | None, release: Encoder, cut: Cut | None, workers: int | None
) -> Iterator[VideoSource]:
    """Open a frame set, a folder of video files, or a text file that lists some, to be sampled for `release`.

    `folder` holds the video files; `workers` processes decode (default: one per core). Raises `ExpectedError` for what
    cannot be indexed.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if (path / NAME).is_file():
        if cut is not None:
            raise ExpectedError(f"{path}: the frames of a frame set are already chosen; --segments cuts video files")
        yield FrameSetSource(release.accept(FrameSet(path)), folder, workers)
        return
    if not isinstance(path, Path):
        raise ExpectedError(f"{path}: not a frame set (no {NAME}); video files are read from disks, not from URLs")
    found = files.find(path, folder)
    alone = workers == 1 or len(found[1]) <= FEW
    with nullcontext() if alone else worker_pool(workers) as pool:
        yield FileSource(path, found, release, cut, pool, 1 if alone else workers)


class FrameSetSource(VideoSource):
    """The videos of a frame set; `folder` is where their files are, if known."""

    def __init__(self, frames: FrameSet, folder: Path | None, workers: int):
        self.name, self.frames, self.folder, self.workers = str(frames.path), frames, folder, workers
        self.parents, self.broken = {"frames": frames.manifest.id}, []
        self.items = [
            Item(video.id, video.id, (video.id, video.source, video.frames_sha256), 0, place)
            for place, video in enumerate(frames.videos)
        ]

    def seen(self, item: Item) -> tuple[str, list[int | str]]:
        video = self.frames.videos[item.place]
        return video.source, [video.frames_sha256]

    def load(self, items: Sequence[Item]) -> Iterator[Loaded | Note]:
        with ThreadPoolExecutor(self.workers) as threads:
            places = [(item.place,) for item in items]
            for item, pixels in zip(items, in_order(threads, self.workers, self.frames.pixels, places), strict=True):
                video = self.frames.videos[item.place]
                yield Loaded(item, _about(item, video.source, video.timestamps, video.duration), pixels)

    def captions(self, item: Item) -> Sequence[tuple[str, str]]:
        return [(caption.id, caption.text) for caption in self.frames.videos[item.place].captions]


class FileSource(VideoSource):
    """Video files in `folder`, decoded by the processes of `pool`, or in this process if there is none."""

    def __init__(
        self, path: Path, found: Found, release: Encoder, cut: Cut | None, pool: Executor | None, workers: int
    ):
        self.name, self.parents, self.pool, self.workers = str(path), {}, pool, workers
        self.root, videos, self.broken = found
        self.folder = self.root
        self.files = {file.id: file for file in videos}
        config = release.frames_config
        self.sampler: Any = TypeAdapter(Sampler).validate_python(config["sampler"])
        self.size: int = config["size"]
        self.whole: bool = config.get("whole", False)
        self.fit = release.fit
        self.items: list[Item] = []
        parts_of = list(zip(videos, self._cut(videos, cut), strict=True))
        spans = {files.span_id(file.id, span): file for file, parts in parts_of for span in parts if span is not None}
        for file, parts in parts_of:
            if file.id in spans:
                reason = f"same id as a segment of {spans[file.id].source}; rename it"
                self.broken.append({"video": file.id, "source": file.source, "reason": reason})
                continue
            for span in parts:
                mark, place = (file.source, file.bytes, span), len(self.items)
                self.items.append(Item(files.span_id(file.id, span), file.id, mark, file.changed, place, span))

    def _cut(self, found: list[VideoFile], cut: Cut | None) -> Iterator[list[Span]]:
        """Yield the spans of every file; one whose length cannot be read stays whole, for a note."""
        if cut is None:
            for _ in found:
                yield [None]
            return
        paths = [(self.root / file.source,) for file in found]
        probed = in_order(self.pool, self.workers, partial(attempt, probe), paths)
        for file, info in zip(found, progress(probed, "read lengths of videos", len(found)), strict=True):
            if isinstance(info, VideoError):
                yield [None]  # loading it says why
            elif not info.duration <= cut.overlap + MOST_SPANS * cut.step:
                many = VideoError(
                    f"{info.duration:g} s make more than {MOST_SPANS:,} segments; cut it into longer ones"
                )
                self.broken.append(_note(file, many))
                yield []
            else:
                yield files.spans(info.duration, cut.seconds, cut.overlap)

    def seen(self, item: Item) -> tuple[str, list[int | str]]:
        file = self.files[item.file]
        return file.source, [file.bytes, file.changed]

    def load(self, items: Sequence[Item]) -> Iterator[Loaded | Note]:
        groups = [list(group) for _, group in groupby(items, key=lambda item: item.file)]
        spans = [[item.span for item in group] for group in groups]
        paths = [self.root / self.files[group[0].file].source for group in groups]
        jobs = [(path, some, self.sampler, self.size, self.whole) for path, some in zip(paths, spans, strict=True)]
        with ThreadPoolExecutor(self.workers) as threads:
            sampled = ((found,) for found in in_order(self.pool, self.workers, partial(attempt, sample_video), jobs))
            decoded = in_order(threads, self.workers, partial(_decoded, fit=self.fit), sampled)
            for group, (found, shown) in zip(groups, decoded, strict=True):
                file = self.files[group[0].file]
                if isinstance(found, VideoError):
                    yield _note(file, found)
                    continue
                for item, part, pixels in zip(group, found, shown, strict=True):
                    if isinstance(part, VideoError) or pixels is None:
                        span = {} if item.span is None else {"file": file.id}
                        yield {"video": item.id, "source": file.source, "reason": str(part)} | span
                        continue
                    cut = {} if item.span is None else {"file": file.id, "span": list(item.span)}
                    yield Loaded(item, _about(item, file.source, part.timestamps, part.duration) | cut, pixels)


def _about(item: Item, source: str, timestamps: Sequence[float], duration: float) -> dict[str, Any]:
    return {"id": item.id, "source": source, "timestamps": list(timestamps), "duration": duration}


def _note(file: VideoFile, reason: VideoError) -> Note:
    return {"video": file.id, "source": file.source, "reason": str(reason)}


def _decoded(found: Sampled | VideoError, fit: Fit | None) -> tuple[Sampled | VideoError, list[Frames | None]]:
    """Return sampled spans with their pixels; an empty span has none."""
    parts = [] if isinstance(found, VideoError) else found
    return found, [None if isinstance(part, VideoError) else part.pixels(fit) for part in parts]


def in_order(
    pool: Executor | None, workers: int, function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]]
) -> Iterator[Result]:
    """Yield the results of `function(*job)` in order, computed a little ahead of the consumer if there is a pool."""
    if pool is None:
        yield from (function(*job) for job in jobs)
        return
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, *job))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ArtefactError(
            "a process that decodes videos died: it ran out of memory, or a file crashed the decoder; run the same "
            "command with --workers 1 to see at which file it stops, and remove that file"
        ) from None
