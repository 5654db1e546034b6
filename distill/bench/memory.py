"""The memory that this process takes beyond mapped files, watched while something runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOK = 0.001  # seconds between two looks
MEGA = 1e6


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Give a list that holds, after the block, the largest number of MB that it took beyond those before it.

    Where the system does not tell, the list stays empty.
    """
    used: list[float] = []
    before = _anonymous()
    if before is None:
        yield used
        return
    most, over = [before], threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            most[0] = max(most[0], _anonymous() or 0)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield used
    finally:
        over.set()
        watcher.join()
    used.append((most[0] - before) / MEGA)


def _anonymous() -> int | None:
    """Return the bytes of memory that belong to no file; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    sizes = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
    return 1024 * int(sizes[0]) if sizes else None
