"""Read the shards that img2dataset and video2dataset write: `00000.tar` ... with the files of many downloads.

A download has `<key>.mp4` (or another video extension), `<key>.txt` (the caption) and `<key>.json` (`caption`, `status`
and much more). A failed one has no video, and its status says so. Keys may contain dots; clips of one video are called
`<key>_<number>`. Videos are decoded inside the tar; nothing is unpacked.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill.data.tars import Member, members
from distill.errors import ArtefactError, VideoError
from distill.log import progress

LARGEST = 16 << 20  # bytes of a caption or of a video's JSON


@dataclass(frozen=True)
class Download:
    """One sample: its caption (perhaps empty), the path of its video in the folder, and why it is unusable, if so."""

    key: str
    caption: str
    source: str
    unusable: str | None


def tars(folder: Path) -> list[Path]:
    """Return the shards of a folder, sorted by name."""
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; expected the one that holds 00000.tar ...")
    found = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.is_file())
    if not found:
        raise ArtefactError(f"{folder}: holds no shards; expected 00000.tar ...")
    return found


def downloads(folder: Path, extensions: Sequence[str]) -> Iterator[Download]:
    """Yield the samples of all shards of a folder; of several videos of a key, the first of `extensions` is taken."""
    shown = tars(folder)
    for path in progress(shown, f"read {folder} (shards)"):
        with path.open("rb") as file:
            samples: dict[str, dict[str, Member]] = {}
            for member in members(file, path):
                key, dot, ending = member.name.rpartition(".")
                if dot and f".{ending.lower()}" in (*extensions, ".txt", ".json"):
                    samples.setdefault(key, {})[f".{ending.lower()}"] = member
            for key, found in samples.items():
                yield _download(file, path.name, key, found, extensions)


def _download(
    file: io.BufferedReader, tar: str, key: str, found: dict[str, Member], extensions: Sequence[str]
) -> Download:
    video = next((found[extension] for extension in extensions if extension in found), None)
    source = f"{tar}/{video.name if video else f'{key}{extensions[0]}'}"
    try:
        known = json.loads(_text(file, found[".json"])) if ".json" in found else {}
        known: dict[str, Any] = known if isinstance(known, dict) else {}
        caption = _text(file, found[".txt"]).strip() if ".txt" in found else ""
        caption = caption or str(known.get("caption") or "").strip()
        caption.encode()
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and half of a surrogate pair
        return Download(key, "", source, f"its text cannot be read ({error})")
    status = known.get("status") or "success"
    if status != "success":
        return Download(key, caption, source, f"status {status}")
    if video is None:
        return Download(key, caption, source, "missing")
    return Download(key, caption, source, None if caption else "no caption")


def _text(file: io.BufferedReader, member: Member) -> str:
    if member.size > LARGEST:
        raise ValueError(f"{member.size} bytes")
    file.seek(member.offset)
    return file.read(member.size).decode("utf-8-sig")


def open_video(folder: Path, source: str) -> "Section":
    """Open the video `source` (`<tar>/<name>`) as a file. Raises `VideoError` if the tar has no such member."""
    tar, _, name = source.partition("/")
    found = _listing(folder / tar).get(name)
    if found is None:
        raise VideoError("missing")
    return Section(folder / tar, found)


@lru_cache(maxsize=2)
def _listing(tar: Path) -> dict[str, Member]:
    with tar.open("rb") as file:
        return {member.name: member for member in members(file, tar)}


class Section(io.RawIOBase):
    """A member of a tar, read as a file."""

    def __init__(self, tar: Path, member: Member):
        self._file, self._member, self._position = tar.open("rb"), member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._member.size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative position {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        view = memoryview(buffer)[: max(0, self._member.size - self._position)]
        self._file.seek(self._member.offset + self._position)
        count = self._file.readinto(view)
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
