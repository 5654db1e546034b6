"""The processes of one job, as a launcher would start them, and what is left of them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from conftest import ROOT

NOTICE = 2.0  # seconds after which a launcher tells the other ranks that one has died (torchrun: 0.1, deepspeed: 1)


class Ranks:
    """`count` processes of one command, each in a session of its own; what they print goes to `log`.N."""

    def __init__(self, command: Sequence[str | Path], count: int, log: Path):
        self.logs = [log.with_name(f"{log.name}.{rank}") for rank in range(count)]
        about = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        about["MASTER_PORT"] = str(_free_port())
        self.processes = []
        for rank, path in enumerate(self.logs):
            place = {**about, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            with path.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [str(word) for word in command],
                        cwd=ROOT,
                        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **place},
                        stdout=file,
                        stderr=file,
                        start_new_session=True,
                    )
                )

    @property
    def running(self) -> bool:
        """Whether all of them are."""
        return all(process.poll() is None for process in self.processes)

    def kill_all(self) -> None:
        """`kill -9` of all ranks and everything they started, at once."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def kill_one(self, pid: int) -> None:
        """`kill -9` of one process alone; ranks hear of it from their launcher, if they do not notice before."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.ended(NOTICE)
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def ended(self, within: float) -> bool:
        """Whether all ranks, and all that they started, have ended after at most so many seconds."""
        deadline = time.monotonic() + within
        while any(process.poll() is None for process in self.processes) or self.left():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def left(self) -> list[int]:
        """Processes of their sessions that are alive."""
        sessions = {process.pid for process in self.processes}
        return [pid for pid, session, state in _processes() if session in sessions and state != "Z"]

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
