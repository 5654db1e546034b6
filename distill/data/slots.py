"""Reused buffers for decoded pictures in the workers of a data loader.

A worker hands its batches to the training process through shared memory, and allocating fresh pages of it takes a third
of the time that decoding takes. So each worker keeps `ahead` + 1 buffers and fills them in turn. torch sends a worker
task i + `ahead` only after batch i was taken, so a buffer is never overwritten before its batch is copied, as long as
the training process copies each batch before it takes the next.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import get_worker_info


class Slots:
    """The buffers of one worker, of which each task may take one."""

    def __init__(self, ahead: int):
        self._slots: list[Tensor | None] = [None] * (ahead + 1)
        self._taken = 0

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next buffer: shared, uint8, uninitialised."""
        number = self._taken % len(self._slots)
        self._taken += 1
        slot = self._slots[number]
        if slot is None or slot.shape != shape:
            slot = self._slots[number] = torch.empty(shape, dtype=torch.uint8).share_memory_()
        return slot


def buffer(shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """Return uninitialised memory for the pictures of one task: a buffer in a worker, fresh memory elsewhere.

    In a worker, the dataset must have an attribute `slots`.
    """
    worker = get_worker_info()
    if worker is None:
        return torch.empty(shape, dtype=torch.uint8)
    return worker.dataset.slots.take(shape)  # pyrefly: ignore
