"""Registers: what is known of the samples of a set, as columns of numbers that are mapped, or held in memory.

A register follows from the indexes of a set (distill/data/shards.py), which are read again wherever it is missing. It
is a safetensors file of columns without Python objects: to open it takes no time per sample, processes share its pages,
and the system may drop them. Whole numbers stand in 32 bits where all of a column fit. A column with rows of different
lengths, such as the bytes of texts, has another one beside it, `<column>/first`: where each row begins, and the end.
The last column is the CRC-32 of all that stands before it, for damage; a file of any content is read inside its bounds.
"""

import itertools
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from distill.data.ondemand import OnDemand
from distill.data.tensorfile import read_header
from distill.errors import ArtefactError

FIRST = "/first"  # ends the name of a column of beginnings
RAGGED = "*"  # ends the kind of a column whose rows have different lengths
CRC = "crc32"
READ = 1 << 22  # bytes checked at once
TYPES = {"I64": np.dtype(np.int64), "U32": np.dtype(np.uint32), "F64": np.dtype(np.float64), "U8": np.dtype(np.uint8)}
WHOLE, REAL, BYTE = "q", "d", "B"  # kinds of numbers in columns, as `array` calls them
KINDS = {WHOLE: ("I64", "U32"), REAL: ("F64",), BYTE: ("U8",)}
ERRORS = "surrogatepass"  # JSON may hold halves of a pair, and is not changed here
AT_ONCE = 4096  # texts that are cut out of a column together
MEND = "it is made again"


class Register:
    """Columns by name. Cheap to send to a worker process if they are those of a file, which must stay until then."""

    def __init__(self, columns: Mapping[str, np.ndarray], path: Path | None = None):
        self._columns, self.path = columns, path

    @classmethod
    def mapped(cls, path: Path, *, check: bool = True) -> "Register":
        """Map a file. Raises `ArtefactError` where it is damaged, `OSError` where it cannot be read."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            entries = read_header(lambda begin, count: os.pread(file.fileno(), count, begin), size, path, MEND)
            odd = [name for name, one in entries.items() if one.dtype not in TYPES or len(one.shape) != 1]
            if odd or CRC not in entries:
                raise ArtefactError(f"{path}: no register ({(odd or [CRC])[0]!r}); {MEND}")
            places = {name: (TYPES[one.dtype], one.shape[0], one.begin) for name, one in entries.items()}
            if check:
                _check(file, size, path, places)
            whole = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        return cls({name: np.frombuffer(whole, *place) for name, place in places.items()}, path)

    def __getitem__(self, column: str) -> np.ndarray:
        """Return the numbers of a column."""
        if column not in self._columns:
            raise ArtefactError(f"{self.path}: has no column {column!r}; delete it, {MEND}")
        return self._columns[column]

    def lengths(self, column: str) -> Int64[np.ndarray, " row"]:
        """Return the lengths of a column's rows."""
        return np.diff(self[column + FIRST]).astype(np.int64)

    def row(self, column: str, row: int) -> np.ndarray:
        """Return one row of a column."""
        first = self[column + FIRST]
        return self[column][int(first[row]) : int(first[row + 1])]

    def strings(self, column: str) -> "Strings":
        """Return a column of texts."""
        return Strings(self, column)

    def check(self, kinds: Mapping[str, str], rows: int) -> None:
        """Raise `ArtefactError` if columns are not of these kinds, or have not so many rows."""
        for column, kind in kinds.items():
            ragged = kind.endswith(RAGGED)
            first = self[column + FIRST] if ragged else self[column]
            right = {TYPES[name] for name in KINDS[kind[0]]}
            if self[column].dtype not in right or len(first) - ragged != rows:
                raise ArtefactError(f"{self.path}: damaged ({column!r} is no column of {rows} rows); {MEND}")

    def check_below(self, column: str, limit: int) -> None:
        """Raise `ArtefactError` if whole numbers of a column are not below a limit, so that they point nowhere."""
        numbers = self[column]
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < limit:
            raise ArtefactError(f"{self.path}: damaged ({column!r} points beyond {limit} rows); {MEND}")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "columns": None if self.path else self._columns}

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            columns = state["columns"] or Register.mapped(state["path"], check=False)._columns
        except OSError as error:
            raise ArtefactError(
                f"{state['path']}: removed from the cache while it was in use ({error.strerror}); start again, with a "
                f"larger data.cache_gb"
            ) from None
        self.__init__(columns, state["path"])


class Strings(OnDemand[str]):
    """The texts of a column of bytes. Cheap to send to a worker process, as its register is."""

    def __init__(self, register: "Register", column: str):
        self._register, self._column = register, column
        self.data, self.first = register[column], register[column + FIRST]

    def __reduce__(self) -> tuple[Any, ...]:
        return Strings, (self._register, self._column)

    def __len__(self) -> int:
        return len(self.first) - 1

    def _made(self, row: int) -> str:
        return self._decoded(self.data[int(self.first[row]) : int(self.first[row + 1])].tobytes())

    def _several(self, rows: range) -> list[str]:
        if rows.step != 1 or not rows:
            return super()._several(rows)
        first = self.first[rows.start : rows.stop + 1].tolist()
        data = self.data[first[0] : first[-1]].tobytes()
        ends = [place - first[0] for place in first]
        return [self._decoded(data[begin:end]) for begin, end in itertools.pairwise(ends)]

    def _decoded(self, data: bytes) -> str:
        try:
            return data.decode(errors=ERRORS)
        except UnicodeDecodeError:
            raise ArtefactError(
                f"{self._register.path}: {self._column!r} holds a text that is not UTF-8; delete it, {MEND}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]

    def same(self, other: "Strings") -> bool:
        """Return whether these are the same texts, which their columns tell."""
        return len(self) == len(other) and all(
            np.array_equal(one, two) for one, two in ((self.first, other.first), (self.data, other.data))
        )


def _check(file: BinaryIO, size: int, path: Path, places: Mapping[str, tuple[np.dtype, int, int]]) -> None:
    """Read a file once, in pieces that nothing keeps; raise `ArtefactError` where it is not as it was written."""
    dtype, count, end = places[CRC]
    file.seek(end)
    expected, crc = file.read(dtype.itemsize * count), _crc(file, end)
    if end + len(expected) != size or expected != crc.to_bytes(4, "little"):
        raise ArtefactError(f"{path}: damaged (its CRC-32 is another one); {MEND}")
    for name, (dtype, count, begin) in places.items():
        of = places.get(name.removesuffix(FIRST))
        if name.endswith(FIRST) and not (of and dtype.kind in "iu" and _rises(file, dtype, count, begin, of[1])):
            raise ArtefactError(f"{path}: damaged (rows of {name.removesuffix(FIRST)!r} overlap); {MEND}")


def _crc(file: BinaryIO, end: int) -> int:
    """Return the CRC-32 of a file up to `end`."""
    crc, buffer = 0, memoryview(bytearray(READ))
    file.seek(0)
    while end and (found := file.readinto(buffer[: min(READ, end)])):  # type: ignore[attr-defined]
        crc, end = zlib.crc32(buffer[:found], crc), end - found
    return crc


def _rises(file: BinaryIO, dtype: np.dtype, count: int, begin: int, last: int) -> bool:
    """Return whether whole numbers of a file begin with 0, never fall, and end with `last`."""
    file.seek(begin)
    before = 0
    for start in range(0, count, READ):
        some = np.frombuffer(file.read(min(READ, count - start) * dtype.itemsize), dtype)
        if (start == 0 and some[0]) or some[0] < before or (some[1:] < some[:-1]).any():
            return False
        before = some[-1]
    return count > 0 and int(before) == last
