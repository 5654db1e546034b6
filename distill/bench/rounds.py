"""Measurements that take turns, so that other load on the machine slows all of them alike, and their goals.

A ratio of two measurements is the median over rounds of the ratio within a round.
"""

import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distill.log import progress

LOOK = 0.001  # seconds between two looks at the memory


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int, what: str) -> dict[str, list[float]]:
    """Return the values of every side, by round. The first round only warms up; every other round goes backwards."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in progress(range(rounds + 1), what):
        for name in list(sides) if number % 2 else reversed(list(sides)):
            value = sides[name]()
            if number:
                values[name].append(value)
    return values


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of a/b."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Give a list that holds, after the block, the largest number of MB beyond mapped files that the block added.

    Where the system does not tell, the list stays empty.
    """
    used: list[float] = []
    before, over = _anonymous(), threading.Event()

    def look() -> None:
        most = before
        while not over.wait(LOOK):
            most = max(most, _anonymous())
        if before:
            used.append((most - before) / 1e6)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield used
    finally:
        over.set()
        watcher.join()


def _anonymous() -> int:
    """Return the bytes of this process's memory that belong to no file; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@dataclass(frozen=True)
class Goal:
    """A figure with its limit, and the reason why it may miss it."""

    what: str
    found: float
    limit: float
    at_least: bool = False  # the limit is a lower bound
    percent: bool = False  # `found` and `limit` are parts of 1, shown in percent
    why: str = ""
    reached: bool = field(init=False)

    def __post_init__(self) -> None:
        reached = self.found >= self.limit if self.at_least else self.found <= self.limit
        object.__setattr__(self, "reached", reached)  # a field, so that it stands in the JSON of a report

    def sentence(self) -> str:
        """Return the goal and its outcome as a sentence."""
        sign = ">=" if self.at_least else "<="
        head = f"{self.what}: {self._shown(self.found)}, goal {sign} {self._shown(self.limit)}:"
        if self.reached:
            return f"{head} reached"
        return f"{head} missed by {self._shown(abs(self.found - self.limit))}; {self.why}"

    def _shown(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """Return the processor, its cores and threads, the device and the version of torch."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    threads, cores = torch.get_num_threads(), torch.multiprocessing.cpu_count()
    processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": cores, "threads": threads, "device": device, "torch": torch.__version__}
