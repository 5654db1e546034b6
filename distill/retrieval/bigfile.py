"""BigFile, the exchange format of TeachCLIP's tools: a folder with one float vector per id.

    feature.bin   the vectors, float32, little-endian, row after row
    id.txt        the ids in the same order, joined by one space
    shape.txt     "N D": how many vectors, of how many dimensions

`shape.txt` is written last: without it the folder is not finished.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from distill.errors import ArtefactError, ExpectedError
from distill.publishing import publish

FEATURES, IDS, SHAPE = "feature.bin", "id.txt", "shape.txt"
FLOAT = np.dtype("<f4")


def write_bigfile(folder: Path, ids: Sequence[str], vectors: Float32[np.ndarray, "row dim"]) -> None:
    """Writes a BigFile. The same content there again is kept; other content is refused."""
    assert len(ids) == len(vectors), "one id per vector"
    spaced = [name for name in ids if not name or name.split() != [name]]
    if spaced:
        raise ExpectedError(
            f"{folder}: id {spaced[0]!r} is empty or holds white space, which separates ids in {IDS}; rename the video"
        )
    if (folder / SHAPE).exists():
        found_ids, found = read_bigfile(folder)
        if found_ids != list(ids) or found.tobytes() != vectors.astype(FLOAT).tobytes():
            raise ArtefactError(f"{folder}: already holds another BigFile; choose another folder")
        return
    contents = {
        FEATURES: vectors.astype(FLOAT).tobytes(),
        IDS: " ".join(ids).encode(),
        SHAPE: f"{vectors.shape[0]} {vectors.shape[1]}".encode(),
    }
    for name, content in contents.items():
        publish(folder / name, content)


def read_bigfile(folder: Path) -> tuple[list[str], Float32[np.ndarray, "row dim"]]:
    """Ids and vectors of a BigFile, whoever wrote it."""
    shape = _read(folder / SHAPE).split()
    if len(shape) != 2 or not all(number.isdigit() for number in shape):
        raise ArtefactError(f'{folder / SHAPE}: {b" ".join(shape)[:40]!r}, expected "N D"; write the folder again')
    rows, dim = int(shape[0]), int(shape[1])
    ids, content = _read(folder / IDS).decode(errors="replace").split(), _read(folder / FEATURES)
    if len(ids) != rows:
        raise ArtefactError(f"{folder / IDS}: {len(ids)} ids, expected {rows} as in {SHAPE}; write the folder again")
    if len(content) != rows * dim * FLOAT.itemsize:
        raise ArtefactError(
            f"{folder / FEATURES}: {len(content)} bytes, expected {rows * dim * FLOAT.itemsize} for {rows} x {dim} "
            f"float32 as in {SHAPE}; write the folder again"
        )
    return ids, np.frombuffer(content, FLOAT).reshape(rows, dim)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{path}: cannot be read: {error.strerror}; expected a BigFile ({FEATURES}, {IDS}, {SHAPE})"
        ) from None
