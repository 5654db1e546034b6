"""Logging to the console, and progress with a remaining-time estimate for anything over a few seconds."""

import logging
import os
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
DELAY = 2.0  # seconds


def setup(rank: int = 0) -> None:
    """Log one line per message on stderr; ranks other than 0 log errors only."""
    level = logging.INFO if rank == 0 else logging.ERROR
    logging.basicConfig(
        level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    for noisy in ("DeepSpeed", "torch.distributed", "open_clip", "faiss"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterable[Item]:
    """Show a progress bar with ETA on a terminal, a line every ten seconds otherwise, if it takes over two seconds.

    Of the processes of one job only the first one shows it: RANK is the number that launchers give to the others.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    silent = int(os.environ.get("RANK", 0)) > 0
    shown = {"desc": what, "total": total, "mininterval": interval, "maxinterval": interval, "leave": False}
    return tqdm(items, disable=silent, delay=DELAY, **shown)
