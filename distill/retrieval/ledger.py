"""The ledger of a gallery: what it knows of files beside their rows, a line of JSON each, in sealed files of its own.

    files/00003.jsonl      each file that was indexed or tried, and what tells whether it has changed since
    notes/00003.jsonl      each video that is left out, with the reason
    excluded/00005.jsonl   each id that was deleted by hand, which no index takes again

Opening a gallery and searching it read none of them. A generation lists at most one of each kind.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from distill.manifest import Manifest, SealedFile, sealed_file
from distill.publishing import publish
from distill.records import STRICT, T, canonical_json, parsed, read_small
from distill.retrieval.columns import MEND

FILES, NOTES, EXCLUDED = "files", "notes", "excluded"
KINDS = (FILES, NOTES, EXCLUDED)


@with_config(STRICT)
class KnownFile(TypedDict):
    """A file that was indexed or tried."""

    file: str  # id
    of: int  # number of its source in the config's `made_of`
    source: str  # path below its folder
    seen: list[int | str]  # bytes and time of the last change, ns; or the hash of its frames; nothing: not known
    folder: NotRequired[int]  # of the gallery's folders
    cut: NotRequired[list[float]]  # seconds and overlap of its spans


@with_config(STRICT)
class StoredNote(TypedDict):
    """A video that is left out."""

    of: int  # number of its source in the config's `made_of`
    video: str  # id
    source: str
    reason: str
    file: NotRequired[str]  # id of the file, of a span


@with_config(STRICT)
class Excluded(TypedDict):
    """An id that was deleted by hand: of a video, or of a file and so of all its spans."""

    id: str
    file: str  # id of its file


@dataclass(frozen=True)
class Ledger:
    """Everything that a gallery knows of files beside their rows."""

    files: dict[str, KnownFile] = field(default_factory=dict)  # that were indexed or tried, by id
    notes: list[StoredNote] = field(default_factory=list)  # videos that are left out
    excluded: dict[str, Excluded] = field(default_factory=dict)  # what was deleted by hand, by id

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> "Ledger":
        """Read that of a generation. An earlier version kept notes alone, in the manifest."""
        files = {line["file"]: line for line in _read(path, manifest, FILES, KnownFile)}
        excluded = {line["id"]: line for line in _read(path, manifest, EXCLUDED, Excluded)}
        return cls(files, notes(path, manifest), excluded)

    def joined(self, folders: Sequence[str], sources: Sequence[str]) -> "Ledger":
        """Number each folder and source by its first place in these lists: a move can make two of them one."""

        def first(places: Sequence[str], number: int) -> int:
            return places.index(places[number]) if 0 <= number < len(places) else number

        for line in (*self.files.values(), *self.notes):
            line["of"] = first(sources, line["of"])
        for file in self.files.values():
            if "folder" in file:
                file["folder"] = first(folders, file["folder"])
        return self

    def write(self, path: Path, number: int) -> dict[str, SealedFile]:
        """Write all of it for generation `number`; return the files for its manifest."""
        return {
            **_write(path, number, FILES, self.files.values()),
            **_write(path, number, NOTES, self.notes),
            **write_excluded(path, number, self.excluded.values()),
        }


def notes(path: Path, manifest: Manifest) -> list[StoredNote]:
    """Return the videos that are left out."""
    old: list[Any] = [{"of": 0} | note for note in manifest.notes]
    return old or _read(path, manifest, NOTES, StoredNote)


def write_excluded(path: Path, number: int, excluded: Iterable[Excluded]) -> dict[str, SealedFile]:
    """Write what was deleted by hand for generation `number`; return the file for its manifest."""
    return _write(path, number, EXCLUDED, sorted(excluded, key=lambda line: line["id"]))


def listed(manifest: Manifest, *kinds: str) -> dict[str, SealedFile]:
    """Return the files of a manifest that lie in the folders `kinds`."""
    return {name: file for name, file in manifest.files.items() if PurePosixPath(name).parts[0] in kinds}


def _write(path: Path, number: int, kind: str, lines: Iterable[Any]) -> dict[str, SealedFile]:
    content = [canonical_json(line) + b"\n" for line in lines]
    if not content:
        return {}
    name = f"{kind}/{number:05d}.jsonl"
    publish(path / name, b"".join(content))
    return {name: sealed_file(path / name, len(content))}


def _read(path: Path, manifest: Manifest, kind: str, of: type[T]) -> list[T]:
    lines = [
        (name, number, line)
        for name in listed(manifest, kind)
        for number, line in enumerate(read_small(path / name, MEND).splitlines(), 1)
    ]
    return [parsed(of, line, f"{path / name}: line {number}", MEND) for name, number, line in lines]
