"""Sealed folders: a `manifest.json` with the sha256 of every file, the config that made them and the parents' hashes.

A folder counts as finished only when its manifest is there, and the manifest's own hash (`id`) is what a child folder
records of its parent, so that a stale or foreign parent is refused. Files are published atomically: written under a
temporary name, fsynced, renamed; behind a URL, put there in one piece.
"""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.disk import writing
from distill.errors import ArtefactError, check_regular
from distill.log import progress
from distill.remote import Place, RemotePath

NAME = "manifest.json"
Kind = Literal["frames", "labels", "release", "gallery"]


class SealedFile(BaseModel):
    """The record of one file in a manifest: its hash, its size, and how many rows (samples) it holds."""

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
def published(path: Place) -> Iterator[BinaryIO]:
    """A file that appears under its name only when complete and on disk (temporary name, fsync, rename).

    Behind a URL: a local temporary file, put there when complete.
    """
    if isinstance(path, RemotePath) and path.local is None:
        with tempfile.NamedTemporaryFile(prefix="distill-") as file, writing(Path(file.name)):
            yield cast(BinaryIO, file)
            file.flush()
            path.upload(Path(file.name))
        return
    path = path if isinstance(path, Path) else cast(Path, path.local)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ArtefactError(f"{path}: a folder, where a file is to be written; remove it")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # containers that share a folder share process ids
    try:
        with writing(path, part), part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except FileNotFoundError:
        if part.exists() or not path.exists():
            raise  # else another process, which had made the same file, sealed the folder and swept this one away
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def sweep(folder: Place, keep: str = "") -> None:
    """Removes the unfinished files that killed processes left in a folder, but not those of the file `keep`."""
    if isinstance(folder, RemotePath):
        return  # nothing is ever unfinished there
    for part in folder.rglob(".*.part"):
        if part.is_file() and not (keep and part.name.startswith(f".{keep}.")):
            part.unlink(missing_ok=True)


def write_json(path: Place, value: Any) -> None:
    """Publishes indented JSON."""
    with published(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def write_record(path: Place, content: dict[str, Any]) -> None:
    """Publishes JSON that an unfinished job relies on, with its own hash."""
    write_json(path, {"content": content, "sha256": hashlib.sha256(canonical_json(content)).hexdigest()})


def read_record(path: Place) -> dict[str, Any]:
    """What `write_record` wrote; anything else is an `ArtefactError`."""
    if isinstance(path, Path):
        check_regular(path)
    try:
        found = json.loads(path.read_bytes())
        content = found["content"]
        if not isinstance(content, dict) or found["sha256"] != hashlib.sha256(canonical_json(content)).hexdigest():
            raise ValueError("not as it was written")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArtefactError(f"{path}: damaged ({error}); delete its folder and start again") from None
    return content


def seal(folder: Place, manifest: Manifest) -> Manifest:
    """Publishes the manifest: from here on the folder is finished."""
    sweep(folder, keep=NAME)  # several processes may seal the same set at once
    write_json(folder / NAME, manifest.model_dump(mode="json"))
    sweep(folder)
    return manifest


def open_sealed(folder: Place, kind: Kind, version: int, *, verify: bool = True, quiet: bool = False) -> Manifest:
    """Reads and checks a folder's manifest; with `verify`, re-hashes every file (sizes are always checked)."""
    manifest = read_manifest(folder, kind, version)
    check_files(folder, manifest, verify=verify, quiet=quiet)
    return manifest


def read_manifest(folder: Place, kind: Kind, version: int) -> Manifest:
    """The manifest alone, which must be of this kind and version and name files of its own folder."""
    path = folder / NAME
    if isinstance(folder, Path) and not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; expected {_article(kind)} made by {MAKER[kind]}")
    if isinstance(path, Path):
        check_regular(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtefactError(
            f"{folder}: no {NAME}, so not finished {_article(kind)}; run {MAKER[kind]} (again)"
        ) from None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(f"{path}: damaged at {where or 'top'}: {first['msg']}; make the folder again") from None
    if manifest.kind != kind:
        raise ArtefactError(f"{folder}: holds {_article(manifest.kind)}, expected {_article(kind)}")
    if manifest.version != version:
        raise ArtefactError(f"{folder}: {kind} format {manifest.version}, this version reads {version}; make it again")
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtefactError(f"{path}: names a file outside its folder: {name!r}")
    return manifest


def check_files(
    folder: Place, manifest: Manifest, *, verify: bool, quiet: bool = False, but: Container[str] = ()
) -> None:
    """Compares every listed file `but` these with its recorded size and, with `verify`, its hash.

    Behind a URL sizes alone, where the server can list them: what is fetched is hashed then.
    """
    maker = MAKER[manifest.kind]
    files = {name: file for name, file in manifest.files.items() if name not in but}
    sizes = _sizes(folder, files)
    for name, expected in files.items():
        path, found = folder / name, sizes.get(name)
        if found is None:
            raise ArtefactError(f"{path}: missing, though the manifest lists it; restore it or run {maker} again")
        if found != expected.bytes:
            raise ArtefactError(
                f"{path}: {found} bytes, expected {expected.bytes}; truncated or overwritten: delete it and "
                f"{NAME}, then run {maker} again"
            )
    if not verify or isinstance(folder, RemotePath):
        return
    size = sum(file.bytes for file in files.values())
    for name in progress(files, f"verify {folder.name}", quiet=quiet or size < 2 << 30):
        check_hash(folder / name, files[name], maker)


def check_hash(path: Path, expected: SealedFile, maker: str) -> None:
    """Re-hashes one file of a sealed folder."""
    try:
        found = file_sha256(path)
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror}); restore it or run {maker} again") from None
    if found != expected.sha256:
        raise ArtefactError(
            f"{path}: sha256 {found[:12]}, expected {expected.sha256[:12]}; the file was "
            f"changed after sealing: delete it and {NAME}, then run {maker} again"
        )


def _sizes(folder: Place, files: dict[str, SealedFile]) -> dict[str, int]:
    """Bytes of the files that are there; web servers cannot list them, so they are believed until one is fetched."""
    if isinstance(folder, RemotePath):
        found = folder.sizes()
        return {name: file.bytes for name, file in files.items()} if found is None else found
    return {name: (folder / name).stat().st_size for name in files if (folder / name).is_file()}


MAKER = {
    "frames": "tools/pack_frames.py",
    "labels": "tools/dump_soft_labels.py",
    "release": "distill/run.py",
    "gallery": "tools/index.py",
}


def _article(kind: Kind) -> str:
    return {"frames": "a frame set", "labels": "a label set", "release": "a release", "gallery": "a gallery"}[kind]
