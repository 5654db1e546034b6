"""Columns: the arrays of a safetensors file of a gallery, mapped into memory and not read; only what is used gets read.

    tokens.safetensors   `vector` and the model's `rerank_fields` of `VideoFeatures`, each [video, ...]

All that a gallery stores is a numpy array here; distill/retrieval/stored.py hands tokens to PyTorch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from distill.data.tensorfile import make_header, read_header
from distill.errors import ArtefactError, check_regular
from distill.publishing import publish

Columns = Mapping[str, np.ndarray]
AXES = {  # of what may be stored as tokens; those of one name are of one size
    "vector": "video dim",
    "frames": "video frame dim",
    "contextual": "video frame dim",
    "patches": "video frame patch dim",
    "concepts": "video concept dim",
    "reading": "video concept frame",
    "relevance": "video frame",
    "real": "video frame",
}
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
MEND = "restore it, or index again with tools/index.py"


def damaged(path: Path, found: str, mend: str = MEND) -> ArtefactError:
    """Return the error for a file of a gallery that is not as it was written."""
    return ArtefactError(f"{path}: damaged ({found}); {mend}")


def mapped(path: Path, mend: str = MEND) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file: the file is mapped to be read alone, and only what is used gets read.

    safetensors itself maps it to be changed in private, for which Linux sets memory aside: a file larger than the
    memory could not be opened.
    """
    check_regular(path)
    try:
        with safe_open(path, "np"):  # which checks that the tensors fill the file
            whole = np.memmap(path, np.uint8, "r")
    except (SafetensorError, ValueError) as error:
        raise damaged(path, f"not whole: {error}", mend) from None
    header = read_header(lambda begin, size: whole[begin : begin + size].tobytes(), len(whole), path, mend)
    content, found = whole.view(np.ndarray), {}
    for name, entry in header.items():
        if entry.dtype not in DTYPES:
            raise damaged(path, f"{name!r} is {entry.dtype}", mend)
        found[name] = content[entry.begin : entry.end].view(DTYPES[entry.dtype]).reshape(entry.shape)
    return found


def mapped_whole(path: Path, mend: str, **expected: tuple[int, type]) -> dict[str, np.ndarray]:
    """Return `mapped` arrays that must be these, with so many axes; `mend` ends the error where they are not."""
    found = mapped(path, mend)
    if {name: (value.ndim, value.dtype) for name, value in found.items()} != expected:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in found.items())
        raise damaged(path, f"holds {shapes}", mend)
    return found


def mapped_tokens(path: Path) -> dict[str, np.ndarray]:
    """Return the tokens of a file: numbers in float16, masks, each with the axes of its name."""
    found = mapped(path)
    sizes: dict[str, int] = {}
    for name, value in found.items():
        axes = AXES.get(name, "").split()
        fits = len(axes) == value.ndim and value.dtype == (np.bool_ if name == "real" else np.float16)
        if not fits or any(sizes.setdefault(*axis) != axis[1] for axis in zip(axes, value.shape, strict=True)):
            raise damaged(path, f"{name!r} is {value.dtype} {list(value.shape)}")
    if "vector" not in found:
        raise damaged(path, "no 'vector'")
    return found


def write_columns(path: Path, columns: Columns) -> None:
    """Publishes arrays as a safetensors file."""
    publish(path, save({name: np.ascontiguousarray(value) for name, value in columns.items()}))


def read_rows(columns: Columns, rows: slice | Int64[np.ndarray, " row"]) -> dict[str, np.ndarray]:
    """Read rows of columns, and no others."""
    return {name: column[rows] for name, column in columns.items()}


def joined(tables: Sequence[Columns]) -> dict[str, np.ndarray]:
    """Join tables of the same columns, row after row."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def row_bytes(columns: Columns) -> int:
    """Bytes of one row."""
    return sum(value[0].nbytes for value in columns.values())


class ColumnWriter:
    """Writes a file batch by batch, so that no more than a batch is held."""

    def __init__(self, file: BinaryIO, rows: int):
        self.file, self.rows, self.written = file, rows, 0
        self.places: dict[str, int] = {}  # byte where each column begins

    def append(self, columns: Columns) -> None:
        """The next rows; all batches have the same columns and sizes."""
        if not self.places:
            kinds = {dtype: name for name, dtype in DTYPES.items()}
            row = {name: (kinds[value.dtype], value.shape[1:], value[0].nbytes) for name, value in columns.items()}
            header, self.places = make_header(row, self.rows)
            self.file.write(header)
        for name, value in columns.items():
            self.file.seek(self.places[name] + self.written * value[0].nbytes)
            self.file.write(value.tobytes())
        self.written += len(next(iter(columns.values())))
