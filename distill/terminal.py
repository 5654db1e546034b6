"""Text as a terminal may be shown it: names and words of others cannot move its cursor or turn its line around.

Everything that commands print goes through `show`, and what they log or report as an error through `printable`.
"""

import argparse
import re
from typing import NoReturn

# Control characters (C0, DEL, C1), marks of writing direction, separators of lines, and halves of surrogate pairs (in
# names that are not UTF-8). Joiners inside emoji and scripts are left as they are.
_STEERING = re.compile("[\\x00-\\x1f\\x7f-\\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return text on one line, each character that would steer a terminal as `\\uXXXX`; JSON keeps its meaning."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def show(*lines: str) -> None:
    """Print each of `lines` as one line on standard output, and flush."""
    print("\n".join(map(printable, lines)), flush=True)


class Parser(argparse.ArgumentParser):
    """A parser of command lines, whose errors repeat the words of others."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))
