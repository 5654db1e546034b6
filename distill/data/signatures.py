"""Recognise a video file by its first bytes, whatever its name is. No container is parsed."""

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

HEAD = 600  # bytes that are looked at: three packets of a transport stream
SOUND = (b"M4A ", b"M4B ", b"M4P ")  # brands of ISO files without pictures
STILL = (b"heic", b"heix", b"avif", b"mif1", b"crx ", b"jp2 ")  # and without motion

# ISO files (mp4, mov, 3gp), Matroska, AVI, Ogg with a video codec, FLV, ASF, RealMedia, MXF, GIF, MPEG program and
# elementary streams, and transport streams of 188 and 192 bytes a packet.
VIDEO = re.compile(
    rb"....(?:ftyp|moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF....AVI |OggS.{20,120}(?:\x80theora|\x01video|OVP80|BBCD)"
    rb"|FLV\x01|\x30\x26\xb2\x75\x8e\x66\xcf\x11|\.RMF|\x06\x0e\x2b\x34\x02\x05\x01\x01|GIF8[79]a"
    rb"|\x00\x00\x01[\xb0\xb3\xba]|\x47.{187}\x47.{187}\x47|....\x47.{191}\x47.{191}\x47",
    re.DOTALL,
)


def is_video(file: BinaryIO, offset: int = 0) -> bool:
    """Return whether a video begins at this byte of an open file."""
    file.seek(offset)
    head = file.read(HEAD)
    return VIDEO.match(head) is not None and not (head[4:8] == b"ftyp" and head[8:12] in SOUND + STILL)


def is_video_file(path: Path) -> bool:
    """Return whether a video begins in this file; not for a pipe, a device, or what cannot be opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with path.open("rb", buffering=HEAD) as file:
            return is_video(file)
    except OSError:
        return False
