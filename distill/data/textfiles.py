"""Read text files into plain values: UTF-8 text, JSON, csv rows, lists. Errors name the file and the line.

distill/packing/layouts.py interprets the values.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from distill.errors import ArtefactError, check_regular, first_few

log = logging.getLogger(__name__)
T = TypeVar("T")
FILE_NAME = re.compile(r".*\S\.\w{2,4}")


def read_text(path: Path) -> str:
    """Return the whole file, without a byte order mark."""
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}") from None


def read_list(path: Path) -> list[str]:
    """Read a list file: one id or query per line, empty lines skipped."""
    return listed(read_text(path))


def listed(text: str) -> list[str]:
    """Return the entries of a list, one per line; lists that were joined keep a byte order mark at each beginning."""
    lines = (line.strip().lstrip("\ufeff").strip() for line in text.split("\n"))
    return [line for line in lines if line]


def read_json(path: Path, kind: type[T], form: str) -> T:
    """Read a JSON file of a `kind`, described by `form`; a key that appears twice in one object is an error."""
    try:
        found = json.loads(read_text(path), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, kind):
        raise ArtefactError(f"{path}: expected {form}, found {type(found).__name__}")
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse equal keys: Python would keep the last one and drop captions in silence."""
    known = dict(pairs)
    if len(known) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return known


def read_rows(path: Path, required: tuple[str, ...]) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """Return the column names, and (place, row) pairs in which missing cells are empty strings.

    The place names a row's first line. A quoted cell may have several lines; one warning at the end counts such rows.
    If one of these lines reads as a row of its own, a quote is missing or stray, and the file is refused.
    """
    found = _records(path, csv.reader(io.StringIO(read_text(path), newline=""), strict=True, skipinitialspace=True))
    columns = [column.strip() for column in next(found, (0, []))[1]]
    if not columns:
        raise ArtefactError(f"{path}: empty file; expected a header line with {', '.join(required)}")
    missing = [column for column in required if column not in columns]
    if missing:
        raise ArtefactError(f"{path}: no column {', '.join(missing)}; found columns {', '.join(columns)}")
    twice = [column for column in dict.fromkeys(columns) if column and columns.count(column) > 1]
    if twice:
        raise ArtefactError(f"{path}: several columns {first_few(twice)}; rename all but one")
    return columns, _rows(path, found, columns, columns.index(required[0]))


def _records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank with the number of its first line, which the reader itself does not tell."""
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ArtefactError(f"{path}: line {first}: not valid csv: {error}; is a quote missing or stray?") from None
        if cells is None:
            return
        if cells:
            yield first, cells


def _rows(
    path: Path, found: Iterator[tuple[int, list[str]]], columns: list[str], name: int
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows; `name` is the place of the column that names the video."""
    spread: list[str] = []
    for number, cells in found:
        where = f"{path}: line {number}"
        if len(cells) > len(columns):  # usually a caption with a bare comma
            raise ArtefactError(f"{where}: more cells than columns; quote captions that hold a comma")
        if any("\n" in cell for cell in cells):
            spread.append(str(number))
            _refuse_swallowed(where, cells, {len(cells), len(columns)}, name)
        yield where, dict(zip(columns, cells + [""] * (len(columns) - len(cells)), strict=True))
    if spread:
        known = f"{len(spread)} rows have a cell of several lines (line {first_few(spread, 3)})"
        log.warning("%s: %s; where that is not meant, a quote is missing or stray", path, known)


def _refuse_swallowed(where: str, cells: list[str], widths: set[int], name: int) -> None:
    """Refuse a cell in which a later line reads as a row: a file's name and more, or one word and as many cells."""
    for line in (line for cell in cells for line in cell.split("\n")[1:]):
        inner = next(csv.reader([line], skipinitialspace=True), [])
        video = inner[name].strip() if name < len(inner) else ""
        one_word = len(video.split()) == 1 and len(inner) in widths
        if len(inner) > 1 and (one_word or FILE_NAME.fullmatch(video)):
            raise ArtefactError(
                f"{where}: a quoted cell that begins in this row holds {line[:80]!r}, which reads as a row of its own; "
                "close or double the quote, or write the caption in one line"
            )


def refuse_pickle(path: Path) -> NoReturn:
    """Refuse a pickle: reading one runs any code its author put in, so that decision is the user's."""
    code = f"json.dump(pickle.load(open({path.name!r}, 'rb')), open({path.with_suffix('.json').name!r}, 'w'))"
    advice = f'if you trust its origin, run in its folder: python -c "import json, pickle; {code}"'
    raise ArtefactError(f"{path}: pickles can run code and are not read, JSON is; {advice}")
