"""Things that are timed beside each other take turns, so that whatever else the machine does slows all of them alike.

A ratio of two of them is the median over rounds of the ratio within a round.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distill.log import progress


def take_turns(sides: Mapping[str, Callable[[], float]], rounds: int, what: str) -> dict[str, list[float]]:
    """What every side measures, round by round. A first round only warms up; every other one goes backwards."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in progress(range(rounds + 1), what):
        for name in list(sides) if number % 2 else reversed(list(sides)):
            value = sides[name]()
            if number:
                found[name].append(value)
    return found


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of a/b, round by round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure beside what was asked of it, and why it is missed if it is."""

    what: str
    found: float
    limit: float
    at_least: bool = False  # else: at most
    percent: bool = False  # `found` and `limit` are shares, shown in percent
    why: str = ""

    @property
    def reached(self) -> bool:
        """Whether the figure is what was asked, or better."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def sentence(self) -> str:
        """The goal in words."""
        sign = ">=" if self.at_least else "<="
        head = f"{self.what}: {self._shown(self.found)}, goal {sign} {self._shown(self.limit)}:"
        if self.reached:
            return f"{head} reached"
        return f"{head} missed by {self._shown(abs(self.found - self.limit))}; {self.why}"

    def tree(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**self.__dict__, "reached": self.reached}

    def _shown(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    threads, cores = torch.get_num_threads(), torch.multiprocessing.cpu_count()
    processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": cores, "threads": threads, "device": device, "torch": torch.__version__}
