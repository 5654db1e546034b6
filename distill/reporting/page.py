"""Pages from templates: everything that others wrote is escaped, cut and kept from steering the text around it."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from distill import __version__
from distill.errors import ExpectedError
from distill.terminal import printable

LARGEST = 5 << 20  # bytes of a page
REPORT = "report.html"


def page(template: str, content: Mapping[str, Any]) -> bytes:
    """Return a page as bytes; raise `ExpectedError` for one that is too large to be sent around."""
    made = _templates().get_template(template).render(content, version=__version__).encode()
    if len(made) > LARGEST:
        raise ExpectedError(f"the report takes {len(made):,} bytes, expected at most {LARGEST:,}; name fewer runs")
    return made


def said(text: object, most: int) -> str:
    """Return a text of others on one line: what would steer it is spelled out, and a long one is cut."""
    whole = str(text)
    shown = printable(whole[:most])
    return shown if len(whole) <= most else f"{shown}… ({len(whole):,} characters)"


@cache
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.filters["said"] = said
    return made
