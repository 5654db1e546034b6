"""Locks on files, by which processes keep out of each other's way: held, held by another process, or not to be had."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from distill.errors import ExpectedError, check_regular

HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)  # by another process; `lockf` may say either


class UnlockableError(ExpectedError):
    """A file system that keeps no locks, or refuses this one."""


def open_lock(path: Path) -> BinaryIO:
    """Open a lock file, making it first where it lacks; raise `ExpectedError` where that is not allowed.

    The message never advises to delete the file: another process may hold it.
    """
    check_regular(path)
    try:
        return path.open("ab")
    except OSError as error:
        raise ExpectedError(
            f"{path}: cannot be opened for writing ({error.strerror}), which locking needs; ask the owner of the "
            f"folder for permission to write, or work on a copy"
        ) from None


def acquired(path: Path, take: Callable[[], None]) -> bool:
    """Return whether `take`, a call of `flock` or `lockf`, got the lock; False if another process holds it.

    Raises `UnlockableError` where the system answers anything else, as NFS, Lustre and FUSE do if set up without locks.
    """
    try:
        take()
    except OSError as error:
        if error.errno in HELD:
            return False
        raise UnlockableError(
            f"{path}: cannot be locked, because this file system keeps no locks ({error.strerror}); choose a folder "
            f"on another one, such as a local disk"
        ) from None
    return True
