"""Commands of the project as processes: one at a time or two, with progress on the console and a log each."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from distill import signals
from distill.config import ROOT
from distill.errors import ExpectedError

TICK = 20  # seconds between two words of a running command
# With these glibc keeps what is freed, instead of handing large blocks back and paying for their pages again
# (docs/scaling.md). Other systems do not read them.
KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def tool(name: str) -> tuple[str, Path]:
    """Return the command line of a tool of this very installation, whatever the working directory."""
    return sys.executable, ROOT / "tools" / f"{name}.py"


@dataclass(frozen=True)
class Command:
    """A command line, the path that it makes, and the paths that it needs."""

    title: str
    arguments: Sequence[str | Path]
    done: Path
    needs: tuple[Path, ...] = ()


class Commands:
    """A runner of the project's commands, which counts them, shows their progress and keeps their logs in a folder."""

    def __init__(self, logs: Path, total: int):
        self._logs, self._total, self._finished = logs, total, 0
        logs.mkdir(parents=True, exist_ok=True)
        self._cores = len(os.sched_getaffinity(0))
        self._began = time.monotonic()

    def run(self, command: Command, threads: int | None = None) -> None:
        """Run one command unless what it makes is there; raise `ExpectedError` with the end of its log if it fails."""
        title, done = command.title, command.done
        if not done.exists():
            self._say(f"{title} ...")
            self._follow(command, threads or self._cores)
            if not done.exists():
                raise ExpectedError(f"{title} ended without making {done}; its log is in {self._logs}")
        self._finished += 1
        self._say(f"{title}: done ({self._finished} of {self._total})")

    def _follow(self, command: Command, threads: int) -> None:
        name = "".join(c if c.isalnum() else "-" for c in command.title.lower()).strip("-")
        log, own = self._logs / f"{name}.log", {"OMP_NUM_THREADS": str(threads), signals.BY_DEMO: "1"}
        environment = {**KEEP_FREED, **os.environ, **own}
        with log.open("w") as file:
            process = subprocess.Popen(list(map(str, command.arguments)), stdout=file, stderr=file, env=environment)
            while True:
                try:
                    code = process.wait(TICK)
                    break
                except subprocess.TimeoutExpired:
                    self._say(f"  {command.title}: {_last_line(log)}")
        if code:
            tail = " | ".join(log.read_text().strip().splitlines()[-3:])
            raise ExpectedError(f"{command.title} failed with exit code {code}; {log} says: {tail}")

    def side_by_side(self, commands: Sequence[Command]) -> None:
        """Run commands in their order, those first that others wait for, each alone on all cores; then two at a time:
        each on half of the cores, or on all where no other can run beside it."""
        waiting, running = list(commands), set()
        with ThreadPoolExecutor(2) as pool:  # which waits for the other command if one fails
            while waiting or running:
                ready = [command for command in waiting if all(path.exists() for path in command.needs)]
                awaited = [command for command in ready if any(command.done in other.needs for other in waiting)]
                if awaited and not running:  # beside others it would be done later, and end with a core idle
                    waiting.remove(awaited[0])
                    self.run(awaited[0])
                    continue
                threads = self._cores if len(ready) + len(running) == 1 else max(1, self._cores // 2)
                for command in ready[: 2 - len(running)]:
                    waiting.remove(command)
                    running.add(pool.submit(self.run, command, threads))
                assert running, "a command needs what no other makes"
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()

    def _say(self, text: str) -> None:
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        print(f"[{minutes:2d}:{seconds:02d}] {text}", flush=True)


def _last_line(log: Path) -> str:
    """Return the last progress in a log: step, loss, remaining time, or the stage that has begun."""
    lines = re.split(r"[\r\n]", log.read_text())
    telling = [line for line in lines if re.search(r"step \d+/|\d%\||testing on|validation after", line)]
    words = telling[-1].split("  ") if telling else ["starting"]
    return "  ".join(word for word in words if not re.match(r"contrastive|coarse|fine|grad_norm|lr", word))[-90:]
