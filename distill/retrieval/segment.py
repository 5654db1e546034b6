"""Segments: some rows of a gallery in a folder that is written once and mapped into memory ever after.

    vectors.safetensors    vectors [row, dim] (distill/retrieval/vectors.py) and frame_weights [row, frame]
    frames.safetensors     frames of models of one stage (distill/retrieval/frames.py), unless they were not wanted
    tokens.safetensors     what a second stage scores (distill/retrieval/columns.py); only for models that rerank
    videos.jsonl           one line per row: id, source, timestamps and duration in seconds; of a span also file, span
    rows.safetensors       lines [row + 1]: the byte where each line begins; hashes, rows: the ids, to be looked up
    captions.safetensors   vectors [caption, dim], rows, lines; captions.jsonl: id and text. Only if asked for
    posters.bin            a small JPEG of each row, of the frame that weighs most; a row may have none
    posters.safetensors    starts [row + 1]: the byte where each begins

Segments are merged into others when an index is done, and to compact a gallery. Only rows that are asked for are read.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from jaxtyping import Int64
from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from distill.data.videos import StoredCaption
from distill.log import progress
from distill.manifest import SealedFile, sealed_file
from distill.publishing import published
from distill.records import STRICT, canonical_json, parsed
from distill.retrieval.columns import (
    MEND,
    Columns,
    ColumnWriter,
    damaged,
    joined,
    mapped,
    mapped_tokens,
    read_rows,
    row_bytes,
    write_columns,
)
from distill.retrieval.frames import Frames
from distill.retrieval.lines import Lines, Pieces, write_lines
from distill.retrieval.vectors import Vectors
from distill.retrieval.where import Facts, Filed, FiledRows

VECTORS, TOKENS, VIDEOS, ROWS = "vectors.safetensors", "tokens.safetensors", "videos.jsonl", "rows.safetensors"
FRAMES = "frames.safetensors"
CAPTIONS, CAPTION_LINES = "captions.safetensors", "captions.jsonl"
POSTERS, POSTER_STARTS = "posters.bin", "posters.safetensors"
INTS, FLOATS = (np.int64,), (np.float32,)
COPY = 2**26  # bytes copied at once
READ = 4096  # lines read at once


@with_config(STRICT)
class StoredVideo(TypedDict):
    """The line of a row; what concerns a span alone is missing where the row is a whole file."""

    id: str
    source: str
    timestamps: list[float]  # seconds
    duration: float  # seconds
    folder: NotRequired[int]  # of the gallery's folders, in which `source` lies
    file: NotRequired[str]  # id of the file that was cut
    span: NotRequired[Annotated[list[float], Field(min_length=2, max_length=2)]]  # begin and end in seconds


def file_of(about: Mapping[str, Any]) -> str:
    """Return the id of the file of a row, which is the row's own unless the file was cut."""
    return about.get("file", about["id"])


class Captions:
    """The captions of the videos of a segment: vectors to search by, and the row that each belongs to."""

    def __init__(self, folder: Path):
        columns = _scored(folder / CAPTIONS, rows=(1, INTS), lines=(1, INTS))
        self.vectors, self.rows = Vectors(columns), columns["rows"]
        self.lines = Lines(folder / CAPTION_LINES, columns["lines"], StoredCaption)
        _same_length(folder / CAPTIONS, len(columns["lines"]) - 1, columns)

    def __len__(self) -> int:
        return len(self.rows)


class Segment:
    """An open segment. Reading is safe from several threads."""

    def __init__(self, folder: Path):
        self.folder = folder
        columns = _scored(folder / VECTORS, frame_weights=(2, FLOATS))
        rows = _columns(folder / ROWS, lines=(1, INTS), hashes=(1, INTS), rows=(1, INTS))
        self.vectors, self.frame_weights = Vectors(columns), columns["frame_weights"]
        self.hashes, self.places = rows["hashes"], rows["rows"]
        self.about = Lines(folder / VIDEOS, rows["lines"], StoredVideo)
        _same_length(folder / VECTORS, len(rows["lines"]) - 1, columns)
        _same_length(folder / ROWS, len(self.hashes), rows)
        self.tokens = mapped_tokens(folder / TOKENS) if (folder / TOKENS).is_file() else None
        if self.tokens is not None:
            _same_length(folder / TOKENS, len(self), self.tokens)
        self.frames = _frames(folder / FRAMES, len(self)) if (folder / FRAMES).is_file() else None
        self.captions = Captions(folder) if (folder / CAPTIONS).is_file() else None
        self.posters: Pieces | None = None
        if (folder / POSTERS).is_file():
            starts = _columns(folder / POSTER_STARTS, starts=(1, INTS))["starts"]
            _same_length(folder / POSTER_STARTS, len(self) + 1, {"starts": starts})
            self.posters = Pieces(folder / POSTERS, starts)

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def facts(self) -> Facts:
        """The facts of every row that filters need; kept, because segments never change."""
        starts = progress(range(0, len(self), READ), f"read the folders of {self.folder.name} (blocks)")
        rows = chain.from_iterable(self._filed(start, min(start + READ, len(self))) for start in starts)
        return Facts((id_hash(file_of(row)), row["source"], row["duration"]) for row in rows)

    def _filed(self, begin: int, end: int) -> list[Filed]:
        where = f"{self.about.path}: lines {begin + 1} to {end}"
        return parsed(FiledRows, self.about.together(begin, end), where, MEND)["rows"]

    def poster(self, row: int) -> bytes:
        """Return the JPEG of a row; nothing if it has none."""
        jpeg = b"" if self.posters is None else self.posters.raw(row)
        if jpeg and not (jpeg.startswith(b"\xff\xd8") and jpeg.endswith(b"\xff\xd9")):
            raise damaged(self.folder / POSTERS, f"row {row} is no JPEG")
        return jpeg

    def find(self, name: str) -> list[int]:
        """The rows of a video, or of all spans of a file, by id."""
        key = np.int64(id_hash(name))
        first, last = (int(np.searchsorted(self.hashes, key, side)) for side in ("left", "right"))
        rows = sorted(self.places[first:last].tolist())
        if rows and not 0 <= rows[0] <= rows[-1] < len(self):
            raise damaged(self.folder / ROWS, f"{name!r} is said to be in row {rows[-1]} of {len(self)}")
        return [row for row in rows if name in (self.about[row]["id"], self.about[row].get("file"))]


def _columns(path: Path, **wanted: tuple[int, Sequence[type]]) -> dict[str, np.ndarray]:
    """The columns of a file, after a look at their number of axes and their types."""
    found = mapped(path)
    for name, (axes, dtypes) in wanted.items():
        if name not in found or found[name].ndim != axes or found[name].dtype not in dtypes:
            is_there = f"is {found[name].dtype} {list(found[name].shape)}" if name in found else "is missing"
            raise damaged(path, f"{name!r} {is_there}")
    return found


def _scored(path: Path, **wanted: tuple[int, Sequence[type]]) -> dict[str, np.ndarray]:
    """The columns of a file of vectors, whose int8 vectors have scales."""
    found = _columns(path, vectors=(2, (np.float32, np.float16, np.int8)), **wanted)
    if (found["vectors"].dtype == np.int8) != ("scales" in found):
        raise damaged(path, "int8 vectors and 'scales' belong together")
    return found if "scales" not in found else _columns(path, **wanted, scales=(1, FLOATS))


def _frames(path: Path, rows: int) -> Frames:
    """Open the frames of a segment."""
    columns = _columns(path, frames=(3, (np.float16, np.int8)), real=(2, (np.bool_,)))
    if (columns["frames"].dtype == np.int8) != ("scales" in columns):
        raise damaged(path, "int8 frames and 'scales' belong together")
    if "scales" in columns:
        _columns(path, scales=(2, FLOATS))
    shapes = {name: list(column.shape[:2]) for name, column in columns.items()}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise damaged(path, f"shapes {shapes}")
    _same_length(path, rows, columns)
    return Frames(columns)


def _same_length(path: Path, rows: int, columns: Columns) -> None:
    odd = [name for name, column in columns.items() if len(column) != rows and name != "lines"]
    if odd:
        raise damaged(path, f"{odd[0]!r} has {len(columns[odd[0]])} rows, not {rows}")


def id_hash(name: str) -> int:
    """64 bits of an id's sha256, as a signed number."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)


def write_segment(
    folder: Path,
    about: Sequence[Mapping[str, Any]],
    columns: Columns,
    tokens: Columns | None,
    captions: tuple[Sequence[Mapping[str, Any]], Columns] | None,
    posters: Sequence[bytes] = (),
    frames: Columns | None = None,
) -> None:
    """Writes a segment that fits into memory. `captions`: their lines, and the columns `vectors` (...) and `rows`."""
    write_columns(folder / VECTORS, columns)
    for name, table in ((TOKENS, tokens), (FRAMES, frames)):
        if table is not None:
            write_columns(folder / name, table)
    names = [(id_hash(name), row) for row, a in enumerate(about) for name in {a["id"], file_of(a)}]
    hashes, rows = np.array(sorted(names), np.int64).reshape(-1, 2).T
    starts = write_lines(folder / VIDEOS, (canonical_json(a) + b"\n" for a in about))
    write_columns(folder / ROWS, {"lines": starts, "hashes": hashes, "rows": rows})
    if captions is not None:
        starts = write_lines(folder / CAPTION_LINES, (canonical_json(a) + b"\n" for a in captions[0]))
        write_columns(folder / CAPTIONS, {**captions[1], "lines": starts})
    if posters:
        _write_posters(folder, posters)


def merge(folder: Path, parts: Sequence[tuple[Segment, Int64[np.ndarray, " _"]]]) -> None:
    """Writes a segment of the given rows (ascending) of others, reading a little of them at a time."""
    parts = [(segment, rows) for segment, rows in parts if len(rows)]
    assert parts, "a segment has rows"
    rows = sum(len(rows) for _, rows in parts)
    _copy(folder / VECTORS, rows, [({"frame_weights": s.frame_weights} | s.vectors.columns, keep) for s, keep in parts])
    if parts[0][0].tokens is not None:
        _copy(folder / TOKENS, rows, [(s.tokens, keep) for s, keep in parts if s.tokens is not None])
    if parts[0][0].frames is not None:
        _copy(folder / FRAMES, rows, [(s.frames.columns, keep) for s, keep in parts if s.frames is not None])
    starts = write_lines(folder / VIDEOS, (s.about.raw(row) for s, keep in parts for row in keep.tolist()))
    if any(segment.posters is not None for segment, _ in parts):
        _write_posters(folder, (segment.poster(row) for segment, keep in parts for row in keep.tolist()))
    hashes, places, captions, base = [], [], [], 0
    for segment, keep in parts:
        number = np.full(len(segment), -1)  # of each row in the new segment
        number[keep] = np.arange(base, base + len(keep))
        base += len(keep)
        kept = number[segment.places] >= 0
        hashes.append(segment.hashes[kept])
        places.append(number[segment.places[kept]])
        if segment.captions is not None:
            of = number[segment.captions.rows]
            captions.append((segment.captions, np.flatnonzero(of >= 0), of[of >= 0]))
    together = np.concatenate(hashes)
    order = np.argsort(together, kind="stable")
    of_ids = {"hashes": together[order], "rows": np.concatenate(places)[order]}
    write_columns(folder / ROWS, {"lines": starts} | of_ids)
    captions = [part for part in captions if len(part[1])]
    if captions:
        lines = (some.lines.raw(caption) for some, keep, _ in captions for caption in keep.tolist())
        starts = write_lines(folder / CAPTION_LINES, lines)
        vectors = joined([read_rows(some.vectors.columns, keep) for some, keep, _ in captions])
        write_columns(
            folder / CAPTIONS, {**vectors, "rows": np.concatenate([of for _, _, of in captions]), "lines": starts}
        )


def sealed_segment(folder: Path) -> dict[str, SealedFile]:
    """The files of a segment by name, hashed; each with the number of its rows."""
    rows = len(mapped(folder / ROWS)["lines"]) - 1
    return {path.name: sealed_file(path, rows) for path in sorted(folder.iterdir())}


def _write_posters(folder: Path, posters: Iterable[bytes]) -> None:
    """Write the JPEGs of all rows, unless all are empty."""
    starts = write_lines(folder / POSTERS, posters)
    if starts[-1]:
        write_columns(folder / POSTER_STARTS, {"starts": starts})
    else:
        (folder / POSTERS).unlink()


def _copy(path: Path, total: int, parts: Sequence[tuple[Columns, Int64[np.ndarray, " _"]]]) -> None:
    """Writes the given rows of all columns, the widest numbers first so that all stay aligned."""
    with published(path) as file:
        writer = ColumnWriter(file, total)
        for columns, rows in parts:
            ordered = dict(sorted(columns.items(), key=lambda item: -item[1].itemsize))
            size = max(1, COPY // row_bytes(ordered))
            for start in range(0, len(rows), size):
                writer.append(read_rows(ordered, rows[start : start + size]))
