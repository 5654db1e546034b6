"""Columns that grow until they are a register: in memory, or in files that have no name."""

import json
import logging
import os
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from distill.cache import Cache
from distill.data.register import BYTE, CRC, ERRORS, FIRST, MEND, RAGGED, TYPES, WHOLE, Register
from distill.errors import ArtefactError, ExpectedError

log = logging.getLogger(__name__)
NAME = "name"  # the column that holds a register's own, as another file may stand under it
HELD = 1 << 17  # numbers of a column that are held before they go to its file
NAMES = {dtype: name for name, dtype in TYPES.items()}


class GrowingRegister:
    """A register that grows row by row. `kinds` tells its columns; with `folder` most of it lies in files there.

    `close` ends the files.
    """

    def __init__(self, kinds: Mapping[str, str], folder: Path | None = None):
        self._columns = dict[str, _Column]()
        try:
            self._begin(kinds, folder)
        except OSError:
            self.close()
            raise

    def _begin(self, kinds: Mapping[str, str], folder: Path | None) -> None:
        for column, kind in kinds.items():
            self._columns[column] = _Column(kind[0], folder)
            if kind.endswith(RAGGED):
                self._columns[column + FIRST] = _Column(WHOLE, folder)
                self.add(column + FIRST, 0)

    def close(self) -> None:
        """Give the files back, whatever they hold."""
        for column in self._columns.values():
            column.close()

    def add(self, column: str, *values: int | float) -> None:
        """Add numbers to a column."""
        self._columns[column].numbers.extend(values)

    def add_bytes(self, column: str, data: bytes) -> None:
        """Add numbers to a column, given as the bytes of 64-bit numbers, or of a column of bytes."""
        self._columns[column].numbers.frombytes(data)

    def add_string(self, column: str, text: str) -> None:
        """Add a text to a column of texts."""
        self.add_bytes(column, text.encode(errors=ERRORS))
        self.end_row(column)

    def end_row(self, column: str) -> None:
        """End a row of a column whose rows have different lengths."""
        self.add(column + FIRST, len(self._columns[column]))

    def spill(self) -> None:
        """Write the numbers of which many are held."""
        for column in self._columns.values():
            column.spill()

    def held(self) -> Register:
        """Return the register, in memory. To be called once, and nothing after it."""
        return Register({name: np.concatenate([*column.taken()]) for name, column in self._columns.items()})

    def write(self, file: BinaryIO) -> None:
        """Write the register to an empty file. To be called once, and nothing after it."""
        order = sorted(self._columns.items(), key=lambda item: -item[1].dtype().itemsize)  # so that all are aligned
        crc = 0
        for part in (_header({name: (column.dtype(), len(column)) for name, column in order}), *_parts(order)):
            crc = zlib.crc32(part, crc)
            file.write(part)
        file.write(crc.to_bytes(4, "little"))

    @property
    def nbytes(self) -> int:
        """Bytes of the file that `write` makes."""
        columns = {name: (column.dtype(), len(column)) for name, column in self._columns.items()}
        return len(_header(columns)) + sum(dtype.itemsize * count for dtype, count in columns.values()) + 4


def kept_register(
    cache: Cache, name: str, kinds: Mapping[str, str], fill: Callable[[GrowingRegister], bool], what: object
) -> Register:
    """Return the register `name` of a cache; where it is missing or damaged one process fills it, and others wait.

    `fill` returns whether it may be kept. Where the cache cannot take it, it is held in memory, and a line says why.
    """
    if (found := _kept(cache, name)) is not None:
        return found
    try:
        with cache.alone(name):
            if (found := _kept(cache, name)) is not None:
                return found
            with closing(GrowingRegister({**kinds, NAME: BYTE}, cache.folder)) as growing:
                growing.add_bytes(NAME, name.encode())
                if not fill(growing):
                    return growing.held()
                cache.keep(name, growing.nbytes, growing.write, f"{what}: what is known of its samples")
        return Register.mapped(cache.folder / name, check=False)
    except ArtefactError:
        raise
    except (OSError, ExpectedError) as error:
        log.warning(f"{what}: what is known of its samples is not kept for the next start ({error})")
    growing = GrowingRegister(kinds)
    fill(growing)
    return growing.held()


def _kept(cache: Cache, name: str) -> Register | None:
    """Return a register of a cache, marked as just used; None where there is none that is whole."""
    path = cache.folder / name
    try:
        found = Register.mapped(path)
        if found[NAME].tobytes() != name.encode():
            raise ArtefactError(f"{path}: the register of another set; {MEND}")
        with suppress(OSError):
            os.utime(path)
        return found
    except OSError:  # there is none, or the cache will say why it takes none
        return None
    except ArtefactError as error:
        log.warning(str(error))
    with suppress(OSError):
        path.unlink()
    return None


def _parts(columns: list[tuple[str, "_Column"]]) -> Iterator[memoryview]:
    for _, column in columns:
        for numbers in column.taken():
            yield numbers.data.cast("B")


def _header(columns: Mapping[str, tuple[np.dtype, int]]) -> bytes:
    """Return the header of the safetensors file of such columns, and of the CRC-32 behind them."""
    lines, end = {}, 0
    for name, (dtype, count) in {**columns, CRC: (TYPES["U8"], 4)}.items():
        begin, end = end, end + dtype.itemsize * count
        lines[name] = {"dtype": NAMES[dtype], "shape": [count], "data_offsets": [begin, end]}
    text = json.dumps(lines).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Piece(NamedTuple):
    """A run of numbers of a column in its file, in the type in which they fit."""

    dtype: np.dtype
    count: int
    begin: int


class _Column:
    """Numbers of one kind."""

    def __init__(self, code: str, folder: Path | None):
        self.numbers = array(code)
        self._pieces = list[_Piece]()
        self._spilled = 0
        self._file = None if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def __len__(self) -> int:
        return self._spilled + len(self.numbers)

    def spill(self) -> None:
        if self._file is None or len(self.numbers) <= HELD:
            return
        some = self._narrowed()
        self._pieces.append(_Piece(some.dtype, len(some), self._file.tell()))
        self._file.write(some.data)
        self._spilled += len(some)
        self.numbers = array(self.numbers.typecode)

    def dtype(self) -> np.dtype:
        """The type in which all numbers fit."""
        return max((*(piece.dtype for piece in self._pieces), self._narrowed().dtype), key=lambda each: each.itemsize)

    def taken(self) -> Iterator[np.ndarray]:
        """All numbers, in pieces; the column is empty afterwards, and its file gone."""
        dtype = self.dtype()
        for piece in self._pieces:
            assert self._file is not None
            self._file.seek(piece.begin)
            data = self._file.read(piece.count * piece.dtype.itemsize)
            yield np.frombuffer(data, piece.dtype).astype(dtype, copy=False)
        self.close()
        yield self._narrowed().astype(dtype, copy=False)
        self.numbers, self._pieces, self._spilled, self._file = array(self.numbers.typecode), [], 0, None

    def close(self) -> None:
        """Give the file back; a full disk may refuse its last bytes, which nobody reads any more."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _narrowed(self) -> np.ndarray:
        """Return the numbers that are held, in 32 bits where that is enough; a copy."""
        some = (
            np.frombuffer(self.numbers, self.numbers.typecode) if self.numbers else np.empty(0, self.numbers.typecode)
        )
        fits = some.dtype == np.int64 and (not len(some) or (some.min() >= 0 and some.max() < 1 << 32))
        return some.astype(np.uint32) if fits else some
