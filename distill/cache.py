"""A bounded folder of files that were fetched or computed once, least recently used removed first.

A fetched file is named by its sha256, a computed one by that of what it follows from.

Processes of one machine share it through file locks, which end with the process that holds them. One process fetches
a file while the others that want it wait; the file appears under its name only when it is whole and verified. Space is
freed before a download and counts what others are fetching, so the folder never outgrows its limit. A file that is
removed while somebody reads it stays readable, because readers hold an open descriptor.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from distill.errors import ExpectedError, writing
from distill.locks import acquired
from distill.remote import RemotePath

ENTRY = re.compile(r"(?P<bucket>[0-9a-f]{2})[0-9a-f]{62}(\.(?P<reserved>[0-9]+)\.part)?")
POLL = 0.1  # seconds, while downloads of other processes fill the folder


def default_folder() -> Path:
    """Return the folder for users' caches (below XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retrieval-distill"


@dataclass(frozen=True)
class Cache:
    """`folder` holds at most `gigabytes` (10^9 bytes)."""

    folder: Path = field(default_factory=default_folder)
    gigabytes: float = 50.0

    def open(self, remote: RemotePath, sha256: str, size: int) -> int:
        """Return a descriptor of the file's content, fetching it if it is not here; the caller closes it."""
        path = self.folder / sha256
        with suppress(FileNotFoundError):
            return _opened(path, size)
        with self._locked(sha256[:2]):
            with suppress(FileNotFoundError):
                return _opened(path, size)  # another process has fetched it meanwhile
            part = self._reserve(sha256, size, remote)
            try:
                with writing(path, part):
                    remote.download(part, sha256, size)
                descriptor = os.open(part, os.O_RDONLY)
                os.fsync(descriptor)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
            return descriptor

    def read(self, remote: RemotePath, sha256: str, size: int) -> bytes:
        """Return the whole content of a small file."""
        with os.fdopen(self.open(remote, sha256, size), "rb") as file:
            return file.read()

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keep other processes out while a file is computed, which `keep` then takes."""
        with self._locked(f"compute-{name[:2]}"):
            yield

    def keep(self, name: str, size: int, write: Callable[[BinaryIO], None], what: object) -> None:
        """Keep a computed file of `size` bytes under a name of 64 hexadecimal digits; errors are about `what`."""
        with self._locked(name[:2]):
            part = self._reserve(name, size, what)
            try:
                with writing(self.folder / name, part), part.open("wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(part, self.folder / name)
            finally:
                part.unlink(missing_ok=True)

    def _reserve(self, sha256: str, size: int, what: object) -> Path:
        """Create an empty part file whose name reserves its full size."""
        if size > self.gigabytes * 1e9:
            raise ExpectedError(
                f"{what}: {size / 1e9:.3f} GB do not fit into the cache {self.folder}, which may hold "
                f"{self.gigabytes:g} GB; raise data.cache_gb"
            )
        part = self.folder / f"{sha256}.{size}.part"
        while True:
            with self._locked("room"):
                if self._make_room(size, mine=sha256[:2]):
                    part.touch()
                    return part
            time.sleep(POLL)

    def _make_room(self, size: int, mine: str) -> bool:
        """Remove the least recently used files until `size` more bytes fit; return False if downloads fill the rest."""
        whole: list[tuple[float, int, Path]] = []
        total = size
        for path in self.folder.iterdir():
            name = ENTRY.fullmatch(path.name)
            if name is None:
                continue  # a foreign file: never removed
            if name["reserved"]:
                if name["bucket"] == mine or not self._is_locked(name["bucket"]):
                    path.unlink(missing_ok=True)  # left by a process that died: nobody holds its lock
                else:
                    total += int(name["reserved"])
            else:
                found = path.stat()
                whole.append((found.st_mtime, found.st_size, path))
                total += found.st_size
        for _, bytes_, path in sorted(whole):
            if total <= self.gigabytes * 1e9:
                break
            path.unlink(missing_ok=True)
            total -= bytes_
        return total <= self.gigabytes * 1e9

    @contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold one of the folder's locks: `room`, or the one of a bucket (the first two digits of a sha256)."""
        folder = self.folder / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise ExpectedError(
                f"{self.folder}: the cache cannot be written ({error.strerror}); set data.cache to another folder"
            ) from None
        how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
        try:
            if not acquired(folder / name, lambda: fcntl.flock(descriptor, how)):
                raise BlockingIOError
            try:
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a worker was forked meanwhile
        finally:
            os.close(descriptor)

    def _is_locked(self, name: str) -> bool:
        try:
            with self._locked(name, wait=False):
                return False
        except BlockingIOError:
            return True


def _opened(path: Path, size: int) -> int:
    """Return a descriptor of a whole file, marked as just used; one cut short by a power cut counts as missing."""
    descriptor = os.open(path, os.O_RDONLY)
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        raise FileNotFoundError(path)
    with suppress(OSError):  # a file of another user, or a cache that is read-only, only counts as older
        os.utime(descriptor)
    return descriptor
