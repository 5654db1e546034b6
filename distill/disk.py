"""A full disk is reported in one line: the file, the bytes it takes, the bytes that are free."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.errors import ExpectedError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(path: Path, part: Path | None = None, needed: int = 0) -> Iterator[None]:
    """Turn "no space left" inside the block into an `ExpectedError` about `path`.

    The error names `needed` bytes, or the size of the unfinished `part`, which is removed.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        takes = f"{needed:,}"
        if part is not None and part.exists():
            takes = takes if needed else f"more than {part.stat().st_size:,}"
            part.unlink()
        free = shutil.disk_usage(path.parent).free
        quota = " (or your quota of it)" if error.errno == errno.EDQUOT else ""
        raise ExpectedError(
            f"{path}: the disk{quota} is full: the file takes {takes} bytes, {free:,} are free; make room and "
            f"run the same command again, it continues with this file"
        ) from None


def check_free_space(path: Path, needed: int) -> None:
    """Refuses to begin a file of `needed` bytes that cannot fit."""
    with writing(path, needed=needed):
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, "no room")
