"""WebDataset shards, read at random by a byte index: any member of any sample with one `pread`.

Layout of a folder: `00000.tar` (members `<key>.<extension>`), `00000.index.json` (distill/data/indexes.py),
`manifest.json`. A folder may lie behind a URL; shards then come through a local cache (distill/cache.py).
distill/data/building.py writes them.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill.cache import Cache
from distill.data.indexes import Description, Indexes, index_of, key_hash, open_tar, whole_file
from distill.data.register import Strings
from distill.errors import ArtefactError
from distill.manifest import MAKER, Kind, Manifest, SealedFile, check_files, read_manifest
from distill.remote import Place, RemotePath

MOST_OPEN = 64  # shards a process holds open


def open_sealed_shards(
    folder: Place,
    kind: Kind,
    *versions: int,
    verify: bool = True,
    cache: Cache | None = None,
    describe: type[Description] | None = None,
) -> tuple[Manifest, "Shards"]:
    """The manifest and the samples of a sealed folder, whose register holds what `describe` adds to it, too.

    With `verify` every tar is hashed (behind a URL: when it is fetched). An index that is read always is, and where it
    is not the manifest's, it is made again from the tar.
    """
    manifest = read_manifest(folder, kind, *versions)
    indexes = {index_of(name) for name in manifest.files if name.endswith(".tar")}
    missing = sorted(indexes - manifest.files.keys())
    if missing:
        raise ArtefactError(f"{folder}: the manifest lists no {missing[0]}; run {MAKER[kind]} again")
    check_files(folder, manifest, verify=verify, but=indexes)
    known = {"tars_verified": verify, "describe": describe, "sealed_as": manifest.id}
    return manifest, Shards(folder, manifest.files, cache, **known)


class Shards:
    """Random access to the samples of finished shards. Cheap to send to a worker process.

    `sealed_as` is the id of the manifest that lists them, with which their register may be kept.
    """

    def __init__(
        self,
        folder: Place,
        files: Mapping[str, SealedFile],
        cache: Cache | None = None,
        *,
        tars_verified: bool = False,
        describe: type[Description] | None = None,
        sealed_as: str | None = None,
    ):
        self.folder, self.cache = folder, cache or Cache()
        indexes = Indexes(folder, files, self.cache, tars_verified, describe)
        self._tars, self.register = indexes.tars, indexes.register(sealed_as)
        self.keys: Strings = self.register.strings("key")  # in the order in which samples stand in the shards
        self._members = [tuple(json.loads(members)) for members in self.register.strings("members")]
        self._names, self._ends = list(self._tars), np.cumsum(self.register["tar"])
        self._open: dict[str, int] = {}  # descriptors, the one used last at the end
        self._pid = os.getpid()

    def extensions(self, key: str) -> list[str]:
        """The members of one sample."""
        return list(self._extensions(self._row(key)))

    def read(self, key: str, extension: str) -> bytes:
        """The content of one member."""
        row = self._row(key)
        return self._read(key, row, *self._place(key, row, extension))

    def place(self, key: str, extension: str) -> tuple[int, int]:
        """Where a member stands in its shard: (byte offset, bytes)."""
        return self._place(key, self._row(key), extension)

    def read_at(self, key: str, offset: int, size: int) -> bytes:
        """Bytes at an absolute offset of the shard that holds `key`."""
        return self._read(key, self._row(key), offset, size)

    def shard_of(self, key: str) -> str:
        """Name of the tar that holds a sample."""
        return self._tar(self._row(key))

    def samples(self) -> dict[str, range]:
        """Return the rows of the samples of each tar."""
        begins = [0, *self._ends.tolist()]
        return {tar: range(*begins[place : place + 2]) for place, tar in enumerate(self._names)}

    def file(self, name: str, expected: SealedFile) -> bytes:
        """Another file of the folder, whole and checked."""
        return whole_file(self.folder / name, expected, self.cache)

    def lacks(self, extension: str) -> bool:
        """Return whether a sample has no member of that name."""
        without = [extension not in members for members in self._members]
        return bool(np.array(without, bool)[self.register["kind"]].any())

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

    def _row(self, key: str) -> int:
        """Return the number of a sample."""
        value, hashes, rows = key_hash(key), self.register["hash"], self.register["row"]
        place = int(hashes.searchsorted(value))
        while place < len(hashes) and hashes[place] == value:
            if self.keys[int(rows[place])] == key:
                return int(rows[place])
            place += 1
        raise ArtefactError(f"{self.folder}: no sample {key!r} in its shards")

    def _tar(self, row: int) -> str:
        return self._names[int(self._ends.searchsorted(row, side="right"))]

    def _extensions(self, row: int) -> tuple[str, ...]:
        return self._members[int(self.register["kind"][row])]

    def _place(self, key: str, row: int, extension: str) -> tuple[int, int]:
        extensions, places = self._extensions(row), self.register.row("place", row)
        if extension not in extensions:
            where = self.folder / self._tar(row)
            raise ArtefactError(f"{where}: sample {key} has no member .{extension}; make the shard again")
        first = 2 * extensions.index(extension)
        return int(places[first]), int(places[first + 1])

    def _read(self, key: str, row: int, offset: int, size: int) -> bytes:
        tar = self._tar(row)
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
        return open_tar(self.folder / tar, self._tars[tar], self.cache)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}
