"""SIGTERM and SIGINT: a command ends at once with one line, training ends after its step.

What is finished stands on disk whole, so any moment will do to stop: `listen` makes both signals raise `Stopped` in the
main thread. Between `hold` and `heed` a signal only waits, for whoever asks `waiting`.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from typing import NoReturn

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 5.0  # seconds to clean up in; a process that waits for another one inside a library would never notice

_holding = False
_waiting = 0


class Stopped(KeyboardInterrupt):
    """A signal ends this process; `line` (which may be empty) says what comes next, `code` is what shells expect."""

    def __init__(self, number: int, line: str | None = None):
        name = signal.Signals(number).name
        self.line = f"stopped by {name}; what is finished is kept, and the same command continues there"
        if line is not None:
            self.line = line and f"stopped by {name} {line}"
        self.code = 128 + number
        super().__init__(self.line)


def listen() -> None:
    """From now on the first SIGTERM or SIGINT ends this process in order; later ones are not heard."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python runs handlers between two lines of Python; a thread hears of a signal at once, whatever the main one does.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell says of what it runs in the background
            signal.signal(number, _arrived)


def hold() -> None:
    """From now on a signal only waits."""
    global _holding
    _holding = True


def heed() -> None:
    """From now on a signal ends the process at once, and so does one that waits."""
    global _holding
    _holding = False
    if _waiting:
        raise Stopped(_waiting)


def waiting() -> int:
    """The number of the signal that waits, or 0."""
    return _waiting


def leave_to_parent(_worker: int = 0) -> None:
    """For worker processes: whoever started them ends them; what a terminal or a launcher sends to all does not."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # what is ignored could not be waited for
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def leave(line: str, code: int) -> NoReturn:
    """Ends this process now, after one line: nothing that still waits (workers, collectives, threads) may hold it."""
    with contextlib.suppress(OSError):  # a closed pipe, a full disk
        sys.stdout.flush()
        print(line, end="\n" if line else "", file=sys.stderr, flush=True)
    os._exit(code)


def _arrived(number: int, _frame: object) -> None:
    global _waiting
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # terminals, schedulers and launchers send more than one
    if not _holding:
        raise Stopped(number)
    _waiting = number


def _obey(parent: int) -> None:
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == parent:
            os._exit(0)


def _watch(read: int) -> None:
    while (number := os.read(read, 1)[0]) not in SIGNALS or signal.getsignal(number) not in (_arrived, signal.SIG_IGN):
        pass  # another signal, or one that somebody else handles for the time being, as web servers do
    if _holding:
        log.info(f"{signal.Signals(number).name}: stopping after this step")
        return
    time.sleep(PATIENCE)
    stopped = Stopped(number)
    leave(stopped.line, stopped.code)
