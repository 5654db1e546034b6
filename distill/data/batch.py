"""One batch: what the towers and the losses get of the rows that a plan drew (distill/data/draw.py).

Beside its B pairs a batch may hold U videos without captions and T captions without videos. Nobody has said which of
them belong together, but a teacher's features rank them: the coarse loss compares B + T texts with B + U videos, while
all other losses see the pairs alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

Held = TypeVar("Held", "Batch", "Unpaired")


@dataclass(frozen=True)
class Unpaired:
    """The videos without captions and the captions without videos; a side that is not drawn has no rows."""

    videos: Int64[Tensor, " video"]
    ids: Int64[Tensor, "text word"]
    frames: UInt8[Tensor, "video frame 3 height width"] | None  # None when the stem's outputs are cached
    real: Bool[Tensor, "video frame"]
    video_labels: list[dict[str, Tensor]]  # a teacher's features of the videos, one table per label set
    text_labels: list[dict[str, Tensor]]  # and of the captions

    @property
    def nbytes(self) -> int:
        """Memory of all its tensors."""
        return sum(tensor.nbytes for tensor in _tensors(self))


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch: pair i is (caption i, video i)."""

    videos: Int64[Tensor, " pair"]
    ids: Int64[Tensor, "pair word"]
    frames: Tensor | None  # uint8 [pair, frame, 3, height, width]; None when the stem's outputs are cached
    real: Bool[Tensor, "pair frame"]
    labels: list[dict[str, Tensor]]  # one table of rows per label set
    unpaired: Unpaired | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device, copied while the host goes on if the memory is pinned."""
        return _changed(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Page-locked copies, for the loader."""
        return _changed(self, lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep its memory, which another stream filled, until this stream has done what it was given so far."""
        for tensor in _tensors(self):
            tensor.record_stream(stream)

    def clone(self) -> "Batch":
        """The same batch in memory of its own."""
        return _changed(self, torch.clone)

    @property
    def nbytes(self) -> int:
        """Memory of all its tensors."""
        return sum(tensor.nbytes for tensor in _tensors(self))


def _changed(held: Held, change: Callable[[Tensor], Tensor]) -> Held:
    """Return the same with every tensor changed."""
    found: dict[str, Any] = {}
    for field in fields(held):
        value = getattr(held, field.name)
        if isinstance(value, Tensor):
            found[field.name] = change(value)
        elif isinstance(value, Unpaired):
            found[field.name] = _changed(value, change)
        elif field.name.endswith("labels"):
            found[field.name] = [{name: change(rows) for name, rows in table.items()} for table in value]
    return replace(held, **found)


def _tensors(held: Batch | Unpaired) -> Iterator[Tensor]:
    for field in fields(held):
        value = getattr(held, field.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Unpaired):
            yield from _tensors(value)
        elif field.name.endswith("labels"):
            yield from (rows for table in value for rows in table.values())
