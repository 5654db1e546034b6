"""Logging to the console, and progress with a remaining-time estimate for anything over a few seconds."""

import logging
import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from distill.terminal import printable

Item = TypeVar("Item")
DELAY = 2.0  # seconds


class _OneLine(logging.Formatter):
    """The time and the message, on one line whatever names it holds."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def setup(rank: int = 0) -> None:
    """Log one line per message on stderr; ranks other than 0 log errors only."""
    level = logging.INFO if rank == 0 else logging.ERROR
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_OneLine("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[console], force=True)
    for noisy in ("DeepSpeed", "torch.distributed", "open_clip", "faiss"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterable[Item]:
    """Show a progress bar with ETA on a terminal, a line every ten seconds otherwise, if it takes over two seconds.

    Of the processes of one job only the first one shows it: RANK is the number that launchers give to the others.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    silent = int(os.environ.get("RANK", 0)) > 0
    shown = {"desc": printable(what), "total": total, "mininterval": interval, "maxinterval": interval, "leave": False}
    return tqdm(items, disable=silent, delay=DELAY, **shown)
