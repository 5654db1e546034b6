"""Read the shards that img2dataset and video2dataset write: `00000.tar` ... with the files of many downloads.

A download has `<key>.mp4` (or another video extension), `<key>.txt` (the caption) and `<key>.json` (`caption`, `status`
and much more). A failed one has no video, and its status says so. Keys may contain dots; clips of one video are called
`<key>_<number>`. Videos are decoded inside the tar; nothing is unpacked.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from distill.data.tars import Member, members
from distill.data.video import EXTENSIONS
from distill.errors import ArtefactError, VideoError
from distill.log import progress
from distill.packing.rows import CaptionRow

LARGEST = 16 << 20  # bytes of a caption or of a video's JSON


def tars(folder: Path) -> list[Path]:
    """Return the shards of a folder, sorted by name."""
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such folder; expected the one that holds 00000.tar ...")
    found = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.is_file())
    if not found:
        raise ArtefactError(f"{folder}: holds no shards; expected 00000.tar ...")
    return found


def read_webdataset(folder: Path) -> Iterator[CaptionRow]:
    """Yield the samples of all shards of a folder; of several videos of a key, the first of `EXTENSIONS` is taken.

    A failed download, or one without a caption, is a row too, so that packing can report it.
    """
    for tar in progress(tars(folder), f"read {folder} (shards)"):
        with tar.open("rb") as file:
            samples: dict[str, dict[str, Member]] = {}
            for member in members(file, tar):
                key, dot, ending = member.name.rpartition(".")
                if dot and f".{ending.lower()}" in (*EXTENSIONS, ".txt", ".json"):
                    samples.setdefault(key, {})[f".{ending.lower()}"] = member
            for key, found in samples.items():
                yield _row(file, tar, key, found)


def _row(file: io.BufferedReader, tar: Path, key: str, found: dict[str, Member]) -> CaptionRow:
    video = next((found[extension] for extension in EXTENSIONS if extension in found), None)
    unusable = None
    try:
        known = json.loads(_text(file, found[".json"])) if ".json" in found else {}
        known: dict[str, Any] = known if isinstance(known, dict) else {}
        caption = _text(file, found[".txt"]).strip() if ".txt" in found else ""
        caption = caption or str(known.get("caption") or "").strip()
        caption.encode()
        if (status := known.get("status") or "success") != "success":
            unusable = f"status {status}"
        elif video is None or not caption:
            unusable = "no caption" if video else "missing"
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and half of a surrogate pair
        caption, unusable = "", f"its text cannot be read ({error})"
    source = f"{tar.name}/{video.name if video else f'{key}{EXTENSIONS[0]}'}"
    return CaptionRow(f"{tar}: {key}", key, caption, files=(source,), unusable=unusable)


def _text(file: io.BufferedReader, member: Member) -> str:
    if member.size > LARGEST:
        raise ValueError(f"{member.size} bytes")
    file.seek(member.offset)
    return file.read(member.size).decode("utf-8-sig")


@contextmanager
def open_video(folder: Path, source: str) -> Iterator[io.BufferedReader]:
    """Open the video `source` (`<tar>/<name>`) as a file. Raises `VideoError` if the tar has no such member."""
    tar, _, name = source.partition("/")
    found = _listing(folder / tar).get(name)
    if found is None:
        raise VideoError("missing")
    member = tarfile.TarInfo(name)
    member.offset_data, member.size = found.offset, found.size
    with tarfile.open(folder / tar, "r:") as archive, cast(io.BufferedReader, archive.extractfile(member)) as file:
        yield file


@lru_cache(maxsize=2)
def _listing(tar: Path) -> dict[str, Member]:
    with tar.open("rb") as file:
        return {member.name: member for member in members(file, tar)}
