"""Batches for the towers: token ids, uint8 frames padded to `num_frames`, label rows; decoding in worker processes.

A worker hands its batches to the training process through shared memory, and allocating fresh pages of it takes a third
of the time that decoding takes. So each worker keeps one buffer more than the batches it may have ready, and fills them
in turn. torch sends a worker task i + `ahead` only after batch i was taken, so a buffer is never overwritten before its
batch is copied, as long as the training process copies each batch before it takes the next (`_kept`).
"""

import gc
import itertools
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from distill import signals
from distill.cache import Cache
from distill.config import Config
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.prefetch import Rows, check_cache_size, fetched_ahead
from distill.data.tokens import Tokenizer
from distill.errors import ExpectedError, RecipeError

AHEAD = 2  # batches per worker where nothing else is said; torch's default
MOST_AHEAD = 4  # batches per worker: more would only take memory
SHARED = Path("/dev/shm")  # workers hand their batches over through it (Linux)


class DataConfig(Config):
    """Where the frames are and how they are batched. `batch_size` is the global one, over all processes.

    `same_video`: the lineage's code shuffles captions and lets those of one video meet in a batch as each other's
    negatives ("negatives"); "mask" lets them meet and leaves those pairs out of the contrastive loss; "apart" never
    puts two captions of one video into a batch.
    """

    train: str  # frame sets: folders, or URLs (file, http, https, s3, gs)
    val: str  # frame set that chooses the best weights
    test: str | None = None  # frame set that is evaluated once, at the end
    max_words: int = 32  # tokens of a caption, start and end included
    num_frames: int = 12  # frames of a video, as packed
    batch_size: int = 128  # pairs of a step over all processes
    same_video: Literal["apart", "mask", "negatives"] = "apart"  # two captions of a video in a batch
    shuffle_shards: int = Field(default=0, ge=0)  # together; 0: all, best on local disks; a few stream remote ones well
    workers: int = Field(default=0, ge=0)  # decoding processes per training process
    memory_gb: float = Field(default=4.0, gt=0)  # for the batches that they have ready, per training process
    cache: str | None = None  # folder for what comes from URLs; default: in the user's cache folder
    cache_gb: float = Field(default=50.0, gt=0)  # most that it may hold

    def open_cache(self) -> Cache:
        """Where remote shards are kept."""
        return Cache(Path(self.cache), self.cache_gb) if self.cache else Cache(gigabytes=self.cache_gb)

    def check(self, frames: FrameSet, path: str) -> None:
        """Refuses frames that were sampled for another setting."""
        if frames.num_frames != self.num_frames:
            raise RecipeError(
                f"data.num_frames: {self.num_frames}, but {path} was packed with {frames.num_frames} frames a video; "
                f"pack again or set data.num_frames={frames.num_frames}"
            )


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch: pair i is (caption i, video i)."""

    videos: list[int]
    ids: Tensor  # int64 [pair, word]
    frames: Tensor | None  # uint8 [pair, frame, 3, height, width]; None when the stem's outputs are cached
    real: Tensor  # bool [pair, frame]
    labels: list[dict[str, Tensor]]  # one table of rows per label set

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device, copied while the host goes on if the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Page-locked copies, for the loader."""
        return self._map(lambda tensor: tensor.pin_memory())

    def clone(self) -> "Batch":
        """The same batch in memory of its own."""
        return self._map(torch.clone)

    @property
    def nbytes(self) -> int:
        """Memory of all its tensors."""
        tensors = [self.ids, self.frames, self.real, *(value for rows in self.labels for value in rows.values())]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            ids=change(self.ids),
            frames=None if self.frames is None else change(self.frames),
            real=change(self.real),
            labels=[{name: change(value) for name, value in rows.items()} for rows in self.labels],
        )


def pad(
    pixels: UInt8[np.ndarray, "frame 3 height width"], num_frames: int
) -> tuple[UInt8[np.ndarray, "padded 3 height width"], Bool[np.ndarray, " padded"]]:
    """Zeros after the last real frame, and the mask that says which are real."""
    padded = np.zeros((num_frames, *pixels.shape[1:]), np.uint8)
    padded[: len(pixels)] = pixels
    return padded, np.arange(num_frames) < len(pixels)


def pictures(frames: FrameSet, videos: Sequence[int]) -> UInt8[Tensor, "video padded 3 height width"]:
    """Decoded frames, then zeros. In memory the colours of a pixel stand together, as they come from the decoder: to
    part them takes a tenth of the decoding, and is left to the device (`clip.normalise`)."""
    decoded = _buffer((len(videos), frames.num_frames, frames.size, frames.size, 3))
    for row, video in enumerate(videos):
        frames.decode(video, decoded[row].numpy())
        decoded[row, len(frames.videos[video].timestamps) :] = 0
    return decoded.permute(0, 1, 4, 2, 3)


def _buffer(shape: tuple[int, ...]) -> Tensor:
    """Return uninitialised memory for the pictures of one task: the next buffer in a worker, fresh memory elsewhere."""
    worker = get_worker_info()
    if worker is None:
        return torch.empty(shape, dtype=torch.uint8)
    buffers: deque[Tensor] = worker.dataset.buffers  # pyrefly: ignore
    buffers.rotate(-1)
    if buffers[0].shape != shape:
        buffers[0] = torch.empty(shape, dtype=torch.uint8).share_memory_()
    return buffers[0]


def real(frames: FrameSet, videos: Sequence[int]) -> Bool[Tensor, "video padded"]:
    """Which frames of videos are not padding."""
    count = torch.tensor([len(frames.videos[video].timestamps) for video in videos])
    return torch.arange(frames.num_frames) < count[:, None]


class PairDataset(Dataset):
    """Whole batches of (video, caption) pairs at once, so that captions are tokenised and labels stacked together."""

    def __init__(self, frames: FrameSet, labels: Sequence[LabelSet], tokenizer: Tokenizer, *, pixels: bool):
        self.frames, self.labels, self.tokenizer, self.pixels = frames, labels, tokenizer, pixels

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of these pairs."""
        videos = [video for video, _ in pairs]
        texts = [self.frames.videos[video].captions[caption].text for video, caption in pairs]
        return Batch(
            videos=videos,
            ids=torch.from_numpy(self.tokenizer(texts)),
            frames=pictures(self.frames, videos) if self.pixels else None,
            real=real(self.frames, videos),
            labels=[labels.batch(pairs) for labels in self.labels],
        )

    def ahead(self, batches: Iterable[Rows], config: DataConfig) -> Iterable[Rows]:
        """The same batches, with what lies behind URLs fetched before they need it."""
        sources = [self.frames.source()] if self.pixels else []
        sources += [labels.source() for labels in self.labels]
        sources = [source for source in sources if source.shards.remote]
        if not sources:
            return batches
        check_cache_size(sources, config.shuffle_shards, config.cache_gb)
        return fetched_ahead(batches, sources, config.shuffle_shards)


class VideoDataset(Dataset):
    """Batches of whole videos without captions: (frames, real)."""

    def __init__(self, frames: FrameSet):
        self.frames = frames

    def __getitems__(self, videos: list[int]) -> tuple[Tensor, Tensor]:
        """uint8 [video, frame, 3, height, width] and bool [video, frame]."""
        return pictures(self.frames, videos), real(self.frames, videos)


def load_batches(dataset: Dataset, batches: Iterable[list], workers: int, memory_gb: float | None = None) -> Iterator:
    """Runs `dataset.__getitems__` over the batches, in `workers` processes ahead of the consumer, in order.

    With `memory_gb`, as many batches of pairs are made ahead as that holds; RecipeError if it holds too few. Batches
    must not grow then: the first one is measured.
    """
    batches, ahead = iter(batches), AHEAD
    if workers and memory_gb is not None:
        first = next(batches, None)
        if first is None:
            return iter(())
        assert isinstance(dataset, PairDataset), "only batches of pairs tell their size"
        size = dataset.__getitems__(first[:1]).nbytes * len(first)
        free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else None
        ahead = batches_ahead(size, workers, memory_gb, free)
        batches = itertools.chain([first], batches)
    loader = DataLoader(
        _Answering(dataset, ahead),
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        collate_fn=_as_is,
        worker_init_fn=signals.leave_to_parent,
        pin_memory=torch.cuda.is_available(),
    )
    return _answers(loader)


def batches_ahead(size: int, workers: int, memory_gb: float, shared: int | None) -> int:
    """How many batches of `size` bytes each worker may have ready, beside the one that it makes.

    `shared` is the shared memory that is free on this host, which its training processes divide among them.
    """
    least = 2 * size * workers
    fits = int(memory_gb * 1e9 // (size * workers))
    if fits < 2:
        raise RecipeError(
            f"data.memory_gb: {memory_gb:g} GB, but data.workers={workers} processes with two batches of "
            f"{size / 1e9:.3g} GB each need {least / 1e9:.3g} GB; raise it, or lower data.workers, or "
            f"train on more processes"
        )
    if shared is not None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        fits = min(fits, int(shared // (size * workers * processes)))
        if fits < 2:
            raise RecipeError(
                f"{SHARED}: {shared / 1e9:.3g} GB free, but {processes} training processes with data.workers={workers} "
                f"and batches of {size / 1e9:.3g} GB need {least * processes / 1e9:.3g} GB; give the "
                f"container more (docker: --shm-size), or lower data.workers"
            )
    return min(fits - 1, MOST_AHEAD)


class _Answering(Dataset):
    """Hands errors that the user can mend over as they are: torch would wrap them into a traceback."""

    def __init__(self, dataset: Dataset, ahead: int):
        self._dataset, self.buffers = dataset, deque([torch.empty(0)] * (ahead + 1))

    def __getitems__(self, rows: list) -> object:
        try:
            return self._dataset.__getitems__(rows)  # pyrefly: ignore
        except ExpectedError as error:
            return error


def _answers(loader: DataLoader) -> Iterator:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # the recipe decides
        if loader.num_workers:
            # What FFmpeg's threads belong to must never be freed in a worker: a fork lacks them, and waits for ever
            gc.freeze()
        try:
            answers = iter(loader)
        finally:
            gc.unfreeze()
    try:
        while (answer := _next(answers)) is not None:
            if isinstance(answer, ExpectedError):
                raise answer
            yield _kept(answer) if loader.num_workers and not loader.pin_memory else answer
    finally:
        del answers  # ends the workers, however long a traceback may keep this frame


def _next(answers: Iterator) -> object:
    try:
        return next(answers, None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0]
    return ExpectedError(f"a decoding process died ({reason}); if memory was short, lower data.workers")


def _kept(answer: object) -> object:
    """Copies of what a worker made, which its buffers will not change; pinned memory holds copies already."""
    if isinstance(answer, Batch):
        return answer.clone()
    return tuple(part.clone() for part in answer) if isinstance(answer, tuple) else answer


def _as_is(batch):
    return batch
