"""The licence that a folder states: `license:` in the metadata of its README.md, as cards of the Hub have it."""

import re
from typing import Any

import yaml

from distill.errors import ExpectedError
from distill.remote import Place, RemotePath

CARD = "README.md"
ADDED = re.compile(rb"^license(_name|_link)?:[^\n]*\n", re.MULTILINE)  # lines of the metadata
METADATA = re.compile(r"\A---\r?\n(.*?)\r?\n---(\r?\n|\Z)", re.DOTALL)
LONGEST = 200  # characters of what is kept of it
LARGEST = 1 << 22  # bytes of a card


def without_licence(card: bytes) -> bytes:
    """Return a card without the lines of its metadata that state a licence: as it was before they were added."""
    head, rule, body = card.partition(b"\n---\n")
    return ADDED.sub(b"", head + b"\n").removesuffix(b"\n") + rule + body


def stated_licence(folder: Place) -> str | None:
    """Return the licence that a folder states; None where it states none, or nothing that can be read."""
    path = folder / CARD
    try:
        if not isinstance(path, RemotePath) and not (path.is_file() and path.stat().st_size <= LARGEST):
            return None
        found = METADATA.match(path.read_bytes().decode())
        metadata: Any = yaml.safe_load(found[1]) if found else None
    except (ExpectedError, OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    if not isinstance(metadata, dict):
        return None
    name, more = metadata.get("license"), metadata.get("license_name") or metadata.get("license_link")
    if not isinstance(name, str):
        return None
    return (f"{name} ({more})" if isinstance(more, str) else name)[:LONGEST]
