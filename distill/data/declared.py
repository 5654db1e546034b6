"""The number of bytes that a container declares: a file that holds fewer is a part of one, as of a broken download."""

import io
import os

BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"sidx", b"mfra", b"uuid", b"meta")
BOXES += (b"pdin", b"emsg", b"prft", b"ssix", b"pnot", b"udta")
MOST = 1_000_000  # boxes looked at; a file of more makes no claim
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # identifiers of its header, and of the object with the size
PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def declared_bytes(file: io.BufferedReader) -> int | None:
    """Return how long a file of MP4, Matroska, AVI or ASF is by its own structure; None if it does not say.

    Only the outermost elements are read, so time and memory do not depend on what they claim. The file's position is
    lost.
    """
    size = file.seek(0, io.SEEK_END)
    head = _read(file, 0, 16)
    if head[4:8] in BOXES:
        return _boxes(file, size)
    if head[:4] == EBML:
        return _segment(file)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _riffs(file, size)
    return _asf(file, size) if head == ASF else None


def _boxes(file: io.BufferedReader, size: int) -> int | None:
    """Return where the last box of ISO 14496-12 ends; junk behind the boxes counts for nothing."""
    end = 0
    for _ in range(MOST):
        head = _read(file, end, 16)
        length = int.from_bytes(head[:4], "big")
        if len(head) < 8 or head[4:8] not in BOXES:
            return end
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: until the end of the file, whatever that is
            return None
        end += length
        if end >= size:
            return end
    return None


def _segment(file: io.BufferedReader) -> int | None:
    """Return where Matroska's segment ends; a live recording does not say."""
    length, place = _number(file, len(EBML))
    if length is None or _read(file, place + length, 4) != SEGMENT:
        return None
    length, place = _number(file, place + length + len(SEGMENT))
    return None if length is None else place + length


def _number(file: io.BufferedReader, place: int) -> tuple[int | None, int]:
    """Return an EBML length (RFC 8794, section 4) and the place behind it; None for the reserved "unknown"."""
    head = _read(file, place, 8)
    width = 9 - head[0].bit_length() if head and head[0] else 9
    if len(head) < width:
        return None, place
    value = int.from_bytes(head[:width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), place + width


def _riffs(file: io.BufferedReader, size: int) -> int | None:
    """Return where the last of an AVI's RIFF chunks ends; long files have several."""
    end = 0
    while (head := _read(file, end, 12))[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        if length < 4:  # a recording that was not closed
            return None
        end += 8 + length + length % 2
        if end >= size:
            break
    return end - length % 2  # the last chunk may lack its padding


def _asf(file: io.BufferedReader, size: int) -> int | None:
    """Return the length that the header of a wmv names (ASF specification, 3.2); a broadcast names none."""
    place = 30  # behind the header's identifier, length and count of objects
    for _ in range(MOST):
        head = _read(file, place, 92)
        length = int.from_bytes(head[16:24], "little")
        if head[:16] == PROPERTIES and len(head) == 92:
            broadcast = head[88] & 1
            return None if broadcast else int.from_bytes(head[40:48], "little")
        if length < 24 or place + length > size:
            return None
        place += length
    return None


def _read(file: io.BufferedReader, place: int, count: int) -> bytes:
    file.seek(place, os.SEEK_SET)
    return file.read(count)
