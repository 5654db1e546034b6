"""Sealed folders: a `manifest.json` with the sha256 of every file, the config that made them and the parents' hashes.

A folder counts as finished only when its manifest is there, and the manifest's own hash (`id`) is what a child folder
records of its parent, so that a stale or foreign parent is refused. Files are published atomically: written under a
temporary name, fsynced, renamed.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.errors import ArtefactError
from distill.log import progress

NAME = "manifest.json"
Kind = Literal["frames", "labels", "release", "gallery"]


class SealedFile(BaseModel):
    """What a manifest records of one file: its hash, its size, and how many rows (samples) it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    sha256: str
    bytes: int
    rows: int = 0


class Manifest(BaseModel):
    """The seal of one folder. `config` is what made it, `parents` the ids of the manifests it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: Kind
    version: int
    config: dict[str, Any]
    counts: dict[str, int]
    parents: dict[str, str]
    files: dict[str, SealedFile]
    notes: list[dict[str, str]] = []

    @property
    def id(self) -> str:
        """sha256 of the canonical JSON: equal content gives equal ids, whoever wrote it."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the one spelling that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed_file(path: Path, rows: int = 0) -> SealedFile:
    """Hashes one file for the manifest."""
    return SealedFile(sha256=file_sha256(path), bytes=path.stat().st_size, rows=rows)


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when complete and on disk (temporary name, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Publishes indented JSON."""
    with published(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Publishes the manifest: from here on the folder is finished."""
    write_json(folder / NAME, manifest.model_dump(mode="json"))
    return manifest


def open_sealed(folder: Path, kind: Kind, version: int, *, verify: bool = True, quiet: bool = False) -> Manifest:
    """Reads and checks a folder's manifest; with `verify`, re-hashes every file (sizes are always checked)."""
    path = folder / NAME
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; expected {_article(kind)} made by {_MAKER[kind]}")
    if not path.is_file():
        raise ArtefactError(f"{folder}: no {NAME}, so not finished {_article(kind)}; run {_MAKER[kind]} (again)")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(f"{path}: damaged at {where or 'top'}: {first['msg']}; make the folder again") from None
    if manifest.kind != kind:
        raise ArtefactError(f"{folder}: holds {_article(manifest.kind)}, expected {_article(kind)}")
    if manifest.version != version:
        raise ArtefactError(f"{folder}: {kind} format {manifest.version}, this version reads {version}; make it again")
    check_files(folder, manifest, verify=verify, quiet=quiet)
    return manifest


def check_files(folder: Path, manifest: Manifest, *, verify: bool, quiet: bool = False) -> None:
    """Compares every listed file with its recorded size and, with `verify`, its hash."""
    maker = _MAKER[manifest.kind]
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtefactError(f"{folder / NAME}: names a file outside its folder: {name!r}")
        if not path.is_file():
            raise ArtefactError(f"{path}: missing, though the manifest lists it; restore it or run {maker} again")
        found = path.stat().st_size
        if found != expected.bytes:
            raise ArtefactError(
                f"{path}: {found} bytes, expected {expected.bytes}; truncated or overwritten: delete it and "
                f"{NAME}, then run {maker} again"
            )
    if not verify:
        return
    size = sum(file.bytes for file in manifest.files.values())
    names = progress(manifest.files, f"verify {folder.name}", quiet=quiet or size < 2 << 30)
    for name in names:
        found = file_sha256(folder / name)
        if found != manifest.files[name].sha256:
            raise ArtefactError(
                f"{folder / name}: sha256 {found[:12]}, expected {manifest.files[name].sha256[:12]}; the file was "
                f"changed after sealing: delete it and {NAME}, then run {maker} again"
            )


_MAKER = {
    "frames": "tools/pack_frames.py",
    "labels": "tools/dump_soft_labels.py",
    "release": "distill/run.py",
    "gallery": "tools/index.py",
}


def _article(kind: Kind) -> str:
    return {"frames": "a frame set", "labels": "a label set", "release": "a release", "gallery": "a gallery"}[kind]
