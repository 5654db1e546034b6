"""Logging to the console, and progress with a remaining-time estimate for anything over a few seconds."""

import logging
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def setup(rank: int = 0) -> None:
    """Log one line per message on stderr; ranks other than 0 log errors only."""
    level = logging.INFO if rank == 0 else logging.ERROR
    logging.basicConfig(
        level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    for noisy in ("DeepSpeed", "torch.distributed", "open_clip", "faiss"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def progress(items: Iterable[Item], what: str, total: int | None = None, *, quiet: bool = False) -> Iterable[Item]:
    """A progress bar with ETA on a terminal, a line every ten seconds otherwise."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(items, desc=what, total=total, mininterval=interval, maxinterval=interval, disable=quiet, leave=False)
