"""The members of a tar and their places, without unpacking it: one pass over the headers, each checked.

Names must stay inside a folder and occur once, members must be plain files that lie within the tar, and headers must
be of a sensible size: a tar may come from anywhere. Damage that `tarfile` takes for the end is an error here.
"""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from distill.errors import ArtefactError

BLOCK = tarfile.BLOCKSIZE
LONGEST_HEADER = 64 << 10  # bytes of a long name or of pax records; tarfile reads them into memory, whatever they claim
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES)


class Member(NamedTuple):
    """A file in a tar: its name, and where its content begins and how long it is."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO, where: object) -> Iterator[Member]:
    """The files of an open tar in their order; `where` names it in errors."""
    seen: set[str] = set()
    position = 0
    try:
        end = file.seek(0, 2)
        _check_extended(file, 0, where)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.size < 0 or member.offset < position or member.offset_data + member.size > end:
                    raise ArtefactError(f"{where}: {member.name!r} claims to lie outside of it; it is damaged")
                position = archive.offset
                if not member.isdir():
                    yield Member(_checked_name(member, seen, where), member.offset_data, member.size)
                _check_extended(file, position, where)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        raise ArtefactError(f"{where}: not a whole tar ({error}); it is truncated or damaged") from None
    except OSError as error:
        raise ArtefactError(f"{where}: cannot be read ({error.strerror}); is its disk still there?") from None
    file.seek(position)
    if file.read(BLOCK).strip(b"\0"):
        raise ArtefactError(f"{where}: not a tar at byte {position}; it is damaged there")


def _check_extended(file: BinaryIO, position: int, where: object) -> None:
    """Long names and pax records stand before the header that they belong to; a chain of them is followed."""
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        if len(block) < BLOCK or block[156:157] not in EXTENDED or block[156:157] == tarfile.GNUTYPE_SPARSE:
            return
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
        if not 0 <= size <= LONGEST_HEADER:
            raise ArtefactError(f"{where}: a header of {size} bytes at byte {position}; it is damaged")
        position += BLOCK + -(-size // BLOCK) * BLOCK


def _checked_name(member: tarfile.TarInfo, seen: set[str], where: object) -> str:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or not path.parts:
        raise ArtefactError(f"{where}: member {member.name!r} points outside; do not use this file")
    if not member.isreg() or member.issparse():
        raise ArtefactError(f"{where}: member {member.name!r} is not a plain file; make the tar again without it")
    try:
        member.name.encode()
    except UnicodeEncodeError:
        raise ArtefactError(f"{where}: the name of member {member.name!r} is not UTF-8") from None
    if str(path) in seen:
        raise ArtefactError(f"{where}: holds {member.name!r} twice; make the tar again")
    seen.add(str(path))
    return str(path)
