"""Find video files in a folder or a list, and divide them into spans.

A file's id is its path below the video folder, without its extension.
"""

import logging
import math
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from distill.data.signatures import is_video_file
from distill.data.textfiles import read_list
from distill.data.timeline import Span
from distill.data.video import EXTENSIONS, stem
from distill.errors import ArtefactError, ExpectedError, check_regular, first_few
from distill.log import progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoFile:
    """A file in a video folder. A missing file has 0 bytes here; sampling it raises the error."""

    id: str
    source: str  # path below the folder
    bytes: int
    changed: int  # time of the last change, nanoseconds


def find(source: Path, folder: Path | None = None) -> tuple[Path, list[VideoFile], list[dict[str, str]]]:
    """Return the video folder, the files of `source` in it, and a note for each file that cannot be used.

    `source` is a folder, searched with its subfolders and linked folders, except hidden ones, or a text file with one
    path per line, absolute or relative to the text file. `folder` is the video folder: by default `source` itself, or
    the deepest folder that contains all listed files. Of files that differ only in their extension, which have the same
    id, the one whose extension stands first in `EXTENSIONS` is kept. One line counts the videos of a folder that are
    not taken, whatever their names. Raises `ArtefactError` if there are no videos, `ExpectedError` if one lies outside
    the folder.
    """
    left_out: list[dict[str, str]] = []
    if source.is_dir():
        paths = _below(source, left_out)
        root = folder or source
    else:
        paths = _listed(source)
        root = folder or Path(os.path.commonpath([path.parent for path in paths]) if paths else source.parent)
    if not paths:
        raise ArtefactError(f"{source}: no video files; expected some that end in {' '.join(EXTENSIONS)}")
    if not root.is_dir():
        raise ArtefactError(f"{root}: no such folder; expected the one that holds the video files")
    found: dict[str, VideoFile] = {}
    for path in paths:
        file = _file(root, path)
        shown = file.source.encode(errors="backslashreplace").decode()
        if shown != file.source:
            left_out.append({"video": shown, "source": shown, "reason": "its name is not UTF-8; rename it"})
            continue
        kept = found.setdefault(file.id, file)
        if kept.source != file.source:
            first, second = sorted((kept, file), key=_rank)
            found[file.id] = first
            reason = f"same id as {first.source}; rename one"
            left_out.append({"video": file.id, "source": second.source, "reason": reason})
    return root, list(found.values()), left_out


def _rank(file: VideoFile) -> int:
    """Return the place of a file's extension in `EXTENSIONS`, the order in which packing takes files, too."""
    return EXTENSIONS.index(os.path.splitext(file.source)[1].lower()) if stem(file.source) != file.source else -1


def _below(folder: Path, left_out: list[dict[str, str]]) -> list[Path]:
    """Return the videos below a folder, sorted; a note says which folders cannot be listed.

    Linked folders are searched after all others. A folder that was searched already is not searched again, so that
    loops end, and no file has two ids because of a link.
    """
    found, others, again = [], [], []
    waiting, seen = deque([folder]), set[tuple[int, int]]()

    def refused(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder).encode(errors="backslashreplace").decode()
        left_out.append({"video": name, "source": name, "reason": f"cannot be listed: {error.strerror}"})

    while waiting:
        start = waiting.popleft()
        for inside, folders, names in os.walk(start, onerror=refused):
            known = os.stat(inside)
            if start != folder and (known.st_dev, known.st_ino) in seen:
                folders.clear()
                again += [os.path.relpath(inside, folder)] if inside == str(start) else []
                continue
            seen.add((known.st_dev, known.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [Path(inside, name) for name in folders if os.path.islink(os.path.join(inside, name))]
            for name in names:
                taken = not name.startswith(".") and stem(name) != name
                (found if taken else others).append(Path(inside, name))
    if again:
        shown = first_few(sorted(again), 3)
        log.info("%s: %d linked folders are searched in another place: %s", folder, len(again), shown)
    _count_ignored(folder, others)
    return sorted(found)


def _count_ignored(folder: Path, others: list[Path]) -> None:
    """Log one line with the number of videos among files that are not taken."""
    ignored = [
        os.path.relpath(path, folder)
        for path in progress(others, f"look at other files of {folder}", len(others))
        if is_video_file(path)
    ]
    if ignored:
        words = f"not taken, because their names are hidden or do not end in {' '.join(EXTENSIONS)}"
        shown = first_few(sorted(ignored), 3)
        log.warning("%s: %d videos are %s: %s; a list of paths takes any name", folder, len(ignored), words, shown)


def _listed(path: Path) -> list[Path]:
    check_regular(path)
    if not path.exists():
        raise ArtefactError(
            f"{path}: no such file; expected a frame set, a folder of video files, or a text file of their paths"
        )
    is_video = is_video_file(path)
    lines = [] if is_video else read_list(path)
    if is_video or any("\0" in line for line in lines):
        raise ArtefactError(f"{path}: not a text file; expected one with the path of a video in every line")
    return [path.parent / line for line in lines]


def _file(root: Path, path: Path) -> VideoFile:
    source = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    if source.startswith(".."):
        raise ExpectedError(f"{path}: not in the video folder {root}; give a folder that holds all videos")
    try:
        known = path.stat()
        size, changed = known.st_size, known.st_mtime_ns
    except OSError:
        size, changed = 0, 0
    return VideoFile(stem(Path(source).as_posix()), Path(source).as_posix(), size, changed)


def spans(duration: float, seconds: float | None, overlap: float) -> list[Span]:
    """Divide a file of `duration` seconds into spans of `seconds` that overlap by `overlap` seconds.

    A file that is not longer than `seconds` stays whole. The last span ends with the file and is longer than the
    overlap.
    """
    if seconds is None or duration <= seconds:
        return [None]
    step = seconds - overlap
    count = math.ceil(round((duration - overlap) / step, 6))
    return [(round(i * step, 3), round(min(i * step + seconds, duration), 3)) for i in range(count)]


def span_id(file: str, span: Span) -> str:
    """Return the id of one span: `holiday@30-60` is the file `holiday` from second 30 to 60."""
    return file if span is None else f"{file}@{span[0]:.10g}-{span[1]:.10g}"
