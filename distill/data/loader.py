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
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill import signals
from distill.data.batch import Batch
from distill.data.datasets import PairDataset, TrainingDataset
from distill.errors import ExpectedError, RecipeError

AHEAD = 2  # batches per worker where nothing else is said; torch's default
MOST_AHEAD = 4  # batches per worker: more would only take memory
SHARED = Path("/dev/shm")  # workers hand their batches over through it (Linux)


def load_batches(dataset: Dataset, batches: Iterable, workers: int, memory_gb: float | None = None) -> Iterator:
    """Runs `dataset.__getitems__` over the batches, in `workers` processes ahead of the consumer, in order.

    With `memory_gb`, as many batches of training are made ahead as that holds; RecipeError if it holds too few. Batches
    must not grow then: the first one is measured.
    """
    batches, ahead = iter(batches), AHEAD
    if workers and memory_gb is not None:
        first = next(batches, None)
        if first is None:
            return iter(())
        assert isinstance(dataset, (PairDataset, TrainingDataset)), "only batches of training tell their size"
        size = dataset.nbytes(first)
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
        self._dataset = dataset
        # by the part of a batch whose pictures they hold, for distill/data/padding.py
        self.buffers: defaultdict[str, deque[Tensor]] = defaultdict(partial(deque, [torch.empty(0)] * (ahead + 1)))

    def __getitems__(self, rows: object) -> object:
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
