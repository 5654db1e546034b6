"""Sources: where an index takes its videos from, a frame set or video files, one row of the gallery after another.

An `Item` is one row to be. `load` gives what is known of it and its frames (uint8 [frame, 3, size, size], no padding),
or, where it is broken, a note of that in their place.
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
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
from distill.data.sampler import Sampler
from distill.data.sampling import SampledVideo, Span, attempt, sample_video
from distill.data.video import probe
from distill.errors import ArtefactError, ExpectedError, VideoError
from distill.log import progress
from distill.manifest import NAME
from distill.remote import Place
from distill.workers import worker_pool

Result = TypeVar("Result")
Frames = UInt8[np.ndarray, "frame 3 height width"]
Note = dict[str, str]  # of a broken video: video (id), source, reason

FEW = 16  # files that are decoded here: a pool of processes takes longer to start
AHEAD = 4  # jobs that wait, ready, per worker


@dataclass(frozen=True)
class Cut:
    """Files longer than `seconds` become spans of that length, which share `overlap` seconds with the one before."""

    seconds: float
    overlap: float = 0.0

    def __post_init__(self):
        if not 0 <= self.overlap < self.seconds:
            raise ExpectedError(
                f"segments of {self.seconds:g} s that overlap by {self.overlap:g} s: expected a positive length, "
                "and an overlap shorter than that"
            )


@dataclass(frozen=True)
class Item:
    """One row to be."""

    id: str
    file: str  # id of the file that it is of: its own, unless the file is cut
    mark: tuple[Any, ...]  # what it is made from
    changed: int  # when its file was, nanoseconds; 0 where the mark says all
    place: int  # in its source


@dataclass(frozen=True)
class Loaded:
    """One row's input."""

    item: Item
    about: dict[str, Any]
    pixels: Frames


class VideoSource(ABC):
    """Rows to be, in order."""

    name: str  # of the source, as it was given
    parents: dict[str, str]  # ids of manifests
    folder: Path | None  # of the video files
    items: list[Item]
    broken: list[Note]  # found before any was loaded

    @abstractmethod
    def load(self, items: Sequence[Item]) -> Iterator[Loaded | Note]:
        """The input of these rows, in order."""

    @abstractmethod
    def captions(self, item: Item) -> Sequence[tuple[str, str]]:
        """(id, text) of all that was said of a video."""


@contextmanager
def open_source(
    path: Place, folder: Path | None, frames_config: dict[str, Any], model: Path, cut: Cut | None, workers: int | None
) -> Iterator[VideoSource]:
    """A frame set, a folder of video files, or a text file that lists some; sampled as `frames_config` says.

    `folder` is the one of the video files, `model` names in errors what needs such frames; `workers` processes (one
    per core) decode files.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if (path / NAME).is_file():
        if cut is not None:
            raise ExpectedError(f"{path}: a frame set, whose frames are chosen; --segments cuts video files")
        frames = FrameSet(path)
        frames.check_settings(frames_config, model)
        yield FrameSetSource(frames, folder, workers)
        return
    if not isinstance(path, Path):
        raise ExpectedError(f"{path}: no frame set (no {NAME}); video files are read from disks, not from URLs")
    root, found, left_out = files.find(path, folder)
    sampler, size = TypeAdapter(Sampler).validate_python(frames_config["sampler"]), frames_config["size"]
    if workers == 1 or len(found) <= FEW:
        yield FileSource(path, root, found, left_out, sampler, size, cut, None, 1)
        return
    with worker_pool(workers) as pool:
        yield FileSource(path, root, found, left_out, sampler, size, cut, pool, workers)


class FrameSetSource(VideoSource):
    """The videos of a frame set; `folder` is where their files are, if that is known."""

    def __init__(self, frames: FrameSet, folder: Path | None, workers: int):
        self.name, self.frames, self.folder, self.workers = str(frames.path), frames, folder, workers
        self.parents, self.broken = {"frames": frames.manifest.id}, []
        self.items = [
            Item(video.id, video.id, (video.id, video.source, video.frames_sha256), 0, place)
            for place, video in enumerate(frames.videos)
        ]

    def load(self, items: Sequence[Item]) -> Iterator[Loaded | Note]:
        with ThreadPoolExecutor(self.workers) as threads:
            places = [(item.place,) for item in items]
            for item, pixels in zip(items, in_order(threads, self.workers, self.frames.pixels, places), strict=True):
                video = self.frames.videos[item.place]
                yield Loaded(item, _about(item, video.source, video.timestamps, video.duration), pixels)

    def captions(self, item: Item) -> Sequence[tuple[str, str]]:
        return [(caption.id, caption.text) for caption in self.frames.videos[item.place].captions]


class FileSource(VideoSource):
    """Video files below `folder`. Processes of `pool` decode them; without one they are decoded here."""

    def __init__(
        self,
        path: Path,
        folder: Path,
        found: list[VideoFile],
        left_out: list[Note],
        sampler: Any,
        size: int,
        cut: Cut | None,
        pool: Executor | None,
        workers: int,
    ):
        self.name, self.folder, self.root, self.broken, self.parents = str(path), folder, folder, left_out, {}
        self.files = {file.id: file for file in found}
        self.sampler, self.size, self.pool, self.workers = sampler, size, pool, workers
        self.items: list[Item] = []
        self.spans: list[Span] = []
        for file, parts in zip(found, self._cut(found, cut), strict=True):
            for span in parts:
                mark = (file.source, file.bytes, span)
                self.items.append(Item(files.span_id(file.id, span), file.id, mark, file.changed, len(self.items)))
                self.spans.append(span)

    def _cut(self, found: list[VideoFile], cut: Cut | None) -> Iterator[list[Span]]:
        """The spans of every file: none of one whose length cannot be read."""
        if cut is None:
            for _ in found:
                yield [None]
            return
        paths = [(self.root / file.source,) for file in found]
        probed = in_order(self.pool, self.workers, partial(attempt, probe), paths)
        for file, info in zip(found, progress(probed, "read lengths of videos", len(found)), strict=True):
            if isinstance(info, VideoError):
                self.broken.append(_note(file, info))
                yield []
            else:
                yield files.spans(info.duration, cut.seconds, cut.overlap)

    def load(self, items: Sequence[Item]) -> Iterator[Loaded | Note]:
        groups = [list(group) for _, group in groupby(items, key=lambda item: item.file)]
        jobs = [
            (
                self.root / self.files[g[0].file].source,
                [self.spans[item.place] for item in g],
                self.sampler,
                self.size,
            )
            for g in groups
        ]
        with ThreadPoolExecutor(self.workers) as threads:
            sampled = ((found,) for found in in_order(self.pool, self.workers, partial(attempt, sample_video), jobs))
            for group, (found, shown) in zip(groups, in_order(threads, self.workers, _decoded, sampled), strict=True):
                file = self.files[group[0].file]
                if isinstance(found, VideoError):
                    yield _note(file, found)
                    continue
                for item, part, pixels in zip(group, found, shown, strict=True):
                    span = self.spans[item.place]
                    cut = {} if span is None else {"file": file.id, "span": list(span)}
                    yield Loaded(item, _about(item, file.source, part.timestamps, part.duration) | cut, pixels)

    def captions(self, item: Item) -> Sequence[tuple[str, str]]:
        return []


def _about(item: Item, source: str, timestamps: Sequence[float], duration: float) -> dict[str, Any]:
    return {"id": item.id, "source": source, "timestamps": list(timestamps), "duration": duration}


def _note(file: VideoFile, reason: VideoError) -> Note:
    return {"video": file.id, "source": file.source, "reason": str(reason)}


def _decoded(found: list[SampledVideo] | VideoError) -> tuple[list[SampledVideo] | VideoError, list[Frames]]:
    return found, [] if isinstance(found, VideoError) else [part.pixels() for part in found]


def in_order(
    pool: Executor | None, workers: int, function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]]
) -> Iterator[Result]:
    """Results of `function(*job)` in order, made a little ahead of the consumer; without a pool, one by one."""
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
            "a process that decodes videos died: out of memory, or a file that its decoder does not survive; run the "
            "same command with --workers 1 to see where it stops, and take that file away"
        ) from None
