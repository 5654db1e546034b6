"""Read text files into plain values: UTF-8 text, JSON, csv rows, lists. Errors name the file and the line.

distill/packing/layouts.py interprets the values.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from distill.errors import ArtefactError, check_regular

T = TypeVar("T")


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
    """Return the column names, and (place, row) pairs in which missing cells are empty strings."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="", strict=True, skipinitialspace=True)
    try:
        columns = reader.fieldnames = [column.strip() for column in reader.fieldnames or []]
    except csv.Error as error:
        raise ArtefactError(f"{path}: line {reader.line_num}: not valid csv: {error}") from None
    if not columns:
        raise ArtefactError(f"{path}: empty file; expected a header line with {', '.join(required)}")
    missing = [column for column in required if column not in columns]
    if missing:
        raise ArtefactError(f"{path}: no column {', '.join(missing)}; found columns {', '.join(columns)}")

    def rows() -> Iterator[tuple[str, dict[str, str]]]:
        try:
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                if None in row:  # more cells than columns: usually a caption with a bare comma
                    raise ArtefactError(f"{where}: more cells than columns; quote captions that hold a comma")
                yield where, row
        except csv.Error as error:
            raise ArtefactError(f"{path}: line {reader.line_num}: not valid csv: {error}") from None

    return columns, rows()


def refuse_pickle(path: Path) -> NoReturn:
    """Refuse a pickle: reading one runs any code its author put in, so that decision is the user's."""
    code = f"json.dump(pickle.load(open({path.name!r}, 'rb')), open({path.with_suffix('.json').name!r}, 'w'))"
    advice = f'if you trust its origin, run in its folder: python -c "import json, pickle; {code}"'
    raise ArtefactError(f"{path}: pickles can run code and are not read, JSON is; {advice}")
