"""Training metrics: appended to metrics.jsonl, shown on the console and by the trackers that a recipe names."""

import errno
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.errors import writing
from distill.training.trackers import Tracker, flat

log = logging.getLogger(__name__)


class Monitor:
    """Appends rows to `metrics.jsonl`; a resumed run first cuts what the lost steps had written."""

    def __init__(self, folder: Path, total_steps: int, keep_bytes: int = 0, trackers: Sequence[Tracker] = ()):
        self._total = total_steps
        self._path = folder / "metrics.jsonl"
        self._file = self._path.open("ab", buffering=0)
        there = self._file.seek(0, os.SEEK_END)
        if there < keep_bytes:
            log.warning(
                f"{self._path}: holds {there:,} of the {keep_bytes:,} bytes that the run had written; what is gone is "
                f"not written again, and the rows of this run follow"
            )
            keep_bytes = self._path.read_bytes().rfind(b"\n") + 1
        self._bytes = keep_bytes
        self._file.truncate(self._bytes)
        self._trackers = trackers
        self._recent: list[float] = []

    def row(self, step: int, values: dict[str, Any]) -> None:
        """Writes one row; `step` counts from 1."""
        line = json.dumps({"step": step, **values}).encode() + b"\n"
        with writing(self._path, needed=len(line)):
            if self._file.write(line) < len(line):
                self._file.truncate(self._bytes)
                raise OSError(errno.ENOSPC, "only a part of the row was written")
        self._bytes += len(line)
        for tracker in self._trackers:
            tracker.row(step, flat(values))

    def show(self, step: int, values: dict[str, float], pairs: int, seconds: float) -> None:
        """One console line: step, losses, speed and the time that is left."""
        self._recent = [*self._recent[-49:], seconds]
        mean = sum(self._recent) / len(self._recent)
        parts = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name not in ("lr", "total"))
        left = time.strftime("%H:%M:%S", time.gmtime(mean * (self._total - step)))
        log.info(
            f"step {step}/{self._total}  loss {values['total']:.4f}  {parts}  lr {values['lr']:.2e}  "
            f"{pairs / mean:.0f} pairs/s  {left} left"
        )

    def bytes(self) -> int:
        """Length of metrics.jsonl, on disk."""
        with writing(self._path):
            os.fsync(self._file.fileno())
        return self._bytes

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()
