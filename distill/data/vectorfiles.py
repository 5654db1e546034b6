"""Vectors that were computed elsewhere: the files of a folder, by the ids of videos and the texts of captions.

Either `*.safetensors`, with a tensor `sentence/TEXT` [dim] for every caption, and `vector/ID` [dim], `frames/ID`
[frame, dim] and `timestamps/ID` [frame] (seconds) of every video; or `*.parquet`, with the columns `text` and
`sentence`, or `id`, `vector`, `frames` and `timestamps`, a row each. Names are keys and never paths. No other file of
the folder is opened, so none that could hold code (pickle) is.
"""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from distill.errors import ArtefactError, check_regular, first_few
from distill.manifest import file_sha256
from distill.records import json_sha256

FIELDS = ("sentence", "vector", "frames", "timestamps")
KEYS = {"text": ("sentence",), "id": ("vector", "frames", "timestamps")}  # columns of Parquet files
SUFFIXES = (".safetensors", ".parquet")
# What the libraries raise for files that are damaged, or hold something else than numbers.
UNREADABLE = (SafetensorError, OSError, ValueError, TypeError, AttributeError, NotImplementedError, MemoryError)
Read = Callable[[], Tensor]


class VectorFiles:
    """The vectors of a folder by field and key, read when they are asked for; `id` is the sha256 over all its files.

    Raises `ArtefactError` for a folder without such files or with both kinds, a damaged file, and a key that stands
    twice.
    """

    def __init__(self, folder: Path):
        self.folder, self.paths = folder, _paths(folder)
        self._places: dict[str, dict[str, Read]] = {field: {} for field in FIELDS}
        for path in self.paths:
            check_regular(path)
            self._open(path) if path.suffix == SUFFIXES[0] else self._open_table(path)
        self.id = json_sha256({path.name: file_sha256(path) for path in self.paths})

    def keys(self, field: str) -> Collection[str]:
        """Return the texts or ids that have this field."""
        return self._places[field].keys()

    def read(self, field: str, key: str) -> Tensor:
        """Return one tensor in double precision; raise `ArtefactError` where it is none of real numbers."""
        try:
            found = self._places[field][key]()
        except UNREADABLE as error:
            raise self.wrong(field, key, f"cannot be read ({error})") from None
        if not found.is_floating_point():
            raise self.wrong(field, key, f"is {found.dtype}, expected real numbers")
        return found.double()

    def wrong(self, field: str, key: str, what: str) -> ArtefactError:
        """Return the error that something is wrong with one tensor."""
        return ArtefactError(f"{self.folder}: {field} of {key!r:.200} {what}; write it again")

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"{path}: not safetensors ({error}); write it again") from None
        for name in names:
            field, _, key = name.partition("/")
            self._add(path, field, key, partial(file.get_tensor, name))

    def _open_table(self, path: Path) -> None:
        """Take the columns of a Parquet file into memory."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise ArtefactError(f"{path}: Parquet needs pyarrow; pip install 'retrieval-distill[export]'") from None
        try:
            table = parquet.read_table(path)
            named = [name for name in KEYS if name in table.column_names]
            keys = table.column(named[0]).to_pylist() if len(named) == 1 else [0]
        except (pyarrow.ArrowException, *UNREADABLE) as error:
            raise ArtefactError(f"{path}: not Parquet ({error}); write it again") from None
        if not all(isinstance(key, str | None) for key in keys):
            raise ArtefactError(
                f"{path}: has the columns {first_few(table.column_names)}, expected one of text and id, of strings; "
                f"write it again"
            )
        for field in KEYS[named[0]]:
            if field not in table.column_names:
                continue
            for key, cell in zip(keys, table.column(field), strict=True):
                if cell.is_valid:
                    self._add(path, field, key, partial(_numbers, cell))

    def _add(self, path: Path, field: str, key: str | None, read: Read) -> None:
        if field not in FIELDS or not key:
            expected = ", ".join(f"{field}/..." for field in FIELDS)
            raise ArtefactError(f"{path}: holds {f'{field}/{key}'!r:.200}, expected {expected}; write it again")
        if key in self._places[field]:
            raise self.wrong(field, key, "stands twice")
        self._places[field][key] = read


def _paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; expected one with *.safetensors or *.parquet files of vectors")
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len({path.suffix for path in paths}) != 1:
        found = first_few(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ArtefactError(
            f"{folder}: holds {found}, expected *.safetensors or *.parquet files, of one kind; docs/labels.md has the "
            f"format (nothing else is opened)"
        )
    return paths


def _numbers(cell: Any) -> Tensor:
    """Return an Arrow cell, a list of numbers or of equally long lists of numbers, as a tensor; null is NaN."""
    values, shape = cell.values, [len(cell.values)]
    while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        lengths = set(values.value_lengths().to_pylist())
        if len(lengths) != 1 or None in lengths:
            raise ValueError("its rows differ in length")
        shape.append(lengths.pop())
        values = values.flatten()
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy()).reshape(shape)
