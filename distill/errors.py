"""Errors that a user can cause and fix, a full disk among them, and the door that shows them as one line.

Everything that bad input can cause raises `ExpectedError` (or a subclass): what, where, expected, found, what to do
next. Our own invariants are `assert`s and keep their traceback.
"""

import errno
import importlib.util
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distill import signals
from distill.terminal import printable

LONGEST, CLOSE = 1500, 400  # characters of an error, and of its end, which says what to do
FULL = (errno.ENOSPC, errno.EDQUOT)
# Answers of a place that takes no files: read-only, forbidden, or with something in the way.
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
REFUSED += (errno.ENAMETOOLONG,)
# Packages that not every installation has, and the one that brings them.
EXTRAS = {
    **dict.fromkeys(("torch", "open_clip", "timm", "av", "distill"), "retrieval-distill"),  # not of its light form
    **dict.fromkeys(("deepspeed", "webdataset", "accelerate"), "retrieval-distill[train]"),
    "tensorboard": "retrieval-distill[track]",
    "trackio": "trackio",
    **dict.fromkeys(("fastapi", "starlette", "uvicorn"), "retrieval-distill[serve]"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "retrieval-distill[onnx]"),
}


class ExpectedError(Exception):
    """An error that the user can fix: one line, exit code 2. The middle of a message that is too long is left out."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[: LONGEST - CLOSE]} ... {text[-CLOSE:]}"


class RecipeError(ExpectedError):
    """A recipe has an unknown key, a missing one, a wrong value, or values that contradict one another."""


class ArtefactError(ExpectedError):
    """An artefact (frame set, label set, release, gallery, checkpoint) is damaged, stale or of another kind."""


class VideoError(ExpectedError):
    """One video cannot be used; packing reports it by id and goes on."""


def first_few(names: Sequence[str], most: int = 5, joint: str = ", ") -> str:
    """Return the first names as text, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return joint.join(names[:most]) + more


def check_installed(package: str) -> None:
    """Refuse to begin what needs a package of an extra that is not installed."""
    if importlib.util.find_spec(package) is None:
        raise _missing(package)


def _missing(module: str) -> ExpectedError:
    extra = EXTRAS[module.partition(".")[0]]
    return ExpectedError(f"{module} is not installed, which this needs; run pip install '{extra}'")


def check_regular(path: Path) -> None:
    """Refuse anything but a plain file: opening a pipe would wait for ever, and a device may never end."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise ArtefactError(f"{path}: {kind}, expected a plain file; restore it, or name another one")


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


@contextmanager
def placing(path: Path) -> Iterator[None]:
    """Turn the refusal of a place to take `path` into an `ExpectedError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise ExpectedError(
            f"{path}: cannot be written ({error.strerror}); choose another place, or ask its owner for permission"
        ) from None


def check_free_space(path: Path, needed: int) -> None:
    """Refuse to begin a file of `needed` bytes that cannot fit."""
    with writing(path, needed=needed):
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, "no room")


def _nobody_reads() -> bool:
    """Return whether the reader of standard output has gone, as `head` does."""
    watched = select.poll()
    watched.register(1, 0)  # errors are told unasked
    return any(event & select.POLLERR for _, event in watched.poll(0))


def door(main: Callable[[], None]) -> None:
    """Run a command: an `ExpectedError` becomes one line on stderr and exit code 2, a signal one line and 128 + it.

    So does the import of a package of an extra that is not installed.
    """
    signals.listen()
    try:
        main()
        return sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        line, code = "", 128 + signal.SIGPIPE
    except ExpectedError as error:
        line, code = printable(f"error: {' '.join(str(error).split())}"), 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        line, code = f"error: {_missing(error.name or '')}", 2
    except signals.Stopped as stopped:
        line, code = stopped.line, stopped.code
    # Outside the except blocks nothing holds the failed frames, so progress bars are closed and the line stands alone.
    signals.leave(line, code)
