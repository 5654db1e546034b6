"""Generations: a gallery's state between two changes, and the change from one to the next.

    manifest.json                    the current generation: which segments there are, which rows are deleted
    segments/00001/                  what generation 1 added, never changed after (distill/retrieval/segment.py)
    deleted/00003.safetensors        rows [row] that are deleted in generation 3, ascending, numbered over all segments
    approximate/00004.safetensors    an approximate index that generation 4 made (distill/retrieval/approximate.py)
    calibration/00005.safetensors    how its rows fit a bank of queries (distill/retrieval/calibration.py)
    .work/                           what an unfinished index has done so far
    .lock                            held by the one process that changes the gallery

New files come first, under names that no generation used before; then the manifest is replaced, by a rename; then files
that it does not list are deleted. So a process killed at any moment leaves the old or the new generation, and whoever
has the old one open keeps it.
"""

import fcntl
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from pydantic import Field, PositiveInt
from safetensors.torch import save
from torch import Tensor

from distill import publishing
from distill.errors import ArtefactError, check_regular
from distill.manifest import NAME, Manifest, check_files, read_manifest, seal
from distill.records import View
from distill.retrieval.segment import VIDEOS
from distill.retrieval.stored import damaged, mapped

VERSION = 2
SEGMENTS, DELETED, WORK, LOCK = "segments", "deleted", ".work", ".lock"
APPROXIMATE, CALIBRATION = "approximate", "calibration"
DERIVED = (APPROXIMATE, CALIBRATION)  # made of rows as they are numbered
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


class GalleryConfig(View):
    """The settings of a gallery that readers need."""

    release: str  # path
    vectors: str  # how they are stored
    folders: list[str]  # of video files
    made_of: list[dict[str, Any]] = Field(default=[])
    tokens: list[str] = Field(default=[])  # of the second stage, if there is one
    approximate: _ApproximateFacts | None = None
    calibration: _CalibrationFacts | None = None


def read(path: Path) -> Manifest:
    """The manifest of the current generation; files are compared by size, not by hash."""
    for attempt in itertools.count(1):
        manifest = read_manifest(path, "gallery", VERSION)
        _check(path, manifest)
        try:
            check_files(path, manifest, verify=False)
        except (ArtefactError, OSError):
            if attempt < TRIES and not current(path, manifest):
                continue  # another process has replaced this generation just now, and deleted its files
            raise
        return manifest
    raise AssertionError("unreachable")


def _check(path: Path, manifest: Manifest) -> None:
    """Refuses a manifest that does not say what others take for granted."""
    config, counts = manifest.view(GalleryConfig, path), manifest.counts
    if not {"videos", "rows", "dim", "generation"} <= counts.keys():
        raise damaged(path / NAME, f"counts {', '.join(counts)} alone")
    sound = {
        "config": None not in manifest.config.values(),
        "parents.release": "release" in manifest.parents,
        "files": all(_placed(name) for name in manifest.files),
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


def _placed(name: str) -> bool:
    """Whether a file lies where those of a gallery do."""
    match Path(name).parts:
        case [folder, number, _]:
            return folder == SEGMENTS and number.isascii() and number.isdigit()
        case [folder, _]:
            return folder in (DELETED, *DERIVED)
    return False


def current(path: Path, manifest: Manifest) -> bool:
    """Whether this is the current generation."""
    return read_manifest(path, "gallery", VERSION).id == manifest.id


def segments(manifest: Manifest) -> dict[str, int]:
    """The names of the segments in the order of their rows, and how many each has, deleted ones included."""
    named = {Path(name): file.rows for name, file in manifest.files.items() if Path(name).name == VIDEOS}
    return {name.parent.name: named[name] for name in sorted(named, key=lambda name: int(name.parent.name))}


def deleted_rows(path: Path, manifest: Manifest) -> Int64[Tensor, " row"]:
    """Rows that are deleted, ascending."""
    names = [name for name in manifest.files if Path(name).parts[0] == DELETED]
    if not names:
        return torch.empty(0, dtype=torch.int64)
    rows = mapped(path / names[0]).get("rows", torch.empty(0))
    if rows.dtype != torch.int64 or rows.dim() != 1 or (rows.diff() <= 0).any():
        raise damaged(path / names[0], f"'rows' are {rows.dtype} {list(rows.shape)}, or do not ascend")
    return rows


def write_deleted(path: Path, generation: int, rows: Int64[Tensor, " row"]) -> str:
    """Writes the file of deleted rows of a generation; returns its name in the manifest."""
    name = f"{DELETED}/{generation:05d}.safetensors"
    publishing.publish(path / name, save({"rows": rows}))
    return name


@contextmanager
def changing(path: Path) -> Iterator[Manifest | None]:
    """The only process that may change a gallery, until it is left; gives the current generation, if there is one."""
    if path.is_dir() and not (path / NAME).exists() and any(not _ours(child) for child in path.iterdir()):
        raise ArtefactError(f"{path}: exists and was not begun by tools/index.py; choose an empty or new folder")
    path.mkdir(parents=True, exist_ok=True)
    check_regular(path / LOCK)
    try:
        file = (path / LOCK).open("a")
    except OSError as error:
        raise ArtefactError(f"{path / LOCK}: cannot be locked ({error.strerror}); delete it") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however the process ends
        except OSError:
            raise ArtefactError(
                f"{path}: another process is changing this gallery; wait for it, then try again"
            ) from None
        yield read(path) if (path / NAME).is_file() else None


def publish(path: Path, manifest: Manifest) -> Manifest:
    """Makes this the current generation, and deletes what it does not list."""
    seal(path, manifest)
    sweep(path, manifest)
    return manifest


def sweep(path: Path, manifest: Manifest | None) -> None:
    """Deletes what neither a killed change nor an older generation needs any more."""
    listed = set() if manifest is None else {path / name for name in manifest.files}
    publishing.sweep(path)
    for folder in (SEGMENTS, DELETED, *DERIVED):
        for child in (path / folder).iterdir() if (path / folder).is_dir() else ():
            if child.is_dir() and not any(child in file.parents for file in listed):
                shutil.rmtree(child)
            elif child.is_file() and child not in listed:
                child.unlink()


def _ours(path: Path) -> bool:
    return path.name in (SEGMENTS, DELETED, *DERIVED, WORK, LOCK) or path.suffix == ".part"
