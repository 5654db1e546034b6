"""Read the shards that img2dataset and video2dataset write: `00000.tar` ... with the files of many downloads.

A download has `<key>.mp4` (or another video extension), `<key>.txt` (the caption) and `<key>.json` (`caption`, a text
or a list of texts, `status` and much more). A failed one has no video, and its status says so. Keys may contain dots,
and have folders before them; clips of one video are called `<key>_<number>`. Videos are decoded inside the tar; nothing
is unpacked.
"""

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, cast

from distill.data.signatures import is_video
from distill.data.tars import Member, members
from distill.data.video import EXTENSIONS
from distill.errors import ArtefactError, VideoError, first_few
from distill.log import progress
from distill.packing.rows import CaptionRow

log = logging.getLogger(__name__)
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
    """Yield the captions of all shards of a folder; of several videos of a key, the first of `EXTENSIONS` is taken.

    A failed download, or one without a caption, is a row too, so that packing can report it. Videos that are not taken,
    because of their endings or beside another of their key, are counted in one line.
    """
    ignored: list[str] = []
    for tar in progress(tars(folder), f"read {folder} (shards)"):
        with tar.open("rb") as file:
            samples: dict[str, dict[str, Member]] = {}
            others: list[Member] = []
            for member in members(file, tar):
                key, ending = os.path.splitext(member.name)
                known = ending.lower() in (*EXTENSIONS, ".txt", ".json")
                first = samples.setdefault(key, {}).setdefault(ending.lower(), member) if known else None
                others += [] if first is member else [member]
            for key, found in samples.items():
                videos = [found[extension] for extension in EXTENSIONS if extension in found]
                others += videos[1:]
                yield from _rows(file, tar, key, found, videos[0] if videos else None)
            ignored += (f"{tar.name}/{name}" for name, offset, _ in others if is_video(file, offset))
    if ignored:
        found = f"{len(ignored)} videos are not taken, by their endings or beside another of their key"
        log.warning("%s: %s: %s", folder, found, first_few(ignored))


def _rows(
    file: io.BufferedReader, tar: Path, key: str, found: dict[str, Member], video: Member | None
) -> Iterator[CaptionRow]:
    unusable, captions = None, [""]
    try:
        known = json.loads(_text(file, found[".json"])) if ".json" in found else {}
        known: dict[str, Any] = known if isinstance(known, dict) else {}
        said = _text(file, found[".txt"]).strip() if ".txt" in found else ""
        captions = [said] if said else _captions(known.get("caption"))
        "".join(captions).encode()
        if (status := known.get("status") or "success") != "success":
            unusable = f"status {status}"
        elif video is None or not captions:
            unusable = "no caption" if video else "missing"
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8, and half of a surrogate pair
        unusable = f"its text cannot be read ({error})"
    source = f"{tar.name}/{video.name if video else f'{key}{EXTENSIONS[0]}'}"
    for caption in captions if unusable is None else [""]:
        yield CaptionRow(f"{tar}: {key}", key, caption, files=(source,), unusable=unusable)


def _captions(found: Any) -> list[str]:
    """Return the texts of a JSON's `caption`: a text, or a list of them. Raises `ValueError` for anything else."""
    texts = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(text, str) for text in texts) or (len(texts) > 1 and not all(map(str.strip, texts))):
        raise ValueError(f"caption: expected a text or a list of texts, found {shortened(found)}")
    return [text.strip() for text in texts if text.strip()]


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
