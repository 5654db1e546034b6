"""Find video files in a folder or a list, and divide them into spans.

A file's id is its path below the video folder, without its extension.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.data.timeline import Span
from distill.data.video import EXTENSIONS, stem
from distill.errors import ArtefactError, ExpectedError, check_regular


@dataclass(frozen=True)
class VideoFile:
    """A file in a video folder. A missing file has 0 bytes here; sampling it raises the error."""

    id: str
    source: str  # path below the folder
    bytes: int
    changed: int  # time of the last change, nanoseconds


def find(source: Path, folder: Path | None = None) -> tuple[Path, list[VideoFile], list[dict[str, str]]]:
    """Return the video folder, the files of `source` in it, and a note for each file that cannot be used.

    `source` is a folder, searched with its subfolders except hidden ones, or a text file with one path per line,
    absolute or relative to the text file. `folder` is the video folder: by default `source` itself, or the deepest
    folder that contains all listed files. Two files that differ only in their extension have the same id; the first is
    kept. Raises `ArtefactError` if there are no videos, `ExpectedError` if one lies outside the folder.
    """
    if source.is_dir():
        paths = sorted(_below(source))
        root = folder or source
    else:
        paths = _listed(source)
        root = folder or Path(os.path.commonpath([path.parent for path in paths]) if paths else source.parent)
    if not paths:
        raise ArtefactError(f"{source}: no video files; expected some that end in {' '.join(EXTENSIONS)}")
    if not root.is_dir():
        raise ArtefactError(f"{root}: no such folder; expected the one that holds the video files")
    found: dict[str, VideoFile] = {}
    left_out = []
    for path in paths:
        file = _file(root, path)
        shown = file.source.encode(errors="backslashreplace").decode()
        if shown != file.source:
            left_out.append({"video": shown, "source": shown, "reason": "its name is not UTF-8; rename it"})
        elif file.id not in found:
            found[file.id] = file
        elif found[file.id].source != file.source:
            reason = f"same id as {found[file.id].source}; rename one"
            left_out.append({"video": file.id, "source": file.source, "reason": reason})
    return root, list(found.values()), left_out


def _below(folder: Path) -> Iterator[Path]:
    for inside, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(inside, name) for name in names if not name.startswith(".") and stem(name) != name)


def _listed(path: Path) -> list[Path]:
    check_regular(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ArtefactError(
            f"{path}: {error.strerror}; expected a frame set, a folder of video files, or a text file of their paths"
        ) from None
    except UnicodeDecodeError:
        raise ArtefactError(f"{path}: not a text file; expected one with the path of a video in every line") from None
    return [path.parent / line.strip() for line in lines if line.strip()]


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
