"""Annotation files in: which videos there are, what is said of each, and where each file lies.

Two layouts. `msrvtt`: a csv with a `video_id` column; its `sentence` column holds the captions, or, without one,
`MSRVTT_data.json` beside it does. `csv`: one row per caption, `video,caption` and optionally `start,end` in seconds,
where `video` is a file name with or without its extension. Videos and captions keep the order of the file. A video
that is not in the folder is not an error here: packing reports it by id.
"""

import csv
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import ArtefactError

log = logging.getLogger(__name__)

EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v")
MSRVTT_CAPTIONS = "MSRVTT_data.json"


@dataclass(frozen=True)
class Caption:
    """One sentence said of a video; `id` is unique within an annotation file."""

    id: str
    text: str


@dataclass(frozen=True)
class Clip:
    """A video, or the part of one between `start` and `end` seconds, and its captions."""

    video: str  # the id that all later artefacts use
    captions: tuple[Caption, ...]
    source: str  # file name relative to the video folder, found or expected
    start: float | None = None
    end: float | None = None


def read_annotations(path: Path, layout: str, videos: Path) -> list[Clip]:
    """Reads an annotation file in one of `LAYOUTS` and finds the files in the folder `videos`."""
    if layout not in LAYOUTS:
        raise ArtefactError(f"{path}: unknown annotation layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise ArtefactError(f"{path}: pickles can run code and are not read; convert the captions to a csv file")
    if not videos.is_dir():
        raise ArtefactError(f"{videos}: no such folder; expected the one that holds the video files")
    return LAYOUTS[layout](path, _Folder(videos))


class _Folder:
    """The video files of one folder, from a single listing: a stat per id is slow on network disks."""

    def __init__(self, path: Path):
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
        self.names = set(names)
        self.by_stem: dict[str, str] = {}
        for extension in reversed(EXTENSIONS):  # the first of them wins
            for name in names:
                stem, found = os.path.splitext(name)
                if found.lower() == extension:
                    self.by_stem[stem] = name

    def find(self, video: str) -> str:
        """The file name of a video given by id or by full name; `<id>.mp4` where there is none."""
        if video in self.names:
            return video
        return self.by_stem.get(video) or (video if _stem(video) != video else f"{video}.mp4")


class _Collector:
    """Groups captions by clip in order of first appearance, without exact repeats."""

    def __init__(self, path: Path):
        self.path = path
        self.clips: dict[str, tuple[str, float | None, float | None]] = {}
        self.captions: dict[str, dict[str, Caption]] = {}
        self.ids: set[str] = set()
        self.repeats = 0

    def add(self, clip: Clip, caption: Caption, where: str) -> None:
        if not caption.text:
            raise ArtefactError(f"{self.path}: {where}: empty caption for {clip.video!r}; write one or delete the row")
        if caption.id in self.ids:
            raise ArtefactError(f"{self.path}: {where}: caption id {caption.id!r} appears twice; ids must be unique")
        self.ids.add(caption.id)
        self.clips.setdefault(clip.video, (clip.source, clip.start, clip.end))
        if self.captions.setdefault(clip.video, {}).setdefault(caption.text, caption) is not caption:
            self.repeats += 1

    def finish(self) -> list[Clip]:
        if not self.clips:
            raise ArtefactError(f"{self.path}: no captions; expected at least one row below the header")
        if self.repeats:
            log.info("%s: dropped %d exact repeats of a caption of the same video", self.path, self.repeats)
        return [
            Clip(video, tuple(self.captions[video].values()), source, start, end)
            for video, (source, start, end) in self.clips.items()
        ]


def read_msrvtt(path: Path, folder: _Folder) -> list[Clip]:
    """MSR-VTT: captions in the csv itself (1k-A test) or in `MSRVTT_data.json` beside it (7k and 9k training)."""
    columns, rows = _rows(path, required=("video_id",))
    collector = _Collector(path)
    if "sentence" not in columns:
        return _join_sentences(path, [_filled(path, where, row, "video_id") for where, row in rows], folder)
    for number, (where, row) in enumerate(rows):
        video = _filled(path, where, row, "video_id")
        key = row.get("key", "").strip() or str(number)
        collector.add(Clip(video, (), folder.find(video)), Caption(key, row["sentence"].strip()), where)
    return collector.finish()


def read_csv(path: Path, folder: _Folder) -> list[Clip]:
    """Plain csv: `video,caption[,start,end]`; each stretch of time is a clip of its own, `name#start-end`."""
    _, rows = _rows(path, required=("video", "caption"))
    collector = _Collector(path)
    for number, (where, row) in enumerate(rows):
        name = _filled(path, where, row, "video")
        if Path(name).name != name or "\\" in name:
            raise ArtefactError(f"{path}: {where}: video: expected a file name in the video folder, found {name!r}")
        start, end = (_seconds(path, where, row, column) for column in ("start", "end"))
        if (start is None) != (end is None) or (start is not None and end is not None and end <= start):
            found = f"start {row.get('start', '')!r}, end {row.get('end', '')!r}"
            raise ArtefactError(f"{path}: {where}: expected both start and a later end, or neither; found {found}")
        video = _stem(name) if start is None else f"{_stem(name)}#{start:.12g}-{end:.12g}"
        clip = Clip(video, (), folder.find(name), start, end)
        collector.add(clip, Caption(str(number), row["caption"].strip()), where)
    return collector.finish()


def _join_sentences(path: Path, videos: list[str], folder: _Folder) -> list[Clip]:
    """The captions that `MSRVTT_data.json` holds of the listed videos."""
    captions_path = path.with_name(MSRVTT_CAPTIONS)
    if not videos:
        raise ArtefactError(f"{path}: no videos; expected at least one row below the header")
    by_video: dict[str, list[tuple[str, Caption]]] = {video: [] for video in videos}
    if len(by_video) < len(videos):
        log.info("%s: dropped %d repeated video ids", path, len(videos) - len(by_video))
    for number, sentence in enumerate(_sentences(captions_path)):
        where = f"sentences[{number}]"
        video, text = (sentence.get(key) if isinstance(sentence, dict) else None for key in ("video_id", "caption"))
        if not isinstance(video, str) or not isinstance(text, str) or "sen_id" not in sentence:
            raise ArtefactError(f"{captions_path}: {where}: expected video_id, caption and sen_id, found {sentence!r}")
        if video in by_video:
            by_video[video].append((where, Caption(str(sentence["sen_id"]), text.strip())))
    bare = [video for video, captions in by_video.items() if not captions]
    if bare:
        more = f" (and {len(bare) - 1} more)" if len(bare) > 1 else ""
        raise ArtefactError(f"{path}: lists {bare[0]!r}, which has no caption in {captions_path.name}{more}")
    collector = _Collector(captions_path)
    for video, captions in by_video.items():
        for where, caption in captions:
            collector.add(Clip(video, (), folder.find(video)), caption, where)
    return collector.finish()


def _sentences(path: Path) -> list[Any]:
    try:
        tree = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ArtefactError(f"{path}: not valid JSON: {error}") from None
    sentences = tree.get("sentences") if isinstance(tree, dict) else None
    if not isinstance(sentences, list):
        found = ", ".join(tree) if isinstance(tree, dict) else type(tree).__name__
        raise ArtefactError(f"{path}: expected a list under 'sentences', found {found or 'nothing'}")
    return sentences


def _rows(path: Path, required: tuple[str, ...]) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """Column names, and (place, row) pairs whose missing cells are empty strings."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), restval="", strict=True, skipinitialspace=True)
    try:
        columns = [column.strip() for column in reader.fieldnames or []]
    except csv.Error as error:
        raise ArtefactError(f"{path}: not valid csv: {error}") from None
    if not columns:
        raise ArtefactError(f"{path}: empty file; expected a header line with {', '.join(required)}")
    missing = [column for column in required if column not in columns]
    if missing:
        raise ArtefactError(f"{path}: no column {', '.join(missing)}; found columns {', '.join(columns)}")
    reader.fieldnames = columns

    def rows() -> Iterator[tuple[str, dict[str, str]]]:
        try:
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row:  # more cells than columns: usually a caption with a bare comma
                    raise ArtefactError(f"{path}: {where}: more cells than columns; quote captions that hold a comma")
                yield where, row
        except csv.Error as error:
            raise ArtefactError(f"{path}: line {reader.line_num}: not valid csv: {error}") from None

    return columns, rows()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such annotation file") from None
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}") from None


def _filled(path: Path, where: str, row: dict[str, str], column: str) -> str:
    value = row[column].strip()
    if not value:
        raise ArtefactError(f"{path}: {where}: {column}: empty; expected the name of a video")
    return value


def _seconds(path: Path, where: str, row: dict[str, str], column: str) -> float | None:
    text = row.get(column, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ArtefactError(f"{path}: {where}: {column}: expected seconds, found {text!r}")
    return value


def _stem(name: str) -> str:
    """The name without a video extension; any other dot belongs to the id."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in EXTENSIONS else name


LAYOUTS: dict[str, Callable[[Path, _Folder], list[Clip]]] = {"msrvtt": read_msrvtt, "csv": read_csv}
