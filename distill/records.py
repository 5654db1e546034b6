"""Stored JSON, and how it is read: as typed views, in which the first thing that is wrong is an error of one line.

A view lists the keys that this version reads. It checks them strictly and ignores others, so what is hashed is always
the JSON itself, never a view of it.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from distill.errors import ArtefactError, check_regular
from distill.publishing import publish
from distill.remote import Place

STRICT = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class View(BaseModel):
    """Base of what is read from stored JSON: strict types and finite numbers; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, **STRICT)


T = TypeVar("T")


class _Record(View):
    content: dict[str, Any]
    sha256: str


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys and no spaces: the one spelling that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def json_sha256(value: Any) -> str:
    """Return the sha256 of the canonical JSON, as hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the keys in which two trees differ, as `section.key`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        one, other = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += changed(one, other, f"{prefix}{key}.")
        elif one != other or key not in old or key not in new:
            found.append(prefix + key)
    return found


_checker = cache(TypeAdapter)


def parsed(kind: type[T], found: bytes | Mapping[str, Any], where: object, mend: str) -> T:
    """Return JSON as a view, or as a typed dictionary `with_config(STRICT)`, which is faster where there are millions.

    Raises `ArtefactError` for anything else: it names `where` and the first key that is wrong, and ends with `mend`,
    what the user can do.
    """
    try:
        check = _checker(kind)
        return check.validate_json(found) if isinstance(found, bytes) else check.validate_python(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "top"
        raise ArtefactError(f"{where}: damaged at {key}: {first['msg']}; {mend}") from None


def read_small(path: Place, mend: str, absent: str = "") -> bytes:
    """Return a small file; one that cannot be read is an `ArtefactError`, one that is not there may have its own."""
    if isinstance(path, Path):
        check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        if absent and isinstance(error, FileNotFoundError):
            raise ArtefactError(absent) from None
        raise ArtefactError(f"{path}: cannot be read ({error.strerror or error}); {mend}") from None


def read_json(path: Place, kind: type[T], mend: str, absent: str = "") -> T:
    """Return a JSON file as a view, like `parsed`, read by `read_small`."""
    return parsed(kind, read_small(path, mend, absent), path, mend)


def indented_json(value: Any) -> bytes:
    """Return JSON as `write_json` writes it."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def write_json(path: Place, value: Any) -> None:
    """Publishes indented JSON."""
    publish(path, indented_json(value))


def write_record(path: Place, content: dict[str, Any]) -> None:
    """Publishes JSON that an unfinished job relies on, with its own hash."""
    write_json(path, {"content": content, "sha256": json_sha256(content)})


def read_record(path: Place) -> dict[str, Any]:
    """Return what `write_record` wrote; anything else is an `ArtefactError`."""
    mend = "delete its folder and start again"
    record = read_json(path, _Record, mend)
    if record.sha256 != json_sha256(record.content):
        raise ArtefactError(f"{path}: damaged (not as it was written); {mend}")
    return record.content
