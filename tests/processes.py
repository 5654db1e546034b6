"""Commands of the project in processes of their own, as a launcher would start them, and what is left of them.

Importing torch, DeepSpeed and open_clip takes longer than most small jobs, so one process does it once, without making
threads, and is forked for each command. In all else a command is as if it had been started anew: session, arguments,
environment, working folder and what it prints are its own; kills and exit codes are real. What has to see the start
itself (launchers, `python -c`, the time that imports take) runs tests/conftest.py's `command` instead.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
IMPORTED = ["torch", "deepspeed", "open_clip", "webdataset", "distill.experiment"]
IMPORTED += ["test_indexing", "test_sync"]  # whose functions are killed at random moments from their start
NOTICE = 2.0  # seconds after which a launcher tells the other ranks that one has died (torchrun: 0.1, deepspeed: 1)

context = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Start the process that is forked, unless it runs."""
    context.set_forkserver_preload(IMPORTED)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    # DeepSpeed looks for a GPU when it is imported; asked in this way, the driver still works after a fork
    with patch.dict(os.environ, {**QUIET, "PYTHONPATH": paths, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}):
        multiprocessing.forkserver.ensure_running()


class Process:
    """`python SCRIPT ...` at the repository's root; what it prints goes to the ends of two files."""

    def __init__(self, command: Sequence[str], out: Path, errors: Path, environment: dict[str, str]):
        prepare()
        self._process = context.Process(
            target=_run, args=(command, out, errors, {**os.environ, **QUIET, **environment})
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, minus a signal's number for what it killed, or None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit code when it has ended, or None after so many seconds."""
        self._process.join(seconds)
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal to this process alone, if it runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill_all(self) -> None:
        """`kill -9` of this process and everything that it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.send_signal(signal.SIGKILL)  # if it had not yet come to begin a session
        self.wait()


def _run(command: Sequence[str], out: Path, errors: Path, environment: dict[str, str]) -> None:
    os.setsid()
    for number, path in ((1, out), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(command)
    sys.path.insert(0, str((ROOT / command[0]).parent))
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


class Ranks:
    """`count` processes of one command, each in a session of its own; what they print goes to `log`.N.

    If `apart`, standard error goes to `log`.N.errors instead.
    """

    def __init__(self, command: Sequence[str | Path], count: int, log: Path, *, apart: bool = False, **env: str):
        self.logs = [log.with_name(f"{log.name}.{rank}") for rank in range(count)]
        self.errors = [path.with_name(f"{path.name}.errors") if apart else path for path in self.logs]
        about = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        about["MASTER_PORT"] = str(free_port())
        self.processes = []
        for rank, (out, errors) in enumerate(zip(self.logs, self.errors, strict=True)):
            place = {**about, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            for path in (out, errors):
                path.write_bytes(b"")
            self.processes.append(Process([str(word) for word in command], out, errors, place | env))

    @property
    def running(self) -> bool:
        """Whether all of them are."""
        return all(process.poll() is None for process in self.processes)

    def kill_all(self) -> None:
        """`kill -9` of all ranks and everything they started, at once."""
        for process in self.processes:
            process.kill_all()

    def kill_one(self, pid: int) -> None:
        """`kill -9` of one process alone; ranks hear of it from their launcher, if they do not notice before."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.ended(NOTICE)
        for process in self.processes:
            process.terminate()

    def finish(self, within: float) -> None:
        """Wait for the end of all, as a launcher does: when one has failed, the others are told.

        Raises `TimeoutError` after so many seconds, when all have been killed.
        """
        deadline = time.monotonic() + within
        while None in self.codes and not any(self.codes) and time.monotonic() < deadline:
            time.sleep(0.005)
        if any(self.codes) and not self.ended(NOTICE):
            for process in self.processes:
                process.terminate()
        if not self.ended(max(NOTICE, deadline - time.monotonic())):
            self.kill_all()
            raise TimeoutError(f"not at its end after {within} s: {self.said(0)[-3:]}")

    def ended(self, within: float) -> bool:
        """Whether all ranks, and all that they started, have ended after at most so many seconds."""
        deadline = time.monotonic() + within
        while any(process.poll() is None for process in self.processes) or self.left():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def left(self) -> list[int]:
        """Return these processes and those of their sessions, as far as they are alive."""
        own = {process.pid for process in self.processes}
        return [pid for pid, session, state in _processes() if own & {pid, session} and state != "Z"]

    @property
    def codes(self) -> list[int | None]:
        """Exit codes; minus a signal's number for what it killed."""
        return [process.poll() for process in self.processes]

    def said(self, rank: int) -> list[str]:
        """Return what a rank printed, line by line, without its progress bars."""
        text = self.logs[rank].read_text(errors="replace").replace("\r", "\n")
        return [
            line.rstrip() for line in text.splitlines() if line.strip() and "it/s]" not in line and "?it" not in line
        ]


def _processes():
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            yield int(entry.name), int(fields[3]), fields[0]


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
