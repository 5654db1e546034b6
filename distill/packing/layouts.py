"""Read the annotation files of each data set: one function per layout, from the file of one split to `CaptionRow`s.

`LAYOUTS` is the table of them. All layouts share these rules:

* Only text is read (JSON, csv, lists of ids, or the text in downloaded shards). A pickle is refused with the command
  that turns it into JSON.
* If a layout reads a list of ids, the list decides the videos and their order. A repeated id counts once (logged); an
  id without captions is an error. Captions of videos that are not listed are ignored.
* Captions of a video keep the order of the file.
* An id is the name without its video extension; any other dot belongs to the id.
* A name may have folders before it, from the video folder down, which belong to the id.
* A paragraph is the video's sentences in the order of the file, stripped and joined by one space.

distill/packing/clips.py groups the rows into clips, treats repeated captions and finds the files.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, TypeVar

from distill.data.textfiles import read_json, read_list, read_rows, read_text, refuse_pickle
from distill.data.video import stem
from distill.errors import ArtefactError, first_few
from distill.packing.downloads import read_webdataset
from distill.packing.rows import CaptionRow

log = logging.getLogger(__name__)
T = TypeVar("T")

LSMDC_COLUMNS = ("clip_id", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")
DIDEMO_NAME = re.compile(r"(?:didemo_)?(train|val|test)_data\.json")
DIDEMO_END = 31.0  # seconds; longer videos were cut to 30 s for annotation, and the field samples 0 to 31


def read_csv(path: Path) -> Iterator[CaptionRow]:
    """Read a plain csv, `video,caption[,start,end][,source]`; each part of a file is a clip of its own,
    `name#start-end`."""
    _, rows = read_rows(path, required=("video", "caption"))
    for number, (where, row) in enumerate(rows):
        name = _filled(where, row, "video")
        start, end = (_seconds(where, row, column) for column in ("start", "end"))
        span = None if start is None or end is None else (start, end)
        if (start is None) != (end is None) or (span is not None and span[1] <= span[0]):
            found = f"start {row.get('start', '')!r}, end {row.get('end', '')!r}"
            raise ArtefactError(f"{where}: expected both start and a later end, or neither; found {found}")
        video = stem(name) if span is None else f"{stem(name)}#{span[0]:.12g}-{span[1]:.12g}"
        source = row.get("source", "").strip() or None
        yield CaptionRow(where, video, row["caption"], str(number), (name,), span, source=source)


def read_msrvtt(path: Path) -> Iterator[CaptionRow]:
    """Read MSR-VTT, or VATEX in its layout: a csv with a `video_id` column, captions in it or in a JSON beside it.

    With a `sentence` column (1k-A test, full split) every row is a caption, whose id is the `key` column or the row
    number. Without one (7k and 9k training) the captions come from `MSRVTT_data.json`, or else `VATEX_data.json`, with
    their `sen_id`. Of the published lists, 9k (9,000 ids) is everything except 1k-A test; 7k (7,010) is the official
    train and validation splits together.
    """
    columns, rows = read_rows(path, required=("video_id",))
    if "sentence" in columns:
        for number, (where, row) in enumerate(rows):
            key, name = row.get("key", "").strip() or str(number), _filled(where, row, "video_id")
            yield CaptionRow(where, stem(name), row["sentence"], key, _names(name))
        return
    listed = [_filled(where, row, "video_id") for where, row in rows]
    captions = _beside(path, ("MSRVTT_data.json", "VATEX_data.json"))
    tree = read_json(captions, dict, "a list under 'sentences'")
    if not isinstance(tree.get("sentences"), list):
        raise ArtefactError(f"{captions}: expected a list under 'sentences', found {', '.join(tree) or 'nothing'}")
    spoken: dict[str, list[CaptionRow]] = {}
    for number, sentence in enumerate(tree["sentences"]):
        where = f"{captions}: sentences[{number}]"
        known = sentence if isinstance(sentence, dict) else {}
        video, text, key = (known.get(name) for name in ("video_id", "caption", "sen_id"))
        if not (isinstance(video, str) and isinstance(text, str) and isinstance(key, int | str)):
            raise ArtefactError(f"{where}: expected video_id, caption and sen_id, found {shortened(sentence)}")
        spoken.setdefault(stem(video), []).append(CaptionRow(where, stem(video), text, str(key)))
    for video, name in _split(path, listed, spoken, captions).items():
        yield from (row._replace(files=_names(name)) for row in spoken[video])


def read_lists(path: Path, names: Sequence[str]) -> Iterator[CaptionRow]:
    """Read MSVD or VATEX: `{train,val,test}_list.txt`, and beside it the first of `names` that exists.

    That is JSON, `{id: [caption, ...]}`; a caption is a string or the list of its words. The published lists of MSVD
    hold 1,200, 100 and 670 videos with 80,827 captions, of which 10,845 repeat another caption of their video. For
    `VATEX_test.csv` use `read_msrvtt`.
    """
    if path.suffix.lower() == ".json":
        raise ArtefactError(f"{path}: expected the split's list of ids, such as train_list.txt; captions lie beside it")
    listed, captions = read_list(path), _beside(path, names)
    entries = _by_id(captions, read_json(captions, dict, "{id: [caption, ...]}"))
    for video, name in _split(path, listed, entries, captions).items():
        if not isinstance(entries[video], list):
            found = shortened(entries[video])
            raise ArtefactError(f"{captions}: {video!r}: expected a list of captions, found {found}")
        for number, caption in enumerate(entries[video]):
            where = f"{captions}: {video!r}[{number}]"
            words = [caption] if isinstance(caption, str) else caption
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ArtefactError(f"{where}: expected a caption or the list of its words, found {shortened(caption)}")
            yield CaptionRow(where, video, " ".join(words), files=_names(name))


def read_lsmdc(path: Path) -> Iterator[CaptionRow]:
    """Read LSMDC: tab-separated, no header, quotes are plain characters; `clip_id`, four times, `sentence`.

    Every clip is a file of its own, so the times are not used. The file may lie in a folder named after its movie.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != len(LSMDC_COLUMNS):
            expected = f"{len(LSMDC_COLUMNS)} columns separated by tabs ({', '.join(LSMDC_COLUMNS)})"
            raise ArtefactError(f"{where}: expected {expected}, found {len(cells)}")
        clip, text = cells[0], cells[-1]
        if not clip:
            raise ArtefactError(f"{where}: clip_id: empty; expected the name of a video")
        movie = clip.rpartition("_")[0]  # 1034_Super_8_00.47.36.947-00.47.39.171
        names = (clip, f"{movie}/{clip}") if movie.strip(".") else (clip,)
        yield CaptionRow(where, stem(clip), text, files=names)


def read_activitynet(path: Path) -> Iterator[CaptionRow]:
    """Read ActivityNet Captions, a paragraph per video: `train.json` or `val_1.json`, `{id: {duration, sentences}}`.

    The split is all entries in their order: for `val_1.json` the published 4,917. Lists of ids that circulate beside it
    are not read (one, of 4,925 ids, lacks a video of the published split and names nine without captions). Ids keep
    their `v_`; file names may lack it. A clip is the whole video, from 0 to its duration rounded up.
    """
    entries = read_json(path, dict, "{id: {duration, sentences}}")
    _by_id(path, entries)
    for video, entry in entries.items():
        where = f"{path}: {video!r}"
        known = entry if isinstance(entry, dict) else {}
        duration, sentences = known.get("duration"), known.get("sentences")
        if isinstance(duration, bool) or not isinstance(duration, int | float) or not 0 < duration < 1e9:
            raise ArtefactError(f"{where}: duration: expected seconds above 0, found {shortened(duration)}")
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise ArtefactError(f"{where}: sentences: expected a list of strings, found {shortened(sentences)}")
        files = (*_names(video), *_names(video.removeprefix("v_")))
        yield CaptionRow(where, stem(video), _paragraph(sentences), files=files, span=(0.0, float(math.ceil(duration))))


def read_didemo(path: Path) -> Iterator[CaptionRow]:
    """Read DiDeMo, a paragraph per video: `{train,val,test}_data.json` or `didemo_*_data.json`.

    The JSON is `[{video, description}, ...]`. The id is the file name without its extension and without dots at its
    end. Some videos have two names (x.mov, x.mp4): counted by id there are the published 1,065 validation and 1,004
    test videos, by name 1,094 and 1,037. If `{train,val,test}_list.txt` lies beside it (extensions optional), the list
    decides the videos and their order.
    """
    found: dict[str, tuple[str, list[str], list[str]]] = {}  # by id: where it stands first, its sentences and names
    for number, entry in enumerate(read_json(path, list, "a list of entries")):
        where = f"{path}: [{number}]"
        known = entry if isinstance(entry, dict) else {}
        name, text = known.get("video"), known.get("description")
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ArtefactError(f"{where}: expected video and description, found {shortened(entry)}")
        _, sentences, names = found.setdefault(_didemo_id(name), (where, [], []))
        sentences.append(text)
        names.append(name)
    split = DIDEMO_NAME.fullmatch(path.name)
    list_path = path.with_name(f"{split[1]}_list.txt" if split else path.name)
    videos: Iterable[str] = found
    if list_path != path and list_path.is_file():
        videos = _split(list_path, read_list(list_path), found, path, _didemo_id)
    for video in videos:
        where, sentences, names = found[video]
        files = tuple(dict.fromkeys([*names, video]))
        yield CaptionRow(where, video, _paragraph(sentences), files=files, span=(0.0, DIDEMO_END), published=True)


def _filled(where: str, row: dict[str, str], column: str) -> str:
    """Return a cell, which must not be empty."""
    value = row[column].strip()
    if not value:
        raise ArtefactError(f"{where}: {column}: empty; expected the name of a video")
    return value


def _seconds(where: str, row: dict[str, str], column: str) -> float | None:
    """Return a cell as seconds, or None if it is empty or there is no such column."""
    text = row.get(column, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ArtefactError(f"{where}: {column}: expected seconds, found {text!r}")
    return value


def _didemo_id(name: str) -> str:
    return stem(name.strip()).rstrip(".")


def _names(name: str) -> tuple[str, ...]:
    """Return the possible names of a video: as it is written, and with another extension."""
    return tuple(dict.fromkeys((name, stem(name))))


def _by_id(path: Path, entries: dict[str, T]) -> dict[str, T]:
    """Return the entries by id; two names of one id are an error."""
    found: dict[str, str] = {}
    for name in entries:
        if found.setdefault(stem(name), name) != name:
            raise ArtefactError(f"{path}: {found[stem(name)]!r} and {name!r} are one id; keep one of them")
    return {video: entries[name] for video, name in found.items()}


def _split(
    path: Path, listed: list[str], captions: Mapping[str, Any], source: Path, id_of: Callable[[str], str] = stem
) -> dict[str, str]:
    """Return the listed videos, each once, and their names in the list; each must have captions in `source`."""
    videos: dict[str, str] = {}
    for name in listed:
        videos.setdefault(id_of(name), name)
    if not videos:
        raise ArtefactError(f"{path}: no videos; expected at least one id")
    if len(videos) < len(listed):
        log.info("%s: dropped %d repeated video ids", path, len(listed) - len(videos))
    bare = [repr(video) for video in videos if not captions.get(video)]
    if bare:
        raise ArtefactError(f"{path}: lists {first_few(bare, 1)} without a caption in {source.name}")
    return videos


def _paragraph(sentences: Iterable[str]) -> str:
    return " ".join(filter(None, (sentence.strip() for sentence in sentences)))


def _beside(path: Path, names: Sequence[str]) -> Path:
    """Return the first of `names` that exists in the folder of `path`."""
    for name in names:
        if path.with_name(name).is_file():
            return path.with_name(name)
    for name in names:
        pickled = path.with_name(name).with_suffix(".pkl")
        if pickled.is_file():
            refuse_pickle(pickled)
    raise ArtefactError(f"{path}: no captions: expected {' or '.join(names)} beside it; copy it into {path.parent}")


LAYOUTS: dict[str, Callable[[Path], Iterator[CaptionRow]]] = {
    "activitynet": read_activitynet,
    "csv": read_csv,
    "didemo": read_didemo,
    "lsmdc": read_lsmdc,
    "msrvtt": read_msrvtt,
    "msvd": partial(read_lists, names=("captions_msvd.json", "raw-captions.json")),
    "vatex": partial(read_lists, names=("ref_captions.json",)),
    "webdataset": read_webdataset,
}
