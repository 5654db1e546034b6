"""Memory for decoded pictures: fresh in the training process, recycled in a loader's worker.

What a worker makes goes to the training process through shared memory, whose fresh pages cost a third of the time in
which their pictures were decoded. So a worker fills the same few slots in turns. A slot is filled again only after its
batch was copied out of it: a worker is given the task that is `ahead` after a batch's when that batch is taken, and the
one after only when the next is; so `ahead` + 1 slots are enough for one that is copied before the next is taken.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import get_worker_info


class Slots:
    """One worker's slots; a task may take one."""

    def __init__(self, ahead: int):
        self._slots: list[Tensor | None] = [None] * (ahead + 1)
        self._taken = 0

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Shared uint8 memory with anything in it."""
        number = self._taken % len(self._slots)
        self._taken += 1
        slot = self._slots[number]
        if slot is None or slot.shape != shape:
            slot = self._slots[number] = torch.empty(shape, dtype=torch.uint8).share_memory_()
        return slot


def room(shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """Memory for one task's pictures, with anything in it; a worker's dataset must have `slots`."""
    worker = get_worker_info()
    if worker is None:
        return torch.empty(shape, dtype=torch.uint8)
    return worker.dataset.slots.take(shape)  # pyrefly: ignore
