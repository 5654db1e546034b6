"""The header of a safetensors file, for tensors that are read inside a larger file, mapped, or written in pieces.

The format: eight bytes with the length of the header, the header (JSON: type, shape and place of every tensor), then
the numbers. The library reads and writes whole files only.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from distill.errors import ArtefactError
from distill.records import View, parsed

BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "U32": 4,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}  # of a number


class Entry(NamedTuple):
    """A stored tensor, and where its bytes begin and end, counted from the start of the safetensors file."""

    dtype: str  # one of `BYTES`
    shape: list[int]
    begin: int
    end: int


class _Line(View):
    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]  # counted from the end of the header


class _Header(BaseModel):
    """Every key but one names a tensor."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, _Line]  # pyrefly: ignore[bad-override-mutable-attribute]
    metadata: dict[str, str] | None = Field(default=None, alias="__metadata__")


def read_header(read: Callable[[int, int], bytes], size: int, where: object, mend: str) -> dict[str, Entry]:
    """Return where each tensor of a file of `size` bytes stands; `read(offset, bytes)` reads a piece of the file.

    Raises `ArtefactError` about `where`, with the advice `mend`, for a header that does not fit its file.
    """
    start = 8 + int.from_bytes(read(0, min(8, size)), "little")
    if start > size:
        raise ArtefactError(f"{where}: damaged (its header is longer than itself); {mend}")
    entries = {}
    for name, line in parsed(_Header, read(8, start - 8), where, mend).__pydantic_extra__.items():
        each, (begin, end) = BYTES.get(line.dtype), (start + offset for offset in line.data_offsets)
        if each is None or not begin <= end <= size or end - begin != math.prod(line.shape) * each:
            raise ArtefactError(
                f"{where}: damaged ({name!r} is {line.dtype} {line.shape} in {end - begin} bytes); {mend}"
            )
        entries[name] = Entry(line.dtype, line.shape, begin, end)
    return entries


def make_header(row: Mapping[str, tuple[str, Sequence[int], int]], rows: int) -> tuple[bytes, dict[str, int]]:
    """Return the header of a file of tensors with `rows` rows each, and the byte where each begins.

    `row` tells the type of a tensor, and the shape and the bytes of one row. Tensors stand in the order given; where
    the widest types come first, all are aligned.
    """
    lines, end = {}, 0
    for name, (dtype, shape, size) in row.items():
        begin, end = end, end + rows * size
        lines[name] = {"dtype": dtype, "shape": [rows, *shape], "data_offsets": [begin, end]}
    text = json.dumps(lines, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begins = {name: 8 + len(text) + line["data_offsets"][0] for name, line in lines.items()}
    return len(text).to_bytes(8, "little") + text, begins
