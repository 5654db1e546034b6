"""Names that changed: the old one works for one version, and one line says the new one (CONTRIBUTING.md says how)."""

import argparse
import sys
from typing import Any

LAST = "0.2"  # the last version that takes the old names


def renamed(old: str, new: str) -> str:
    """Return the notice for whoever still writes `old`."""
    return f"{old} is now called {new}; the old name works up to version {LAST}"


def keep_old_option(parser: argparse.ArgumentParser, old: str, new: argparse.Action) -> None:
    """Let `old` (like "--recall") work as the option `new`, unseen in `--help`, with a notice on stderr."""
    options: dict[str, Any] = {"dest": new.dest, "type": new.type, "nargs": new.nargs, "const": new.option_strings[0]}
    parser.add_argument(old, action=_OldOption, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)


class _OldOption(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option=None):
        print(renamed(str(option), self.const), file=sys.stderr)
        setattr(namespace, self.dest, values)
