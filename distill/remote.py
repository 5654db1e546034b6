"""Files behind URLs, through fsspec, with the few methods of `pathlib.Path` that sealed folders need.

`locate("s3://bucket/set")` and `locate("hf:owner/name")` return a `RemotePath`, `locate("some/folder")` a `Path`; code
that reads or publishes artefacts takes either. A request that fails is tried again a few times with growing waits,
because networks fail for seconds at a time, and is then reported in one line; a file that is missing or forbidden is
not asked for again.
"""

import hashlib
import importlib.util
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from distill import hub
from distill.errors import FULL, ArtefactError, ExpectedError

# Protocols, and the package each needs.
PROTOCOLS = {"file": None, "http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
WAITS = (1.0, 4.0, 16.0)  # seconds between tries
STALLED = 60.0  # seconds without a byte after which a connection counts as lost
Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemotePath:
    """A file or a folder behind a URL."""

    url: str  # without a slash at the end

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The path of a `file://` URL, else None."""
        return Path(self.url.removeprefix("file://")) if self.url.startswith("file://") else None

    def is_file(self) -> bool:
        """Whether there is a file of this name."""
        return self.size() is not None

    def is_dir(self) -> bool:
        """Whether there is anything under this name; object stores know no empty folders."""
        return any(True for _ in self.iterdir())

    def iterdir(self) -> Iterator["RemotePath"]:
        """Return the entries of this folder (not over http, which cannot list)."""
        return (self / name for name in self._list())

    def size(self) -> int | None:
        """Bytes of this file, or None if there is none."""
        try:
            found: dict[str, Any] = self.tried("found", lambda: self._system.info(self.url))
        except FileNotFoundError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def sizes(self) -> dict[str, int] | None:
        """Bytes of every file of this folder, by name and in one request; None over http, which cannot list."""
        if self.url.startswith(("http://", "https://")):
            return None
        return {name: entry["size"] for name, entry in self._list().items() if entry["type"] == "file"}

    def read_bytes(self) -> bytes:
        """Return the content of a small file; raise FileNotFoundError if there is none."""
        return cast(bytes, self.tried("read", lambda: self._system.cat_file(self.url)))

    def download(self, path: Path, sha256: str, size: int) -> None:
        """Write the whole file to `path`; any other size or hash counts as a failed try."""

        def whole() -> None:
            self._system.get_file(self.url, str(path))
            found = path.stat().st_size
            if found != size:
                raise OSError(f"{found} bytes came, the manifest says {size}")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != sha256:
                raise OSError(f"sha256 {digest[:12]}, the manifest says {sha256[:12]}")

        try:
            self.tried("fetched", whole)
        except FileNotFoundError:
            raise ArtefactError(f"{self}: missing, though the manifest lists it; copy it there again") from None

    def check_not_web(self) -> None:
        """Refuse to write where files can only be read."""
        if self.url.startswith(hub.URL):
            raise ExpectedError(f"{self}: only read; write to a folder, and publish it with tools/push.py")
        if self.url.startswith(("http://", "https://")):
            raise ExpectedError(f"{self}: web servers are only read; write to a folder, s3:// or gs://")

    def upload(self, path: Path) -> None:
        """Publish a finished local file under this name with one put, which object stores make atomic."""
        self.check_not_web()
        try:
            self.tried("written", lambda: self._system.put_file(str(path), self.url))
        except FileNotFoundError as error:
            raise ExpectedError(f"{self}: not written ({error}); make the bucket, or name another one") from None

    def _list(self) -> dict[str, dict[str, Any]]:
        try:
            found = self.tried("listed", lambda: self._system.ls(self.url, detail=True))
        except FileNotFoundError:
            return {}
        entries = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in found}
        return {name: entry for name, entry in entries.items() if name}

    @property
    def _system(self) -> Any:
        """Return the file system; fsspec keeps one per protocol and process, and makes a new one after a fork."""
        import fsspec  # here: command lines are parsed without it

        protocol = self.url.partition("://")[0]
        return fsspec.filesystem(protocol, use_listings_cache=False, **_options(protocol))

    def tried(self, done: str, what: Callable[[], Answer]) -> Answer:
        """Return what a request gives; one that fails is tried again, and reported as "not `done`" in one line."""
        waits = iter(WAITS)
        while True:
            try:
                return what()
            except ExpectedError:
                raise
            except Exception as error:  # each file system has its own: OSError, aiohttp's, botocore's, Google's
                if self.url.startswith(hub.URL) and (refused := hub.refusal(error)):
                    raise ExpectedError(f"{self}: not {done}: {refused}") from None
                if isinstance(error, FileNotFoundError):
                    raise
                if getattr(error, "errno", None) in FULL:
                    raise  # of the disk here
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                if _is_refusal(error):
                    raise ExpectedError(f"{self}: may not be {done} ({reason}); check your credentials") from None
                wait = next(waits, None)
                if wait is None:
                    tries = f"{len(WAITS) + 1} tries over {sum(WAITS):.0f} s"
                    raise ArtefactError(f"{self}: not {done} in {tries} ({reason}); check it and start again") from None
                log.warning("%s: not %s (%s); again in %g s", self, done, reason, wait)
                time.sleep(wait)


Place = Path | RemotePath


def locate(where: str | Place) -> Place:
    """Return the place that a recipe or a command line names: a URL or a local path."""
    if isinstance(where, Path | RemotePath):
        return where
    where = hub.as_url(where)
    protocol, separator, rest = where.partition("://")
    if not separator:
        return Path(where)
    if protocol not in PROTOCOLS:
        raise ExpectedError(f"{where}: cannot be opened; expected a folder or a URL of {', '.join(PROTOCOLS)}")
    if not rest.strip("/"):
        raise ExpectedError(f"{where}: names no folder; expected e.g. {protocol}://bucket/folder")
    needed = PROTOCOLS[protocol]
    if needed and importlib.util.find_spec(needed) is None:
        raise ExpectedError(
            f"{where}: {protocol}:// needs the package {needed}; pip install 'retrieval-distill[remote]'"
        )
    if protocol == "hf":
        hub.Repository.named(where)
    return RemotePath(where.rstrip("/"))


def _is_refusal(error: Exception) -> bool:
    """Return whether the request was refused, so that asking again is useless; each library says so in its own way."""
    return (
        isinstance(error, PermissionError)
        or getattr(error, "status", None) in (401, 403)
        or "Credentials" in type(error).__name__
    )


def _options(protocol: str) -> dict[str, Any]:
    """Return options other than fsspec's defaults: aiohttp would give up after five minutes, even while data arrive."""
    if protocol in ("http", "https"):
        import aiohttp

        return {
            "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)}
        }
    return {"auto_mkdir": True} if protocol == "file" else {}
