"""Sealed folders: a `manifest.json` with the sha256 of every file, the config that made them and the parents' hashes.

A folder counts as finished only when its manifest is there, and the manifest's own hash (`id`) is what a child folder
records of its parent, so that a stale or foreign parent is refused. A manifest is published last, in one piece
(distill/publishing.py).
"""

import hashlib
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from distill.config import Config
from distill.errors import ArtefactError
from distill.log import progress
from distill.publishing import sweep
from distill.records import T, json_sha256, parsed, read_json, write_json
from distill.remote import Place, RemotePath

NAME = "manifest.json"
Kind = Literal["frames", "labels", "release", "gallery", "onnx"]


class SealedFile(Config):
    """The record of one file in a manifest: its hash, its size, and how many rows (samples) it holds."""

    sha256: str
    bytes: NonNegativeInt
    rows: NonNegativeInt = 0


class Manifest(Config):
    """The seal of one folder. `config` is what made it, `parents` the ids of the manifests it was made from."""

    kind: Kind
    version: int
    config: dict[str, Any]
    counts: dict[str, NonNegativeInt]
    parents: dict[str, str]
    files: dict[str, SealedFile]
    notes: list[dict[str, str]] = Field(default=[])

    @property
    def id(self) -> str:
        """sha256 of the canonical JSON: equal content gives equal ids, whoever wrote it."""
        return json_sha256(self.model_dump(mode="json"))

    def view(self, kind: type[T], folder: Place) -> T:
        """Return the config as the view of a kind; an `ArtefactError` names the first key that is wrong."""
        return parsed(kind, self.config, f"{folder / NAME}: config", f"restore it, or run {MAKER[self.kind]} again")


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed_file(path: Path, rows: int = 0) -> SealedFile:
    """Hashes one file for the manifest."""
    return SealedFile(sha256=file_sha256(path), bytes=path.stat().st_size, rows=rows)


def seal(folder: Place, manifest: Manifest) -> Manifest:
    """Publishes the manifest: from here on the folder is finished."""
    sweep(folder, keep=NAME)  # several processes may seal the same set at once
    write_json(folder / NAME, manifest.model_dump(mode="json"))
    sweep(folder)
    return manifest


def open_sealed(folder: Place, kind: Kind, *versions: int, verify: bool = True, but: Container[str] = ()) -> Manifest:
    """Reads and checks a folder's manifest; with `verify`, re-hashes every file `but` these (sizes always)."""
    manifest = read_manifest(folder, kind, *versions)
    check_files(folder, manifest, verify=verify, but=but)
    return manifest


def read_manifest(folder: Place, kind: Kind, *versions: int) -> Manifest:
    """The manifest alone, which must be of this kind and of one of these versions, and name files of its own folder."""
    path = folder / NAME
    if isinstance(folder, Path) and not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; expected {_article(kind)} made by {MAKER[kind]}")
    absent = f"{folder}: no {NAME}, so not finished {_article(kind)}; run {MAKER[kind]} (again)"
    manifest = read_json(path, Manifest, "make the folder again", absent)
    if manifest.kind != kind:
        raise ArtefactError(f"{folder}: holds {_article(manifest.kind)}, expected {_article(kind)}")
    if manifest.version not in versions:
        read = " and ".join(map(str, versions))
        raise ArtefactError(f"{folder}: {kind} format {manifest.version}, this version reads {read}; make it again")
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtefactError(f"{path}: names a file outside its folder: {name!r}")
    return manifest


def check_files(folder: Place, manifest: Manifest, *, verify: bool, but: Container[str] = ()) -> None:
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
    for name in progress(files, f"verify {folder.name}"):
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
    "onnx": "tools/export.py --to onnx",
}
ARTICLE = {
    "frames": "a frame set",
    "labels": "a label set",
    "release": "a release",
    "gallery": "a gallery",
    "onnx": "a folder of ONNX graphs",
}


def _article(kind: Kind) -> str:
    return ARTICLE[kind]
