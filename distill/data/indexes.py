"""The indexes of shards: where every member of every sample stands, made of the tars and read into one register.

An index is `{key: {extension: [offset, bytes]}}`; a member called `json` is small and stands in it too, as a third
entry, so that what is known of every sample is read without opening a shard. It follows from the tar, so a lost or
damaged index is made again. A set of many samples is read once: its register is kept in the cache, under the sha256 of
what it follows from, which the id of the manifest tells.
"""

import gc
import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from distill.cache import Cache
from distill.data.growing import GrowingRegister, kept_register
from distill.data.register import ERRORS, Register
from distill.data.tars import members
from distill.errors import ArtefactError, ExpectedError, check_regular
from distill.log import progress
from distill.manifest import SealedFile, check_hash
from distill.publishing import publish
from distill.records import canonical_json
from distill.remote import Place, RemotePath

VERSION = 1  # of registers, which are made again by another one
KEPT = 20_000  # samples of a set from which on its register is kept: fewer are read in less than a second
ABOUT = "json"  # the member that the index repeats
FETCHERS = 16  # index files fetched at once
# Of each sample its key, its kind (a row of "members") and the offset and bytes of every member
SAMPLES = {"key": "B*", "kind": "q", "place": "q*"}
LOOKUP = {"hash": "q", "row": "q"}  # of every key, in ascending order, and the sample that has it
KINDS = {**SAMPLES, **LOOKUP, "members": "B*", "tar": "q"}  # the extensions of a kind as JSON; the samples of each tar
log = logging.getLogger(__name__)


class Description(ABC):
    """Columns that are filled from the `json` of samples (`VideoColumns` in distill/data/videos.py)."""

    kinds: ClassVar[Mapping[str, str]]

    def __init__(self, register: GrowingRegister, where: object):
        self.register, self.where = register, where

    @abstractmethod
    def add(self, sample: int, key: str, about: Any) -> None:
        """Add what the `json` of a sample says; `sample` is its number."""


@dataclass(frozen=True)
class Indexes:
    """The indexes of finished shards, from which their register follows."""

    folder: Place
    files: Mapping[str, SealedFile]
    cache: Cache
    tars_verified: bool = False  # so that an index may be made again without hashing its tar
    describe: type[Description] | None = None
    tars: dict[str, SealedFile] = field(init=False)

    def __post_init__(self) -> None:
        tars = {name: file for name, file in self.files.items() if name.endswith(".tar")}
        object.__setattr__(self, "tars", tars)

    def register(self, sealed_as: str | None) -> Register:
        """Return the register of all samples, kept if `sealed_as`, the id of their manifest, is known."""
        kinds = {**KINDS, **(self.describe.kinds if self.describe else {})}
        if sealed_as is None or sum(tar.rows for tar in self.tars.values()) < KEPT:
            growing = GrowingRegister(kinds)
            self._fill(growing)
            found = growing.held()
        else:
            name = hashlib.sha256(canonical_json([VERSION, kinds, sealed_as, list(self.tars)])).hexdigest()
            found = kept_register(self.cache, name, kinds, self._fill, self.folder)
        self._check(found)
        return found

    def _check(self, register: Register) -> None:
        """Raise `ArtefactError` if the columns do not fit together, or a key stands in two tars."""
        number = len(register["kind"])
        register.check(SAMPLES | LOOKUP, number)
        register.check_below("kind", len(register.strings("members")))
        register.check_below("row", number)
        keys, rows = register.strings("key"), register["row"]
        for place in _repeated(register["hash"]).tolist():
            one, two = sorted(rows[place - 1 : place + 1].tolist())
            if keys[one] == keys[two]:
                tar = list(self.tars)[int(np.searchsorted(np.cumsum(register["tar"]), two, side="right"))]
                raise wrong_index(self.folder / index_of(tar), f"sample {keys[two]!r} stands in two shards")

    def _fill(self, register: GrowingRegister) -> bool:
        """Read all indexes; return whether the register may be kept: each is the one that the manifest lists."""
        samples, as_sealed = _Samples(register, self), True
        with ThreadPoolExecutor(FETCHERS) as pool, _no_collection():
            # A disk has nothing to wait for
            side_by_side = pool.map if isinstance(self.folder, RemotePath) else map
            found = side_by_side(self._read, self.tars)
            shown = progress(found, f"open {self.folder}", len(self.tars))
            for tar, (index, sealed) in zip(self.tars, shown, strict=True):
                samples.add(tar, index)
                as_sealed = as_sealed and sealed
                register.spill()
        return samples.end() and as_sealed

    def _read(self, tar: str) -> tuple[Any, bool]:
        """Return the index of a shard as it stands there, if it is the expected one, else made again from the tar, and
        whether it is the expected one."""
        path, expected = self.folder / index_of(tar), self.files[index_of(tar)]
        try:
            return json.loads(whole_file(path, expected, self.cache)), True
        except (OSError, ArtefactError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        source = self.folder / tar
        if isinstance(source, Path) and not self.tars_verified:
            check_hash(source, self.tars[tar], "its maker")
        with os.fdopen(open_tar(source, self.tars[tar], self.cache), "rb") as file:
            data = make_index(file, source)
        sealed = hashlib.sha256(data).hexdigest() == expected.sha256
        log.warning("%s: %s; made again from the tar%s", path, reason, _put_back(path, data, sealed))
        return json.loads(data), sealed


class _Samples:
    """Fills the columns of samples, index by index."""

    def __init__(self, register: GrowingRegister, of: Indexes):
        self._register, self._of = register, of
        self._describe = of.describe(register, of.folder) if of.describe else None
        self._hashes = array("q")
        self._kinds: dict[tuple[str, ...], int] = {}  # most samples have the same members

    def add(self, tar: str, index: Any) -> None:
        """Add the samples of one tar. Raises `ArtefactError` if the index points outside of it."""
        register, end, before = self._register, self._of.tars[tar].bytes, len(self._hashes)
        try:
            for key, found in index.items():
                for extension, (offset, size, *content) in found.items():
                    if offset < 0 or size < 0 or offset + size > end:
                        raise ValueError(f"sample {key!r} points outside of the tar")
                    register.add("place", offset, size)
                    if extension == ABOUT:
                        (about,) = content
                        if self._describe:
                            self._describe.add(len(self._hashes), key, about)
                register.end_row("place")
                register.add_string("key", key)
                register.add("kind", self._kind(tuple(found)))
                self._hashes.append(key_hash(key))
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise wrong_index(self._of.folder / index_of(tar), error) from None
        register.add("tar", len(self._hashes) - before)

    def _kind(self, extensions: tuple[str, ...]) -> int:
        if extensions not in self._kinds:
            self._kinds[extensions] = len(self._kinds)
            self._register.add_string("members", json.dumps(extensions))
        return self._kinds[extensions]

    def end(self) -> bool:
        """Complete the columns; return whether all hashes differ."""
        hashes = np.array(self._hashes, np.int64)
        rows = np.argsort(hashes, kind="stable")
        self._register.add_bytes("hash", hashes[rows].tobytes())
        self._register.add_bytes("row", rows.astype(np.int64).tobytes())
        return not _repeated(hashes[rows]).size


def _repeated(ascending: np.ndarray) -> np.ndarray:
    """Return the places of numbers that equal the one before."""
    return 1 + np.flatnonzero(ascending[1:] == ascending[:-1])


def key_hash(key: str) -> int:
    """Return 64 bits, as a signed number, by which a key is found."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors=ERRORS), digest_size=8).digest(), "little", signed=True)


def wrong_index(path: Place, error: object) -> ArtefactError:
    """Return the error for an index that was sealed as somebody else's program wrote it."""
    return ArtefactError(f"{path}: wrong ({error}); make the folder again")


def whole_file(path: Place, expected: SealedFile, cache: Cache) -> bytes:
    """Return a file of a sealed folder, whole and checked."""
    if isinstance(path, RemotePath):
        return cache.read(path, expected.sha256, expected.bytes)
    check_regular(path)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise ArtefactError(f"{path}: not the file that was sealed; restore it or make the folder again")
    return data


def open_tar(path: Place, expected: SealedFile, cache: Cache) -> int:
    """Return a descriptor of a tar, which the caller closes."""
    if isinstance(path, RemotePath):
        return cache.open(path, expected.sha256, expected.bytes)
    return os.open(path, os.O_RDONLY)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause garbage collection: indexes hold no cycles, and looking for some would take half the time."""
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


def _put_back(path: Place, data: bytes, sealed: bool) -> str:
    """Replaces a damaged index where that can be done; how it went, for the log."""
    if isinstance(path, RemotePath) or not sealed:
        return " for this run"
    try:
        publish(path, data)
    except (OSError, ExpectedError) as error:
        return f" for this run (it cannot be written: {getattr(error, 'strerror', None) or error})"
    return ""
