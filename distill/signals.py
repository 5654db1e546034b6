"""SIGTERM and SIGINT: a command ends at once with one line; training ends after the current step.

Finished work is whole on disk, so a command may stop at any moment: `listen` makes both signals raise `Stopped` in
the main thread. Between `hold` and `heed` a signal is only remembered, and `waiting` returns it. A launcher that is
killed cannot pass on anything: its processes look for it, and stop as by SIGTERM when it is gone.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
BY_DEMO = "DISTILL_BY_DEMO"  # set by distill/demo/commands.py for what it starts
# Set by torchrun, by accelerate's, by DeepSpeed's launcher, by the demo; how many processes of it are above this one.
LAUNCHERS = {"TORCHELASTIC_RUN_ID": 1, "ACCELERATE_MIXED_PRECISION": 1, "CROSS_RANK": 2, BY_DEMO: 1}
LOOK = 1.0  # seconds between two looks for the launcher
PATIENCE = 5.0  # seconds to clean up in; a process that waits inside a library would never see the exception

_holding = False
_waiting = 0


class Stopped(KeyboardInterrupt):
    """A signal ends this process. `line` (may be empty) tells the user what to do next, `code` is 128 + signal."""

    def __init__(self, number: int, line: str = "; what is finished is kept, and the same command continues there"):
        self.line = line and f"stopped by {signal.Signals(number).name}{line}"
        self.code = 128 + number
        super().__init__(self.line)


def listen() -> None:
    """Let the first SIGTERM or SIGINT end this process in order; later ones are ignored."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python runs handlers between two bytecodes of the main thread; the wakeup descriptor tells a thread at once.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell ignores SIGINT for jobs in the background
            signal.signal(number, _arrived)
    sys.unraisablehook = _unraisable
    above = next((number for name, number in LAUNCHERS.items() if name in os.environ), 0)
    if above:
        threading.Thread(target=_follow, args=(_ancestors(above),), daemon=True).start()


def hold() -> None:
    """Only remember the next signal, until `heed`."""
    global _holding
    _holding = True


def heed() -> None:
    """Let signals end the process at once again; raise `Stopped` for one that was remembered."""
    global _holding
    _holding = False
    if _waiting:
        raise Stopped(_waiting)


def waiting() -> int:
    """Return the number of the remembered signal, or 0."""
    return _waiting


def leave_to_parent(_worker: int = 0) -> None:
    """Let a worker process be ended by its parent alone, not by a signal that a terminal or a launcher sends to all."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # sigwaitinfo does not see signals that are ignored
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def leave(line: str, code: int) -> NoReturn:
    """Print one line and end this process now; workers, collectives or threads that still wait cannot hold it."""
    with contextlib.suppress(OSError):  # a closed pipe, a full disk
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(line, end="\n" if line else "", file=sys.stderr, flush=True)
    os._exit(code)


def _arrived(number: int, _frame: object) -> None:
    global _waiting
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # terminals, schedulers and launchers send several
    if not _holding:
        raise Stopped(number)
    _waiting = number


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    """End this process where a signal arrived in a `__del__`, which would swallow the exception."""
    if isinstance(found.exc_value, Stopped):
        leave(found.exc_value.line, found.exc_value.code)
    sys.__unraisablehook__(found)


def _ancestors(number: int) -> list[int]:
    """Return the process ids of the parent, its parent and so on, as far as the system tells."""
    found = [os.getppid()]
    with contextlib.suppress(OSError):
        while len(found) < number:
            about = Path(f"/proc/{found[-1]}/stat").read_text()
            found.append(int(about.rpartition(")")[2].split()[1]))
    return found


def _follow(launcher: list[int]) -> None:
    """Stop this process as by SIGTERM once a process of its launcher has gone."""
    while _ancestors(len(launcher)) == launcher:
        time.sleep(LOOK)
    log.error("the launcher is gone; it was killed, so this process stops too")
    os.kill(os.getpid(), signal.SIGTERM)


def _obey(parent: int) -> None:
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == parent:
            os._exit(0)


def _watch(read: int) -> None:
    while (number := os.read(read, 1)[0]) not in SIGNALS or signal.getsignal(number) not in (_arrived, signal.SIG_IGN):
        pass  # another signal, or one that a web server handles for the time being
    if _holding:
        log.info(f"{signal.Signals(number).name}: stopping after this step")
        return
    time.sleep(PATIENCE)
    stopped = Stopped(number)
    leave(stopped.line, stopped.code)
