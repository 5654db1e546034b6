"""WebDataset shards: written once and atomically, read at random by a byte index.

`build` turns a list of shard names into finished shards through a pure function name -> samples. Each shard is
published under its name only when complete; a record beside it (`.work/NAME.json`) holds its hash, and a shard without
a matching record is made again. So a killed job continues where it stopped, several processes can share the names,
and the result is the same bytes. `Shards` reads any member of any sample with one `pread`.

Layout of a folder: `00000.tar` (members `<key>.<extension>`), `00000.index.json` (byte offsets), `manifest.json`.
"""

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset

from distill.errors import ArtefactError
from distill.manifest import SealedFile, file_sha256, published, sealed_file, write_json

Sample = dict[str, bytes]  # extension -> content; members stand in the tar sorted by extension
WORK = ".work"


@dataclass(frozen=True)
class ShardRecord:
    """What is known of one finished shard; `report` is whatever its maker wants to tell the sealer."""

    name: str
    tar: SealedFile
    index: SealedFile
    report: dict[str, Any]


@dataclass(frozen=True)
class ShardContent:
    """What a shard's maker returns: samples by key, and a report that is stored with the record."""

    samples: dict[str, Sample]
    report: dict[str, Any]


def claim(folder: Path, config: dict[str, Any], *, command: str) -> None:
    """Takes `folder` for a job of this `config`; refuses one begun with another config."""
    path = folder / WORK / "config.json"
    if path.is_file():
        found = _read_json(path)
        if found != config:
            changed = sorted(k for k in {*found, *config} if found.get(k) != config.get(k))
            raise ArtefactError(
                f"{folder}: begun with other settings ({', '.join(changed)} differ); delete the folder or choose "
                f"another one for {command}"
            )
        return
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WORK).is_dir():
        raise ArtefactError(f"{folder}: exists and was not begun by {command}; choose an empty or new folder")
    write_json(path, config)


def build(folder: Path, name: str, make: Callable[[], ShardContent]) -> ShardRecord:
    """Returns the record of shard `name`, making the shard first unless it is already there and whole."""
    done = finished(folder, name)
    if done is not None:
        return done
    content = make()
    tar, index = folder / f"{name}.tar", folder / f"{name}.index.json"
    with published(tar) as file:
        writer = webdataset.TarWriter(file, user="root", group="root", mtime=0, encoder=False)  # byte-stable
        for key, sample in content.samples.items():
            writer.write({"__key__": key, **sample})
        writer.close()
    write_json(index, _scan(tar))
    record = ShardRecord(name, sealed_file(tar, len(content.samples)), sealed_file(index), content.report)
    write_json(folder / WORK / f"{name}.json", _record_to_json(record))
    return record


def finished(folder: Path, name: str) -> ShardRecord | None:
    """The record of a shard that is whole on disk, else None."""
    path = folder / WORK / f"{name}.json"
    if not path.is_file():
        return None
    try:
        raw = _read_json(path)
        record = ShardRecord(
            name, SealedFile.model_validate(raw["tar"]), SealedFile.model_validate(raw["index"]), raw["report"]
        )
    except (ArtefactError, KeyError, TypeError, ValueError):
        return None  # a torn record is no record: the shard is made again
    for file, sealed in ((f"{name}.tar", record.tar), (f"{name}.index.json", record.index)):
        if not (folder / file).is_file() or file_sha256(folder / file) != sealed.sha256:
            return None
    return record


def sealed_files(records: Iterable[ShardRecord]) -> dict[str, SealedFile]:
    """The manifest's `files` of a finished job."""
    files = {}
    for record in records:
        files[f"{record.name}.tar"] = record.tar
        files[f"{record.name}.index.json"] = record.index
    return files


class Shards:
    """Random access to the samples of a sealed folder. Cheap to open and to send to a worker process."""

    def __init__(self, folder: Path, tars: Iterable[str]):
        self.folder = folder
        self._where: dict[str, tuple[str, dict[str, list[int]]]] = {}
        for tar in tars:
            for key, members in _read_json(folder / tar.replace(".tar", ".index.json")).items():
                self._where[key] = (tar, members)
        self._files: dict[str, int] = {}
        self._pid = os.getpid()

    @property
    def keys(self) -> list[str]:
        """Sample keys in the order in which they stand in the shards."""
        return list(self._where)

    def extensions(self, key: str) -> list[str]:
        """The members of one sample."""
        return list(self._member_table(key)[1])

    def read(self, key: str, extension: str) -> bytes:
        """The content of one member."""
        offset, size = self.place(key, extension)
        return self.read_at(key, offset, size)

    def place(self, key: str, extension: str) -> tuple[int, int]:
        """Where a member stands in its shard: (byte offset, bytes)."""
        tar, members = self._member_table(key)
        if extension not in members:
            raise ArtefactError(f"{self.folder / tar}: sample {key} has no member .{extension}; make the shard again")
        offset, size = members[extension]
        return offset, size

    def read_at(self, key: str, offset: int, size: int) -> bytes:
        """Bytes at an absolute offset of the shard that holds `key`."""
        tar = self._member_table(key)[0]
        data = os.pread(self._descriptor(tar), size, offset)
        if len(data) != size:
            raise ArtefactError(f"{self.folder / tar}: ends inside sample {key}; the shard is truncated")
        return data

    def shard_of(self, key: str) -> str:
        """Name of the tar that holds a sample."""
        return self._member_table(key)[0]

    def _member_table(self, key: str) -> tuple[str, dict[str, list[int]]]:
        if key not in self._where:
            raise ArtefactError(f"{self.folder}: no sample {key!r} in its shards")
        return self._where[key]

    def _descriptor(self, tar: str) -> int:
        if self._pid != os.getpid():  # a forked worker must not share file positions or close its parent's files
            self._files, self._pid = {}, os.getpid()
        if tar not in self._files:
            self._files[tar] = os.open(self.folder / tar, os.O_RDONLY)
        return self._files[tar]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def split(items: int, per_shard: int) -> Iterator[tuple[str, range]]:
    """Shard names and the items that each one holds."""
    for number, start in enumerate(range(0, items, per_shard)):
        yield f"{number:05d}", range(start, min(start + per_shard, items))


def _scan(tar: Path) -> dict[str, dict[str, list[int]]]:
    index: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            index.setdefault(key, {})[extension] = [member.offset_data, member.size]
    return index


def _record_to_json(record: ShardRecord) -> dict[str, Any]:
    return {"tar": record.tar.model_dump(), "index": record.index.model_dump(), "report": record.report}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: not readable as JSON ({error}); make the folder again") from None
