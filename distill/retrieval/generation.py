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

import torch
from jaxtyping import Int64
from safetensors.torch import save
from torch import Tensor

from distill import publishing
from distill.errors import ArtefactError, check_regular
from distill.manifest import NAME, Manifest, check_files, read_manifest, seal
from distill.publishing import published
from distill.retrieval.segment import VIDEOS
from distill.retrieval.stored import damaged, mapped

VERSION = 2
SEGMENTS, DELETED, WORK, LOCK = "segments", "deleted", ".work", ".lock"
APPROXIMATE, CALIBRATION = "approximate", "calibration"
DERIVED = {  # made of rows as they are numbered, and the facts without which they cannot be used or shown
    APPROXIMATE: {"covers": int, "depth": int, "recall@10": float},
    CALIBRATION: {"covers": int, "queries": int},
}
TRIES = 5  # to read a gallery that others keep changing


def read(path: Path) -> Manifest:
    """The manifest of the current generation; files are compared by size, not by hash."""
    for attempt in itertools.count(1):
        manifest = read_manifest(path, "gallery", VERSION)
        _check_config(path, manifest)
        try:
            check_files(path, manifest, verify=False)
        except (ArtefactError, OSError):
            if attempt < TRIES and not current(path, manifest):
                continue  # another process has replaced this generation just now, and deleted its files
            raise
        return manifest
    raise AssertionError("unreachable")


def _check_config(path: Path, manifest: Manifest) -> None:
    """Looks at what others take for granted."""
    config, counts = manifest.config, manifest.counts
    tokens = config.get("tokens")
    sound = {
        "config.release": isinstance(config.get("release"), str),
        "config.vectors": isinstance(config.get("vectors"), str),
        "config.folders": _strings(config.get("folders")),
        "config.tokens": "tokens" not in config or _strings(tokens),
        **{f"config.{kind}": kind not in config or _whole(kind, config[kind], manifest) for kind in DERIVED},
        "counts": {"videos", "rows", "dim", "generation"} <= counts.keys() and min(counts.values()) >= 0,
        "parents.release": "release" in manifest.parents,
        "files": all(_placed(name) for name in manifest.files),
    }
    odd = [where for where, well in sound.items() if not well]
    if odd:
        raise ArtefactError(f"{path / NAME}: damaged at {odd[0]}; restore it, or index again with tools/index.py")
    found = sum(segments(manifest).values())
    if found != counts["rows"] or not 0 <= counts["videos"] <= found:
        raise ArtefactError(
            f"{path / NAME}: counts {counts['rows']} rows of {counts['videos']} videos, but its segments hold {found}; "
            f"restore it, or index again with tools/index.py"
        )


def _whole(kind: str, facts: object, manifest: Manifest) -> bool:
    """Whether the facts of an approximate index or a calibration say how to use it."""
    if not isinstance(facts, dict) or not isinstance(facts.get("file"), str) or facts["file"] not in manifest.files:
        return False
    if any(type(facts.get(name)) is not of for name, of in DERIVED[kind].items()):
        return False
    return 0 < facts["covers"] <= manifest.counts.get("rows", 0) and facts.get("depth", 1) > 0


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


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
    with published(path / name) as file:
        file.write(save({"rows": rows}))
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
