"""Files and folders that appear under their names only when they are complete and on disk.

Both are written under a temporary name, flushed to the disk and renamed. A killed process leaves nothing under the
final name; what it leaves under the temporary one is removed by `sweep`, or by the next process that publishes.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from distill.errors import ArtefactError, ExpectedError, placing, writing
from distill.remote import Place, RemotePath


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk and survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(*folders: Place) -> None:
    """Refuse, before any work, a folder that takes no file; one that is not there yet is tried where it would be made.

    A bucket is not tried here: its answer to the first put comes early enough.
    """
    for folder in folders:
        if isinstance(folder, RemotePath):
            folder.check_not_web()
            if folder.local is None:
                continue
            folder = cast(Path, folder.local)
        there = folder
        try:
            while not (there.exists() or there.is_symlink() or there == there.parent):
                there = there.parent
            if not there.is_dir():
                raise ExpectedError(
                    f"{folder}: {there} is in the way, expected a folder; move it, or choose another place"
                )
            with tempfile.TemporaryFile(dir=there):  # without a name where the system can, else removed at once
                pass
        except OSError as error:
            raise ExpectedError(
                f"{folder}: cannot be written ({there}: {error.strerror}); choose another place, or ask its owner for "
                f"permission"
            ) from None


def check_writable_file(path: Path) -> None:
    """Refuse, before any work, a file that cannot be written or replaced."""
    check_writable(path.parent)
    with placing(path):
        if path.is_dir():
            raise ArtefactError(f"{path}: a folder, where a file is to be written; choose another name")


@contextmanager
def published(path: Place) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends without an error.

    Behind a URL: a local temporary file, put there when complete.
    """
    if isinstance(path, RemotePath) and path.local is None:
        with tempfile.NamedTemporaryFile(prefix="distill-") as file, writing(Path(file.name)):
            yield cast(BinaryIO, file)
            file.flush()
            path.upload(Path(file.name))
        return
    path = path if isinstance(path, Path) else cast(Path, path.local)
    with placing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ArtefactError(f"{path}: a folder, where a file is to be written; remove it")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # containers that share a folder share process ids
    try:
        with placing(path):
            opened = part.open("w+b")
        with writing(path, part), opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with placing(path):
            os.replace(part, path)
    except FileNotFoundError:
        if part.exists() or not path.exists():
            raise  # else another process, which had made the same file, sealed the folder and swept this one away
    finally:
        part.unlink(missing_ok=True)
    sync(path.parent)


def publish(path: Place, content: bytes) -> None:
    """Publishes a file of these bytes."""
    with published(path) as file:
        file.write(content)


@contextmanager
def published_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which is renamed to `folder` when the block ends without an error.

    `folder` must then be absent or empty. A block that removes what it was given publishes nothing.
    """
    part = folder.with_name(f".{folder.name}.part")
    with placing(folder):
        if part.exists():  # left by a killed process
            shutil.rmtree(part)
        part.mkdir(parents=True)
    try:
        yield part
        if part.exists():
            with placing(folder):
                os.replace(part, folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sweep(folder: Place, keep: str = "") -> None:
    """Removes the unfinished files that killed processes left in a folder, but not those of the file `keep`."""
    if isinstance(folder, RemotePath):
        return  # nothing is ever unfinished there
    for part in folder.rglob(".*.part"):
        if part.is_file() and not (keep and part.name.startswith(f".{keep}.")):
            part.unlink(missing_ok=True)
