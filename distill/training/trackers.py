"""Trackers: programs that show the metrics of a run while it trains, from files in its folder. None is on by default.

`train.track` names them. `metrics.jsonl` stays the truth: of a run that was killed and continued, a tracker may show
some steps twice. Neither asks a network unless its own settings (TRACKIO_SPACE_ID, for one) say so.
"""

import contextlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from distill.errors import check_installed

Name = Literal["tensorboard", "trackio"]
PROJECT = "retrieval-distill"  # of trackio's runs


class Tracker(ABC):
    """A program that is told the metrics of steps."""

    @abstractmethod
    def row(self, step: int, values: dict[str, float]) -> None:
        """Take the values of a step, by name."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard(Tracker):
    """Event files in the run's folder `tensorboard`, for `tensorboard --logdir`."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def row(self, step: int, values: dict[str, float]) -> None:
        """Write one scalar for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the events."""
        self._writer.close()


class Trackio(Tracker):
    """A database in the run's folder `trackio`, or where TRACKIO_DIR says, for `trackio show`."""

    def __init__(self, folder: Path):
        os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))  # read as it is imported
        import trackio  # pyrefly: ignore[missing-import]

        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the run's answer
            self._run = trackio.init(project=PROJECT, name=folder.name, resume="allow", **quiet)
        self._finish = trackio.finish  # not the run's own, which trackio would do again at the end of the process

    def row(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """End the run, which waits for what is not written yet."""
        with contextlib.redirect_stdout(sys.stderr):
            self._finish()


TRACKERS: dict[Name, type[TensorBoard] | type[Trackio]] = {"tensorboard": TensorBoard, "trackio": Trackio}


def check_trackers(names: Sequence[Name]) -> None:
    """Refuse, before any work, a tracker whose package is not installed."""
    for name in names:
        check_installed(name)


def open_trackers(names: Sequence[Name], folder: Path) -> list[Tracker]:
    """Open the trackers of a run."""
    return [TRACKERS[name](folder) for name in dict.fromkeys(names)]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested values under joined names (val/t2v/R@1), without those that are no numbers."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = float(value)
    return found
