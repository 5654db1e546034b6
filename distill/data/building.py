"""Writing shards: each one once, whole or not at all.

`build` turns a shard's name into a finished shard through a pure function that makes its samples. Each shard is
published under its name only when complete; a record beside it (`.work/NAME.json`) holds its hash, and a shard without
a matching record is made again. So a killed job continues where it stopped, several processes can share the names,
and the result is the same bytes. distill/data/shards.py reads them.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from pydantic import Field

from distill.cache import Cache
from distill.data.indexes import index_of, make_index
from distill.data.shards import Shards
from distill.errors import ArtefactError, check_installed
from distill.manifest import SealedFile, file_sha256
from distill.publishing import publish, published
from distill.records import View, changed, parsed, read_record, write_record
from distill.remote import Place, RemotePath

Sample = dict[str, bytes]  # extension -> content; members stand in the tar sorted by extension
WORK = ".work"
CLAIM = f"{WORK}/config.json"  # what a folder was claimed for


class ShardRecord(View):
    """The record of one finished shard; `report` is for the code that seals the set."""

    name: str = Field(exclude=True)  # which the name of the file says
    tar: SealedFile
    index: SealedFile
    report: dict[str, Any]


@dataclass(frozen=True)
class ShardContent:
    """A shard to write: its samples by key, and a report that is stored in its record."""

    samples: dict[str, Sample]
    report: dict[str, Any]


def claim(folder: Place, config: dict[str, Any], *, command: str) -> None:
    """Takes `folder` for a job of this `config`; refuses one begun with another config."""
    check_installed("webdataset")  # before anything is computed that it writes
    found = claimed(folder)
    if found is None:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / WORK).is_dir():
            raise ArtefactError(f"{folder}: exists and was not begun by {command}; choose an empty or new folder")
        write_record(folder / CLAIM, config)
    elif keys := changed(found, config):
        raise ArtefactError(
            f"{folder}: begun with other settings ({', '.join(keys)} differ); delete the folder or choose another one "
            f"for {command}"
        )


def claimed(folder: Place) -> dict[str, Any] | None:
    """The config that `folder` was claimed with; None if it was not."""
    return read_record(folder / CLAIM) if (folder / CLAIM).is_file() else None


def build(folder: Place, name: str, make: Callable[[], ShardContent]) -> ShardRecord:
    """Returns the record of shard `name`, making the shard first unless it is already there and whole."""
    done = finished(folder, name)
    if done is not None:
        return done
    import webdataset  # of the extra [train]: only those who write shards need it

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
        index = make_index(file, folder / f"{name}.tar")
    publish(folder / index_of(f"{name}.tar"), index)
    sealed = SealedFile(sha256=hashlib.sha256(index).hexdigest(), bytes=len(index))
    record = ShardRecord(name=name, tar=tar, index=sealed, report=content.report)
    write_record(folder / WORK / f"{name}.json", record.model_dump())
    return record


def finished(folder: Place, name: str) -> ShardRecord | None:
    """The record of a shard that is whole on disk (behind a URL: there, and of the recorded size), else None."""
    record = _recorded(folder, name)
    files = sealed_files([record] if record else [])
    return record if all(_whole(folder / file, sealed) for file, sealed in files.items()) else None


def _whole(path: Place, sealed: SealedFile) -> bool:
    if isinstance(path, RemotePath):
        return path.size() == sealed.bytes
    try:
        return path.is_file() and file_sha256(path) == sealed.sha256
    except OSError:
        return False


def _recorded(folder: Place, name: str) -> ShardRecord | None:
    """Return the record of a shard, whether the shard is still there or not; None without a whole record."""
    path = folder / WORK / f"{name}.json"
    try:
        return parsed(ShardRecord, read_record(path) | {"name": name}, path, "make the shard again")
    except ArtefactError:
        return None  # a torn record is no record: the shard is made again


def sealed_files(records: Iterable[ShardRecord]) -> dict[str, SealedFile]:
    """The manifest's `files` of a finished job."""
    files = {}
    for record in records:
        files[f"{record.name}.tar"] = record.tar
        files[index_of(f"{record.name}.tar")] = record.index
    return files


def open_built_shards(folder: Place, names: Iterable[str], cache: Cache | None = None) -> Shards:
    """The samples of shards that are finished but not sealed."""
    records = {name: _recorded(folder, name) for name in names}
    missing = [name for name, record in records.items() if record is None]
    if missing:
        raise ArtefactError(f"{folder}: shard {missing[0]} is not finished; start its maker again")
    return Shards(folder, sealed_files(record for record in records.values() if record), cache)


def split(items: int, per_shard: int) -> Iterator[tuple[str, range]]:
    """Shard names and the items that each one holds."""
    for number, start in enumerate(range(0, items, per_shard)):
        yield f"{number:05d}", range(start, min(start + per_shard, items))
