"""Read an annotation file into clips: the videos, their captions, and the file of each.

`LAYOUTS` (distill/packing/layouts.py) reads the files of each data set; this module groups their rows into `Clip`s:

* Clips keep the order in which their ids first appear, captions of a clip the order of the file.
* Every row is a caption of its own. A caption that repeats another of the same video word for word is kept, because
  published protocols use each as a query (MSVD: 10,845 of 80,827 captions). Their number is logged.
* Videos may have different numbers of captions, and their rows need not be adjacent.
* A caption's id is the one in the file; without one it is the row number in a csv, `<video>#<number within the video>`
  elsewhere. An id that occurs twice is an error.
* A name may have folders before it (`holiday/beach.mp4`); they belong to the id, as where a folder is indexed.
* One id means one file and one span: rows of one video that name different ones are an error. If a row gives a name
  without extension, the first of `EXTENSIONS` that exists in the folder is taken; one line counts where others do too.
* A video that is missing from the folder is not an error here: packing reports it by id.
"""

import logging
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distill.data import files
from distill.data.textfiles import refuse_pickle
from distill.data.timeline import Span
from distill.data.video import EXTENSIONS, stem
from distill.data.videos import Caption
from distill.errors import ArtefactError, ExpectedError, first_few
from distill.packing.layouts import LAYOUTS
from distill.packing.rows import CaptionRow

log = logging.getLogger(__name__)
LONGEST_SOURCE = 100  # characters
FOLDER = "folder"  # the layout without annotations


@dataclass(frozen=True)
class Clip:
    """A video, or one span of it, and its captions."""

    video: str  # the id that all later artefacts use
    captions: tuple[Caption, ...]
    source: str  # file name relative to the video folder; the expected name if there is no such file
    span: Span = None
    unusable: str | None = None  # why it cannot be packed, if the annotations say so
    published: bool = False  # whether the span is the data set's own, whose frames are counted


def read_annotations(path: Path, layout: str, videos: Path) -> list[Clip]:
    """Read an annotation file in one of `LAYOUTS` and find the files in the folder `videos`. Raises `ArtefactError`."""
    if layout not in LAYOUTS:
        raise ArtefactError(f"{path}: unknown annotation layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if path.suffix.lower() in (".pkl", ".pickle"):
        refuse_pickle(path)
    if not videos.is_dir():
        raise ArtefactError(f"{videos}: no such folder; expected the one that holds the video files")
    return _clips(path, LAYOUTS[layout](path), _Folder(videos))


def folder_clips(folder: Path) -> list[Clip]:
    """Return the videos of a folder and its sub-folders as clips without captions, with the ids they have in a gallery.

    Those that have no id of their own are unusable, as where the folder is indexed.
    """
    try:
        _, found, left_out = files.find(folder)
    except ExpectedError as error:
        if any(folder.glob("*.tar")):
            raise ArtefactError(f"{error}; its tars need --layout webdataset") from None
        raise
    clips = [Clip(file.id, (), file.source) for file in found]
    return clips + [Clip(note["video"], (), note["source"], unusable=note["reason"]) for note in left_out]


def _clips(path: Path, rows: Iterable[CaptionRow], folder: "_Folder") -> list[Clip]:
    """Group rows by video."""
    clips: dict[str, tuple[CaptionRow, str, list[Caption]]] = {}  # by video: its first row, its file, its captions
    ids: set[str] = set()
    texts: set[tuple[str, str]] = set()
    for row in map(_checked, rows):
        if row.video not in clips:
            clips[row.video] = row, folder.find(row.files), []
        first, source, said = clips[row.video]
        if row.files != first.files and (other := folder.find(row.files)) != source:
            found = f"found {source!r} and {other!r}"
            raise ArtefactError(f"{row.where}: expected one file of the name {row.video!r}, {found}; rename one")
        if row.span != first.span:
            found = f"found {first.span} at {first.where} and {row.span}"
            raise ArtefactError(f"{row.where}: expected one span of the id {row.video!r}, {found}; change one")
        if row.unusable is not None:
            continue
        key = f"{row.video}#{len(said)}" if row.key is None else row.key
        caption = Caption(key, row.text.strip(), row.source)
        if caption.id in ids:
            raise ArtefactError(f"{row.where}: caption id {caption.id!r} appears twice; ids must be unique")
        said.append(caption)
        ids.add(caption.id)
        texts.add((row.video, caption.text))
    if not clips:
        raise ArtefactError(f"{path}: no captions; expected at least one")
    if len(texts) < len(ids):
        log.info("%s: %d captions repeat one of the same video; each is kept", path, len(ids) - len(texts))
    if folder.doubtful:
        log.warning("%s: %s", path, _doubtful(folder.doubtful))
    return [
        Clip(row.video, tuple(said), source, row.span, row.unusable, row.published)
        for row, source, said in clips.values()
    ]


def _doubtful(found: dict[str, list[str]]) -> str:
    examples = [f"{names[0]!r}, not {first_few([*map(repr, names[1:])])}" for names in found.values()]
    return f"{len(found)} names fit several files; taken is {first_few(examples, 1, '; ')}"


def _checked(row: CaptionRow) -> CaptionRow:
    """Return the row with its names in the form in which a folder is indexed: `./a//b.mp4` is `a/b.mp4`."""
    names = (row.video, *(row.files or (row.video,)))
    if row.unusable is None:
        for name in names:
            _check_name(row, name)
        if row.source is not None and not (row.source.isprintable() and len(row.source) <= LONGEST_SOURCE):
            raise ArtefactError(
                f"{row.where}: source: expected a name of at most {LONGEST_SOURCE} characters, found {row.source!r:.40}"
            )
        if not row.text.strip():
            raise ArtefactError(f"{row.where}: empty caption for {row.video!r}; write one or delete it")
        try:
            f"{row.video}{row.key}{row.text}{row.source}".encode()
        except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair, \ud83d
            raise ArtefactError(f"{row.where}: {row.video!r}: not a character: {error.object[error.start]!r}") from None
    video, *files = map(posixpath.normpath, names)
    return row._replace(video=video, files=tuple(files))


def _check_name(row: CaptionRow, name: str) -> None:
    outside, bare = posixpath.normpath(name).startswith(("/", "../")), posixpath.basename(name)
    if outside or not bare.strip(".") or set(name) & {"\\", "\0"}:
        found = (row.files or (row.video,))[0]
        raise ArtefactError(f"{row.where}: video: expected a file name in the video folder, found {found!r}")


class _Folder:
    """The files of one folder, listed once: one `stat` per video is slow on network file systems."""

    def __init__(self, path: Path):
        self.path = path
        self.names: set[str] = set()
        self.folders: dict[str, _Folder | None] = {}  # listed when first looked into
        self.by_stem: dict[str, list[str]] = {}
        self.doubtful: dict[str, list[str]] = {}  # names without extension that fit several files
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if os.path.isfile(entry):
                        self.names.add(entry.name)
                    elif os.path.isdir(entry):
                        self.folders[entry.name] = None
        except OSError as error:
            raise ArtefactError(f"{path}: cannot be listed: {error.strerror}") from None
        for extension in EXTENSIONS:  # the first of them wins
            for name in sorted(self.names):
                bare, found = os.path.splitext(name)
                if found.lower() == extension:
                    self.by_stem.setdefault(bare, []).append(name)

    def find(self, names: tuple[str, ...]) -> str:
        """Return the first of `names` that exists, with or without an extension; if none does, the expected name."""
        for name in names:
            if found := self._look_up(name):
                if len(found) > 1:
                    self.doubtful[name] = found
                return found[0]
        return names[0] if stem(names[0]) != names[0] else f"{names[0].rstrip('.')}.mp4"

    def _look_up(self, name: str) -> list[str]:
        """Return the files that a name may mean, the likeliest first."""
        inside, slash, rest = name.partition("/")
        if slash and inside in self.folders:
            folder = self.folders[inside] = self.folders[inside] or _Folder(self.path / inside)
            return [f"{inside}/{found}" for found in folder._look_up(rest)]
        return [name] if name in self.names else self.by_stem.get(name, [])
