"""The cost of a training: its floating-point operations, counted in one real step; its seconds; its energy, if told.

Energy is what counters of the machine say: of the GPUs (NVML), or, where the CPU trains, of the processor packages
(RAPL). Where none can be read it is unknown, and so it is for a run of which a part was.
"""

import ctypes
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from distill import comm

COUNTED = "matrix products, convolutions and attention of the training steps, forward and backward, 2 a multiply-add"
RAPL = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Cost:
    """The cost of all steps, over all processes and restarts; None for what is unknown."""

    steps: int
    samples: int  # pairs of a caption and a video, counted as often as they were trained on
    flops: int | None  # `COUNTED`, without what a stem cache computes once
    seconds: float  # also of validations, but not of work that an interruption lost
    joules: float | None


class _Counter(TorchDispatchMode):
    """Adds up the operations of every kernel that PyTorch knows a formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=found)
        return found


def counted(work: Callable[[], Answer]) -> tuple[Answer, int]:
    """Return what some work gives, and its floating-point operations over all processes. A collective."""
    with _Counter() as counter:
        found = work()
    return found, int(comm.total(float(counter.flops)))


@dataclass
class Meter:
    """Seconds and joules since it was made, added to those of before (joules of this process's counters alone)."""

    seconds_before: float = 0.0
    joules_before: float | None = 0.0
    counters: list[Callable[[], float]] = field(default_factory=lambda: energy_counters())

    def __post_init__(self) -> None:
        self._began = time.perf_counter()
        self._joules = [0.0 for _ in self.counters]
        self._last = [read() for read in self.counters]

    def tick(self) -> None:
        """Read counters that begin again at 0 when they are full; call it once a step."""
        for place, read in enumerate(self.counters):
            now = read()
            self._joules[place] += now - self._last[place] if now >= self._last[place] else 0.0
            self._last[place] = now

    @property
    def seconds(self) -> float:
        """Return the seconds of all, on this process."""
        return self.seconds_before + time.perf_counter() - self._began

    def joules(self) -> float | None:
        """Return the energy over all processes; None if one of them, or a part of before, is unknown. A collective."""
        self.tick()
        known = sum(self._joules, 0.0) if self.counters or _measured_by_another() else math.nan
        total = comm.total(known)
        return None if math.isnan(total) or self.joules_before is None else self.joules_before + total


def _measured_by_another() -> bool:
    """Return whether the first process of this host reads the counters of the processors for all of them."""
    return not torch.cuda.is_available() and int(os.environ.get("LOCAL_RANK", 0)) > 0


def energy_counters(rapl: Path = RAPL, nvml: str = NVML) -> list[Callable[[], float]]:
    """Return the counters of this process, in joules: of its GPU, or of the host's processors for its first process."""
    if torch.cuda.is_available():
        return _of_gpu(nvml, f"GPU-{torch.cuda.get_device_properties(comm.device()).uuid}")
    return [] if _measured_by_another() else _of_processors(rapl)


def _of_processors(rapl: Path) -> list[Callable[[], float]]:
    packages = [folder / "energy_uj" for folder in sorted(rapl.glob("*-rapl:*")) if folder.name.count(":") == 1]

    def reading(path: Path) -> Callable[[], float]:
        return lambda: int(path.read_text()) / 1e6

    found = [reading(path) for path in packages]
    try:
        for read in found:
            read()
    except (OSError, ValueError):  # most systems let their administrator alone read them
        return []
    return found


def _of_gpu(library: str, uuid: str) -> list[Callable[[], float]]:
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
            return []
        told = nvml.nvmlDeviceGetTotalEnergyConsumption
    except (OSError, AttributeError):  # no driver, or an old one
        return []

    def read() -> float:
        told(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    return [] if told(handle, ctypes.byref(millijoules)) else [read]
