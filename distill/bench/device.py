"""A device by itself: the rate of its matrix products, the time of its collectives, and how long it runs nothing.

What a GPU is said to reach depends on its clock, its power and its temperature, so shares of a peak are taken of one
that was measured in the same run.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from distill import comm
from distill.bench.rounds import timed

SIDE = 8192  # of the matrices that are multiplied
REPEATS = 20  # in a row
COLLECTIVES: dict[str, Callable[[Tensor], object]] = {
    "all_gather": lambda rows: dist.all_gather([torch.empty_like(rows) for _ in range(comm.world_size())], rows),
    "all_reduce": dist.all_reduce,
    "broadcast": lambda rows: dist.broadcast(rows, 0),
}


@dataclass(frozen=True)
class CollectiveTime:
    """One collective of all processes on so many bytes a process."""

    collective: str
    megabytes: float
    milliseconds: float


def settle() -> None:
    """Wait until the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(side: int = SIDE, repeats: int = REPEATS) -> float:
    """Return the floating-point operations a second of bf16 matrix products, the best of three rows of them."""
    one, two = (torch.randn(side, side, device=comm.device(), dtype=torch.bfloat16) for _ in range(2))
    return max(2 * side**3 * repeats / seconds for seconds in _seconds(lambda: one @ two, repeats))


def collectives(sizes: Iterable[int], repeats: int = REPEATS) -> list[CollectiveTime]:
    """Time every collective on so many bytes of bf16; what one process takes is what each costs at the least."""
    found = []
    for size in sizes:
        rows = torch.zeros(size // 2, device=comm.device(), dtype=torch.bfloat16)
        for name, call in COLLECTIVES.items():
            seconds = min(_seconds(lambda call=call, rows=rows: call(rows), repeats))
            found.append(CollectiveTime(name, size / 1e6, 1e3 * seconds / repeats))
    return found


def _seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of three rows of calls; a fourth, before them, warms up."""

    def row() -> None:
        for _ in range(repeats):
            call()
        settle()

    return [timed(row) for _ in range(4)][1:]


def idle(work: Callable[[], object]) -> float | None:
    """Return the part of some work's time in which the device runs no kernel; None where there is no GPU.

    The time is that between its first kernel and the end of its last one. Copies are no kernels.
    """
    if not torch.cuda.is_available():
        work()
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        settle()
    return uncovered(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events() or []
        if event.device_type == DeviceType.CUDA and not event.name.startswith("Mem")
    )


def uncovered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the part of the time from the first start to the last end that no span covers."""
    ordered = sorted(spans)
    begin = reached = ordered[0][0]
    empty = 0.0
    for start, end in ordered:
        empty += max(0.0, start - reached)
        reached = max(reached, end)
    return empty / (reached - begin)
