"""WebDataset shards, read at random by a byte index: any member of any sample with one `pread`.

Layout of a folder: `00000.tar` (members `<key>.<extension>`), `00000.index.json`, `manifest.json`. The index is
`{key: {extension: [offset, bytes]}}`; a member called `json` is small and stands in it too, as a third entry, so that
what is known of every sample is read without opening a shard. It follows from the tar, so a lost or damaged index is
made again. A folder may lie behind a URL; shards then come through a local cache (distill/cache.py).
distill/data/building.py writes them.
"""

import gc
import hashlib
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from distill.cache import Cache
from distill.data.tars import members
from distill.errors import ArtefactError, ExpectedError, check_regular
from distill.log import progress
from distill.manifest import MAKER, Kind, Manifest, SealedFile, check_files, check_hash, read_manifest
from distill.publishing import publish
from distill.records import canonical_json
from distill.remote import Place, RemotePath

ABOUT = "json"  # the member that the index repeats
MOST_OPEN = 64  # shards a process holds open
FETCHERS = 16  # index files fetched at once
log = logging.getLogger(__name__)


def open_sealed_shards(
    folder: Place,
    kind: Kind,
    *versions: int,
    verify: bool = True,
    cache: Cache | None = None,
    told: Callable[[str, Any], None] | None = None,
) -> tuple[Manifest, "Shards"]:
    """The manifest and the samples of a sealed folder; `told` is called with every key and what its `json` says.

    With `verify` every tar is hashed (behind a URL: when it is fetched); an index always is, and where it is not the
    manifest's, it is made again from the tar.
    """
    manifest = read_manifest(folder, kind, *versions)
    indexes = {index_of(name) for name in manifest.files if name.endswith(".tar")}
    missing = sorted(indexes - manifest.files.keys())
    if missing:
        raise ArtefactError(f"{folder}: the manifest lists no {missing[0]}; run {MAKER[kind]} again")
    check_files(folder, manifest, verify=verify, but=indexes)
    return manifest, Shards(folder, manifest.files, cache, tars_verified=verify, told=told)


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
            found = side_by_side(lambda tar: self._read_index(tar, files[index_of(tar)], tars_verified), self._tars)
            shown = progress(found, f"open {folder}", len(self._tars))
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
        return self.read_at(key, *self.place(key, extension))

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
        """Brings a shard that comes from afar into the cache."""
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
            raise ArtefactError(f"{self.folder / index_of(tar)}: wrong ({error}); make the folder again") from None

    def _read_index(self, tar: str, expected: SealedFile, tar_verified: bool) -> Any:
        """The index of a shard as it stands there, if it is the expected one, else made again from the tar."""
        path = self.folder / index_of(tar)
        try:
            return json.loads(self.file(path.name, expected))
        except (OSError, ArtefactError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        source = self.folder / tar
        if isinstance(source, Path) and not tar_verified:
            check_hash(source, self._tars[tar], "its maker")
        with os.fdopen(self._opened(tar), "rb") as file:
            data = make_index(file, source)
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
    """Pause garbage collection: everything that is opened stays, and scanning it again would take half the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def index_of(tar: str) -> str:
    """The name of the index of a tar."""
    return f"{tar.removesuffix('.tar')}.index.json"


def make_index(file: BinaryIO, where: Place) -> bytes:
    """The index of an open tar as it is stored."""
    index: dict[str, dict[str, list[Any]]] = {}
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
        publish(path, data)
    except (OSError, ExpectedError) as error:
        return f" for this run (it cannot be written: {getattr(error, 'strerror', None) or error})"
    return ""
