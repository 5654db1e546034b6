"""Sequences that make an item when it is asked for, of columns that hold millions without a Python object each."""

from abc import abstractmethod
from collections.abc import Sequence
from operator import index as whole
from typing import SupportsIndex, TypeVar, overload

import numpy as np

T = TypeVar("T")


class OnDemand(Sequence[T]):
    """A sequence of items that nobody holds. It equals any sequence of equal items."""

    @abstractmethod
    def _made(self, row: int) -> T:
        """Return an item, which is there."""

    def _several(self, rows: range) -> list[T]:
        return [self._made(row) for row in rows]

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> T | list[T]:
        if isinstance(index, slice):
            return self._several(range(*index.indices(len(self))))
        number = whole(index)
        row = number + len(self) if number < 0 else number
        if not 0 <= row < len(self):
            raise IndexError(index)
        return self._made(row)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Chosen(OnDemand[T]):
    """Some items of a sequence, by their rows."""

    def __init__(self, items: Sequence[T], rows: Sequence[int] | np.ndarray):
        self.items, self.rows = items, rows

    def __len__(self) -> int:
        return len(self.rows)

    def _made(self, row: int) -> T:
        return self.items[int(self.rows[row])]
