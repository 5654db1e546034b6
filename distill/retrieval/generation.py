"""Generations: a gallery's state between two changes, and the change from one to the next.

    manifest.json                    the current generation: which segments there are, which rows are deleted
    segments/00001/                  what generation 1 added, never changed after (distill/retrieval/segment.py)
    deleted/00003.safetensors        rows [row] that are deleted in generation 3, ascending, numbered over all segments
    approximate/00004.safetensors    an approximate index that generation 4 made (distill/retrieval/approximate.py)
    calibration/00005.safetensors    how its rows fit a bank of queries (distill/retrieval/calibration.py)
    files/, notes/, excluded/        what is known of files beside their rows (distill/retrieval/ledger.py)
    .work/                           what an unfinished index has done so far
    .lock                            held by the one process that changes the gallery

New files come first, under names that no generation used before; then the manifest is replaced, by a rename; then files
that it does not list are deleted. So a process killed at any moment leaves the old or the new generation, and whoever
has the old one open keeps it.
"""

import fcntl
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from pydantic import Field, FiniteFloat, PositiveInt

from distill import publishing
from distill.errors import ArtefactError, placing
from distill.fetching import local_folder
from distill.locks import acquired, open_lock
from distill.manifest import NAME, Manifest, SealedFile, check_files, read_manifest, seal, sealed_file
from distill.records import T, View
from distill.remote import Place
from distill.retrieval import frames, ledger
from distill.retrieval.columns import MEND, damaged, mapped_whole, write_columns
from distill.retrieval.segment import VIDEOS, Segment, merge, sealed_segment

VERSION, READ = 4, (2, 3, 4)  # written, and read
SEGMENTS, DELETED, WORK, LOCK = "segments", "deleted", ".work", ".lock"
APPROXIMATE, CALIBRATION = "approximate", "calibration"
DERIVED = (APPROXIMATE, CALIBRATION)  # made of rows as they are numbered
BESIDE = (DELETED, *DERIVED, *ledger.KINDS)  # folders of files, of which a generation lists at most one each
PLACES = re.compile(rf"{SEGMENTS}/[0-9]+/[^/]+|({'|'.join(BESIDE)})/[^/]+")  # of files
TRIES = 5  # to read a gallery that others keep changing


class _Facts(View):
    """Facts about a file that was made of the first rows of a gallery."""

    file: str
    covers: PositiveInt  # rows


class _ApproximateFacts(_Facts):
    depth: PositiveInt
    recall: float = Field(alias="recall@10")


class _CalibrationFacts(_Facts):
    queries: int
    weakest: FiniteFloat | None = None


class GalleryConfig(View):
    """The settings of a gallery that readers need."""

    release: str  # path
    vectors: str  # how they are stored
    folders: list[str]  # of video files
    made_of: list[dict[str, Any]] = Field(default=[])
    tokens: list[str] = Field(default=[])  # of the second stage, if there is one
    stored_frames: str = frames.NONE  # how frames are stored beside the vectors of a model of one stage
    approximate: _ApproximateFacts | None = None
    calibration: _CalibrationFacts | None = None


def local(place: Place) -> Path:
    """Return the folder of a gallery, also of one of the Hub, which is fetched."""
    return local_folder(place, "gallery", *READ)


def read(path: Path) -> Manifest:
    """The manifest of the current generation; files are compared by size, not by hash."""
    return opened(path, lambda manifest: manifest)


def opened(path: Path, use: Callable[[Manifest], T]) -> T:
    """Uses the manifest of the current generation; again, if another process has replaced it and deleted its files."""
    for attempt in itertools.count(1):
        manifest = read_manifest(path, "gallery", *READ)
        _check(path, manifest)
        try:
            check_files(path, manifest, verify=False)
            return use(manifest)
        except (ArtefactError, OSError):
            if attempt == TRIES or current(path, manifest):
                raise
    raise AssertionError("unreachable")


def _check(path: Path, manifest: Manifest) -> None:
    """Refuses a manifest that does not say what others take for granted."""
    config, counts = manifest.view(GalleryConfig, path), manifest.counts
    if not {"videos", "rows", "dim", "generation"} <= counts.keys():
        raise damaged(path / NAME, f"counts {', '.join(counts)} alone")
    sound = {
        "config": None not in manifest.config.values(),
        "parents.release": "release" in manifest.parents,
        "files": all(PLACES.fullmatch(name) for name in manifest.files),
        **{
            made.file: made.file in manifest.files and made.covers <= counts["rows"]
            for made in (config.approximate, config.calibration)
            if made is not None
        },
    }
    odd = [where for where, well in sound.items() if not well]
    if odd:
        raise damaged(path / NAME, odd[0])
    found = sum(segments(manifest).values())
    if found != counts["rows"] or counts["videos"] > found:
        raise damaged(path / NAME, f"{counts['rows']} rows of {counts['videos']} videos, but segments hold {found}")


def known(manifest: Manifest) -> GalleryConfig:
    """Return the config of a manifest that `read` gave."""
    return GalleryConfig.model_validate(manifest.config)


def current(path: Path, manifest: Manifest) -> bool:
    """Whether this is the current generation."""
    return read_manifest(path, "gallery", *READ).id == manifest.id


def stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever the manifest is replaced, without reading it; None if it cannot be opened.

    Two equal stamps are one generation; two that differ may be one too. The file is opened, because file systems of a
    network may answer for a name from memory, but ask the server when it is opened.
    """
    try:
        file = os.open(path / NAME, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in its place must not be waited for
    except OSError:
        return None
    try:
        known = os.fstat(file)
    finally:
        os.close(file)
    return known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns


def segments(manifest: Manifest) -> dict[str, int]:
    """The names of the segments in the order of their rows, and how many each has, deleted ones included."""
    named = {Path(name): file.rows for name, file in manifest.files.items() if Path(name).name == VIDEOS}
    return {name.parent.name: named[name] for name in sorted(named, key=lambda name: int(name.parent.name))}


def deleted_rows(path: Path, manifest: Manifest) -> Int64[np.ndarray, " row"]:
    """Rows that are deleted, ascending."""
    for name in manifest.files:
        if Path(name).parts[0] == DELETED:
            rows = mapped_whole(path / name, MEND, rows=(1, np.int64))["rows"]
            if (np.diff(rows) <= 0).any():
                raise damaged(path / name, "'rows' do not ascend")
            return rows
    return np.empty(0, np.int64)


def write_merged(
    path: Path, number: int, parts: Sequence[tuple[Segment, Int64[np.ndarray, " _"]]]
) -> tuple[Segment, dict[str, SealedFile]]:
    """Writes the segment of a generation as `segment.merge` does; returns it, and its files for the manifest."""
    folder = path / SEGMENTS / f"{number:05d}"
    merge(folder, parts)
    return Segment(folder), {f"{SEGMENTS}/{folder.name}/{name}": file for name, file in sealed_segment(folder).items()}


def without(files: Mapping[str, SealedFile], *folders: str) -> dict[str, SealedFile]:
    """Return the files of a manifest that are not in these folders."""
    return {name: file for name, file in files.items() if Path(name).parts[0] not in folders}


def write_deleted(path: Path, number: int, rows: Int64[np.ndarray, " row"]) -> dict[str, SealedFile]:
    """Write the rows that are deleted in a generation, ascending; return the file for its manifest."""
    name = f"{DELETED}/{number:05d}.safetensors"
    write_columns(path / name, {"rows": rows})
    return {name: sealed_file(path / name, len(rows))}


@contextmanager
def changing(path: Path) -> Iterator[Manifest | None]:
    """The only process that may change a gallery, until it is left; gives the current generation, if there is one.

    What a killed change has left, after it published too, is deleted first: there may be nothing else left to do.
    """
    names = {child.name for child in path.iterdir() if child.suffix != ".part"} if path.is_dir() else set()
    if NAME not in names and names - {SEGMENTS, *BESIDE, WORK, LOCK}:
        raise ArtefactError(f"{path}: exists and was not begun by tools/index.py; choose an empty or new folder")
    with placing(path):
        path.mkdir(parents=True, exist_ok=True)
    lock, how = path / LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB
    with open_lock(lock) as file:
        if not acquired(lock, lambda: fcntl.flock(file, how)):  # let go by the system, however the process ends
            raise ArtefactError(f"{path}: another process is changing this gallery; wait for it, then try again")
        before = read(path) if (path / NAME).is_file() else None
        sweep(path, before)
        yield before


def publish(path: Path, manifest: Manifest) -> Manifest:
    """Makes this the current generation, and deletes what it does not list."""
    seal(path, manifest)
    sweep(path, manifest)
    return manifest


def sweep(path: Path, manifest: Manifest | None) -> None:
    """Deletes what neither a killed change nor an older generation needs any more."""
    listed = set() if manifest is None else {path / name for name in manifest.files}
    publishing.sweep(path)
    for folder in (SEGMENTS, *BESIDE):
        for child in (path / folder).iterdir() if (path / folder).is_dir() else ():
            if child.is_dir() and not any(child in file.parents for file in listed):
                shutil.rmtree(child)
            elif child.is_file() and child not in listed:
                child.unlink()
