"""Claims of a release: what it states, what was found, and the verdict."""

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["holds", "differs", "not checked"]
DIGITS = 12  # of a hash in the table
LONGEST = 36  # characters of a cell


@dataclass(frozen=True)
class Claim:
    """One claim; `why` says why it was not checked, or how close is close enough."""

    name: str
    stated: Any
    found: Any
    verdict: Verdict
    why: str = ""


def compared(name: str, stated: Any, found: Any) -> Claim:
    """Return a claim that holds where both are equal."""
    return Claim(name, stated, found, "holds" if stated == found else "differs")


def unchecked(name: str, stated: Any, why: str) -> Claim:
    """Return a claim that cannot be checked, or not here."""
    return Claim(name, stated, None, "not checked", why)


def shown(value: Any) -> str:
    """Return a stated or found value as a cell of a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0").rstrip(".")
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else " ".join(str(value).split())
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:DIGITS]
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
