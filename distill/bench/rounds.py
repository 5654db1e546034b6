"""Measurements that take turns, so that other load on the machine slows all of them alike, and their goals.

A ratio of two measurements is the median over rounds of the ratio within a round.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from distill.log import progress


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


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure with its limit, and the reason why it may miss it."""

    what: str
    found: float
    limit: float
    at_least: bool = False  # the limit is a lower bound
    percent: bool = False  # `found` and `limit` are parts of 1, shown in percent
    why: str = ""

    @property
    def reached(self) -> bool:
        """True if the figure keeps to the limit."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def sentence(self) -> str:
        """Return the goal and its outcome as a sentence."""
        sign = ">=" if self.at_least else "<="
        head = f"{self.what}: {self._shown(self.found)}, goal {sign} {self._shown(self.limit)}:"
        if self.reached:
            return f"{head} reached"
        return f"{head} missed by {self._shown(abs(self.found - self.limit))}; {self.why}"

    def _shown(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3g}"


def tree(report: Any) -> dict[str, Any]:
    """Return a report, or a goal, as plain JSON; every goal says whether it was reached."""
    if isinstance(report, Goal):
        return {**asdict(report), "reached": report.reached}
    goals = {"goals": [tree(goal) for goal in report.goals]} if hasattr(report, "goals") else {}
    return asdict(report) | goals


def machine() -> dict[str, Any]:
    """Return the processor, its cores and threads, the device and the version of torch."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    threads, cores = torch.get_num_threads(), torch.multiprocessing.cpu_count()
    processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": cores, "threads": threads, "device": device, "torch": torch.__version__}
