"""Filters of a search: which files of a gallery are meant, by their folder and by how long they last.

The facts that filters and lists of files need are read once per segment, the first time that they are asked for.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NotRequired

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64
from pydantic import with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from distill.errors import ExpectedError
from distill.records import STRICT


@dataclass(frozen=True)
class Where:
    """The files that a search is limited to; the default is all of them.

    Raises `ExpectedError` for a least length above the greatest, and for lengths that are no numbers.
    """

    folder: str = ""  # a path below the video folder: files in it and in folders below it; "": all
    min_seconds: float | None = None  # of a whole file
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        least, most = self.lengths
        if not least <= most:
            raise ExpectedError(f"min_seconds: {least:g} is above max_seconds, {most:g}; no video lasts that long")

    @property
    def lengths(self) -> tuple[float, float]:
        """The least and the greatest length of a file, in seconds."""
        return self.min_seconds or 0.0, math.inf if self.max_seconds is None else self.max_seconds

    @property
    def parts(self) -> tuple[str, ...]:
        """The folder, name by name."""
        return PurePosixPath(self.folder).parts


@with_config(STRICT)
class Filed(TypedDict):
    """The keys of a row's line (`StoredVideo`) that filters need."""

    id: str
    source: str
    duration: float
    file: NotRequired[str]


@with_config(STRICT)
class FiledRows(TypedDict):
    """Several of them."""

    rows: list[Filed]


class Facts:
    """The facts of a segment's rows that filters need, as arrays in memory.

    Reading them takes about 8 seconds for a million rows, whose lines are 180 MB, and holding them 20 bytes a row.
    """

    def __init__(self, rows: Iterable[tuple[int, str, float]]):
        """Take the hash of the id of its file, the path and the seconds of every row."""
        numbers: dict[str, int] = {}  # of folders
        found = [(file, numbers.setdefault(path.rpartition("/")[0], len(numbers)), last) for file, path, last in rows]
        files, folders, seconds = zip(*found, strict=True) if found else ((), (), ())
        self.files: Int64[np.ndarray, " row"] = np.array(files, np.int64)
        self.folders: Int32[np.ndarray, " row"] = np.array(folders, np.int32)
        self.seconds: Float64[np.ndarray, " row"] = np.array(seconds, np.float64)
        self.names = [PurePosixPath(name).parts for name in numbers]

    def fit(self, where: Where) -> Bool[np.ndarray, " row"]:
        """Return which rows are of the files that are meant."""
        least, most = where.lengths
        inside = np.array([name[: len(where.parts)] == where.parts for name in self.names], np.bool_)
        return inside[self.folders] & (self.seconds >= least) & (self.seconds <= most)

    def counts(self, rows: Int64[np.ndarray, " some"]) -> Counter[str]:
        """Return how many of some rows are in each folder or below it, by its path."""
        found: Counter[str] = Counter()
        for name, number in zip(self.names, np.bincount(self.folders[rows], minlength=len(self.names)), strict=True):
            if number:
                found.update({"/".join(name[:depth]): int(number) for depth in range(1, len(name) + 1)})
        return found
