"""WebDataset shards: written once and atomically, read at random by a byte index.

`build` turns a list of shard names into finished shards through a pure function name -> samples. Each shard is
published under its name only when complete; a record beside it (`.work/NAME.json`) holds its hash, and a shard without
a matching record is made again. So a killed job continues where it stopped, several processes can share the names,
and the result is the same bytes. `Shards` reads any member of any sample with one `pread`.

Layout of a folder: `00000.tar` (members `<key>.<extension>`), `00000.index.json`, `manifest.json`. The index is
`{key: {extension: [offset, bytes]}}`; a member called `json` is small and stands in it too, as a third entry, so that
what is known of every sample is read without opening a shard. It follows from the tar, so a lost or damaged index is
made again. A folder may lie behind a URL; shards then come through a local cache (distill/cache.py).
"""

import gc
import hashlib
import io
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import webdataset

from distill.cache import Cache
from distill.data.tars import members
from distill.errors import ArtefactError, ExpectedError, check_regular
from distill.log import progress
from distill.manifest import (
    MAKER,
    Kind,
    Manifest,
    SealedFile,
    canonical_json,
    check_files,
    check_hash,
    file_sha256,
    published,
    read_manifest,
    write_json,
)
from distill.remote import Place, RemotePath

Sample = dict[str, bytes]  # extension -> content; members stand in the tar sorted by extension
Index = dict[str, dict[str, list[Any]]]  # key -> extension -> offset, bytes, and the content of `json`
WORK = ".work"
ABOUT = "json"  # the member that the index repeats
MOST_OPEN = 64  # shards a process holds open
FETCHERS = 16  # index files fetched at once
log = logging.getLogger(__name__)


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


def claim(folder: Place, config: dict[str, Any], *, command: str) -> None:
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


def build(folder: Place, name: str, make: Callable[[], ShardContent]) -> ShardRecord:
    """Returns the record of shard `name`, making the shard first unless it is already there and whole."""
    done = finished(folder, name)
    if done is not None:
        return done
    content = make()
    packed = io.BytesIO()  # not the file: on a full disk the writer would try to end its tar once more, when collected
    writer = webdataset.TarWriter(packed, user="root", group="root", mtime=0, encoder=False)  # byte-stable
    for key, sample in content.samples.items():
        writer.write({"__key__": key, **sample})
    writer.close()
    with published(folder / f"{name}.tar") as file:
        file.write(packed.getbuffer())
        file.seek(0)
        digest = hashlib.file_digest(cast(io.BufferedRandom, file), "sha256").hexdigest()
        tar = SealedFile(sha256=digest, bytes=file.tell(), rows=len(content.samples))
        index = _index(file, folder / f"{name}.tar")
    with published(folder / _index_of(f"{name}.tar")) as file:
        file.write(index)
    sealed = SealedFile(sha256=hashlib.sha256(index).hexdigest(), bytes=len(index))
    record = ShardRecord(name, tar, sealed, content.report)
    write_json(folder / WORK / f"{name}.json", _record_to_json(record))
    return record


def finished(folder: Place, name: str) -> ShardRecord | None:
    """The record of a shard that is whole on disk (behind a URL: there, and of the recorded size), else None."""
    record = _recorded(folder, name)
    if record is None:
        return None
    for file, sealed in ((f"{name}.tar", record.tar), (_index_of(f"{name}.tar"), record.index)):
        path = folder / file
        if isinstance(path, RemotePath):
            whole = path.size() == sealed.bytes
        else:
            whole = path.is_file() and file_sha256(path) == sealed.sha256
        if not whole:
            return None
    return record


def _recorded(folder: Place, name: str) -> ShardRecord | None:
    """What the record of a shard says of it, whether the shard is still there or not."""
    path = folder / WORK / f"{name}.json"
    try:
        raw = _read_json(path)
        return ShardRecord(
            name, SealedFile.model_validate(raw["tar"]), SealedFile.model_validate(raw["index"]), raw["report"]
        )
    except (ArtefactError, KeyError, TypeError, ValueError):
        return None  # a torn record is no record: the shard is made again


def sealed_files(records: Iterable[ShardRecord]) -> dict[str, SealedFile]:
    """The manifest's `files` of a finished job."""
    files = {}
    for record in records:
        files[f"{record.name}.tar"] = record.tar
        files[_index_of(f"{record.name}.tar")] = record.index
    return files


def open_sealed_shards(
    folder: Place,
    kind: Kind,
    version: int,
    *,
    verify: bool = True,
    cache: Cache | None = None,
    told: Callable[[str, Any], None] | None = None,
) -> tuple[Manifest, "Shards"]:
    """The manifest and the samples of a sealed folder; `told` is called with every key and what its `json` says.

    With `verify` every tar is hashed (behind a URL: when it is fetched); an index always is, and where it is not the
    manifest's, it is made again from the tar.
    """
    manifest = read_manifest(folder, kind, version)
    tars = [name for name in manifest.files if name.endswith(".tar")]
    indexes = {_index_of(tar) for tar in tars}
    missing = sorted(indexes - manifest.files.keys())
    if missing:
        raise ArtefactError(f"{folder}: the manifest lists no {missing[0]}; run {MAKER[kind]} again")
    check_files(folder, manifest, verify=verify, but=indexes)
    return manifest, Shards(folder, manifest.files, cache, tars_verified=verify, told=told)


def open_built_shards(folder: Place, names: Iterable[str], cache: Cache | None = None) -> "Shards":
    """The samples of shards that are finished but not sealed."""
    records = {name: _recorded(folder, name) for name in names}
    missing = [name for name, record in records.items() if record is None]
    if missing:
        raise ArtefactError(f"{folder}: shard {missing[0]} is not finished; start its maker again")
    return Shards(folder, sealed_files(record for record in records.values() if record), cache)


class _Sample(NamedTuple):
    """Where one sample stands; millions of these are held."""

    tar: str
    extensions: tuple[str, ...]
    places: array  # offset and bytes of every member, one after the other


class Shards:
    """Random access to the samples of finished shards. Cheap to send to a worker process."""

    def __init__(
        self,
        folder: Place,
        files: Mapping[str, SealedFile],
        cache: Cache | None = None,
        *,
        tars_verified: bool = False,
        told: Callable[[str, Any], None] | None = None,
    ):
        self.folder, self.cache = folder, cache or Cache()
        self._tars = {name: file for name, file in files.items() if name.endswith(".tar")}
        self._samples: dict[str, _Sample] = {}
        self._open: dict[str, int] = {}  # descriptors, the one used last at the end
        self._pid = os.getpid()
        with ThreadPoolExecutor(FETCHERS) as pool, _no_collection():
            side_by_side = pool.map if self.remote else map  # a disk has nothing to wait for
            found = side_by_side(lambda tar: self._read_index(tar, files[_index_of(tar)], tars_verified), self._tars)
            quiet = not self.remote or not tars_verified or len(self._tars) < FETCHERS  # one process tells
            shown = progress(found, f"open {folder}", len(self._tars), quiet=quiet)
            for tar, index in zip(self._tars, shown, strict=True):
                self._add(tar, index, told)

    @property
    def keys(self) -> list[str]:
        """Sample keys in the order in which they stand in the shards."""
        return list(self._samples)

    def extensions(self, key: str) -> list[str]:
        """The members of one sample."""
        return list(self._sample(key).extensions)

    def read(self, key: str, extension: str) -> bytes:
        """The content of one member."""
        offset, size = self.place(key, extension)
        return self.read_at(key, offset, size)

    def place(self, key: str, extension: str) -> tuple[int, int]:
        """Where a member stands in its shard: (byte offset, bytes)."""
        tar, extensions, places = self._sample(key)
        if extension not in extensions:
            raise ArtefactError(f"{self.folder / tar}: sample {key} has no member .{extension}; make the shard again")
        first = 2 * extensions.index(extension)
        return places[first], places[first + 1]

    def read_at(self, key: str, offset: int, size: int) -> bytes:
        """Bytes at an absolute offset of the shard that holds `key`."""
        tar = self._sample(key).tar
        if offset < 0 or size < 0 or offset + size > self._tars[tar].bytes:
            raise ArtefactError(f"{self.folder / tar}: sample {key} points outside of it; make the shard again")
        try:
            data = os.pread(self._descriptor(tar), size, offset)
        except OSError as error:
            where = self.folder / tar
            raise ArtefactError(f"{where}: cannot be read ({error.strerror}); is its disk still there?") from None
        if len(data) != size:
            raise ArtefactError(f"{self.folder / tar}: ends inside sample {key}; the shard is truncated")
        return data

    def shard_of(self, key: str) -> str:
        """Name of the tar that holds a sample."""
        return self._sample(key).tar

    def file(self, name: str, expected: SealedFile) -> bytes:
        """Another file of the folder, whole and checked."""
        path = self.folder / name
        if isinstance(path, RemotePath):
            return self.cache.read(path, expected.sha256, expected.bytes)
        check_regular(path)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != expected.sha256:
            raise ArtefactError(f"{path}: not the file that was sealed; restore it or make the folder again")
        return data

    @property
    def remote(self) -> bool:
        """Whether the shards come through the cache."""
        return isinstance(self.folder, RemotePath)

    def tar_bytes(self) -> dict[str, int]:
        """Size of every tar."""
        return {tar: file.bytes for tar, file in self._tars.items()}

    def fetch(self, tar: str) -> None:
        """Brings a shard into the cache, if it comes from afar."""
        if isinstance(self.folder, RemotePath):
            os.close(self._opened(tar))

    def _sample(self, key: str) -> _Sample:
        if key not in self._samples:
            raise ArtefactError(f"{self.folder}: no sample {key!r} in its shards")
        return self._samples[key]

    def _add(self, tar: str, index: Any, told: Callable[[str, Any], None] | None) -> None:
        end = self._tars[tar].bytes
        known: dict[tuple[str, ...], tuple[str, ...]] = {}  # most samples have the same members
        try:
            for key, found in index.items():
                if key in self._samples:
                    raise ValueError(f"sample {key!r} stands in two shards")
                places = array("q")
                for extension, (offset, size, *content) in found.items():
                    if offset < 0 or size < 0 or offset + size > end:
                        raise ValueError(f"sample {key!r} points outside of the tar")
                    places.extend((offset, size))
                    if extension == ABOUT:
                        (about,) = content
                        if told:
                            told(key, about)
                extensions = tuple(found)
                self._samples[key] = _Sample(tar, known.setdefault(extensions, extensions), places)
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise ArtefactError(f"{self.folder / _index_of(tar)}: wrong ({error}); make the folder again") from None

    def _read_index(self, tar: str, expected: SealedFile, tar_verified: bool) -> Any:
        """The index of a shard as it stands there, if it is the expected one, else made again from the tar."""
        path = self.folder / _index_of(tar)
        try:
            return json.loads(self.file(path.name, expected))
        except (OSError, ArtefactError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        source = self.folder / tar
        if isinstance(source, Path) and not tar_verified:
            check_hash(source, self._tars[tar], "its maker")
        with os.fdopen(self._opened(tar), "rb") as file:
            data = _index(file, source)
        log.warning("%s: %s; made again from the tar%s", path, reason, _put_back(path, data, expected))
        return json.loads(data)

    def _descriptor(self, tar: str) -> int:
        if self._pid != os.getpid():  # a forked worker must not share file positions or close its parent's files
            self._open, self._pid = {}, os.getpid()
        descriptor = self._open.pop(tar, None)
        if descriptor is None:
            if len(self._open) >= MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = self._opened(tar)
        elif isinstance(self.folder, RemotePath):
            os.utime(descriptor)  # in use: others are removed from the cache first
        self._open[tar] = descriptor
        return descriptor

    def _opened(self, tar: str) -> int:
        """A descriptor of one tar, which the caller closes."""
        if isinstance(self.folder, RemotePath):
            return self.cache.open(self.folder / tar, self._tars[tar].sha256, self._tars[tar].bytes)
        return os.open(self.folder / tar, os.O_RDONLY)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


@contextmanager
def _no_collection() -> Iterator[None]:
    """What is opened stays: to look for garbage in it again and again would take half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def split(items: int, per_shard: int) -> Iterator[tuple[str, range]]:
    """Shard names and the items that each one holds."""
    for number, start in enumerate(range(0, items, per_shard)):
        yield f"{number:05d}", range(start, min(start + per_shard, items))


def _index_of(tar: str) -> str:
    return f"{tar.removesuffix('.tar')}.index.json"


def _index(file: BinaryIO, where: Place) -> bytes:
    """The index of an open tar as it is stored."""
    index: Index = {}
    for member in members(file, where):
        key, _, extension = member.name.partition(".")
        if not key or not extension or "/" in member.name:
            raise ArtefactError(f"{where}: member {member.name!r} is not called <key>.<extension>; make it again")
        place = index.setdefault(key, {})[extension] = [member.offset, member.size]
        if extension == ABOUT:
            position = file.tell()
            file.seek(member.offset)
            try:
                place.append(json.loads(file.read(member.size)))
            except (ValueError, RecursionError) as error:
                raise ArtefactError(f"{where}: member {member.name!r} is not JSON ({error}); make it again") from None
            file.seek(position)
    return canonical_json(index)


def _put_back(path: Place, data: bytes, expected: SealedFile) -> str:
    """Replaces a damaged index where that can be done; how it went, for the log."""
    if isinstance(path, RemotePath) or hashlib.sha256(data).hexdigest() != expected.sha256:
        return " for this run"
    try:
        with published(path) as file:
            file.write(data)
    except (OSError, ExpectedError) as error:
        return f" for this run (it cannot be written: {getattr(error, 'strerror', None) or error})"
    return ""


def _record_to_json(record: ShardRecord) -> dict[str, Any]:
    return {"tar": record.tar.model_dump(), "index": record.index.model_dump(), "report": record.report}


def _read_json(path: Place) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: not readable as JSON ({error}); make the folder again") from None
