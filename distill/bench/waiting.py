"""The bench of waiting: the part of a training step that is spent waiting for its batch, as the run itself records it.

The first steps of every epoch are left out, because workers fill their queues while a run validates and saves.
"""

import itertools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.bench.rounds import Goal
from distill.errors import ExpectedError
from distill.evaluation.report import aligned

SHARE = 0.05  # goal: part of a step
LEFT_OUT = 4  # steps at the start of every epoch: as many batches as two workers may have ready
RUN = Path(__file__).resolve().parents[1] / "run.py"
POLL = 0.2  # seconds
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WaitingTime:
    """The waiting of one run."""

    stem_cache_gb: float
    workers: int
    steps: int  # without those that are left out
    milliseconds: float  # of a step, waiting included
    waited: float  # milliseconds of it
    share: float  # waited / milliseconds


@dataclass(frozen=True, kw_only=True)
class WaitingReport:
    """The waiting of all runs of one recipe."""

    recipe: str
    overrides: list[str]
    rows: list[WaitingTime]
    goals: list[Goal]

    def table(self) -> str:
        """Return the report as text."""
        lines = [["stem cache", "workers", "steps", "ms a step", "ms waiting", "share"]]
        for row in self.rows:
            cache = f"{row.stem_cache_gb:g} GB" if row.stem_cache_gb else "none"
            times = f"{row.milliseconds:.1f}", f"{row.waited:.1f}", f"{100 * row.share:.1f} %"
            lines.append([cache, str(row.workers), str(row.steps), *times])
        about = " ".join([self.recipe, *self.overrides])
        return "\n\n".join([about, aligned(lines), "\n".join(goal.sentence() for goal in self.goals)])


def measure_waiting(
    recipe: str, overrides: Sequence[str], *, caches: Sequence[float], workers: Sequence[int], steps: int
) -> WaitingReport:
    """Run the recipe once, as a process, for every cache size (0: none) and number of workers.

    Raises `ExpectedError` with the last line of a run that ends before it took enough steps.
    """
    runs, rows = list(itertools.product(caches, workers)), []
    for cache, number in runs:
        log.info(f"run {len(rows) + 1} of {len(runs)}: {_named(cache)}, {number} workers")
        rows.append(_row(recipe, overrides, cache, number, steps))
    return WaitingReport(recipe=recipe, overrides=list(overrides), rows=rows, goals=[_goal(row) for row in rows])


def _row(recipe: str, overrides: Sequence[str], cache: float, workers: int, steps: int) -> WaitingTime:
    with tempfile.TemporaryDirectory() as folder:
        own = ["name=run", f"out={folder}", "data.test=null"]
        own += [f"data.workers={workers}", f"train.stem_cache_gb={float(cache)}"]
        command = [sys.executable, str(RUN), recipe, *overrides, *own]
        counted = _until(steps, command, Path(folder))
    milliseconds, waited = (1e3 * statistics.mean(row[what] for row in counted) for what in ("seconds", "data_wait"))
    return WaitingTime(cache, workers, len(counted), milliseconds, waited, share=waited / milliseconds)


def _until(steps: int, command: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Start a run in a folder, stop it once it has enough steps, and return their rows."""
    metrics, said = folder / "run" / "metrics.jsonl", folder / "said.txt"
    with said.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as run:
        try:
            while run.poll() is None and len(_counted(metrics)) < steps:
                time.sleep(POLL)
        finally:
            run.terminate()
            try:
                run.wait(120)
            except subprocess.TimeoutExpired:
                run.kill()
    rows = _counted(metrics)
    if rows:
        return rows[:steps]
    lines = said.read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing"]
    raise ExpectedError(
        f"{' '.join(command)}: ended before it had taken more than {LEFT_OUT} steps of an epoch; it said: {lines[-1]}"
    )


def _counted(metrics: Path) -> list[dict[str, Any]]:
    """Return the rows of optimisation steps without the first ones of every epoch."""
    if not metrics.is_file():
        return []
    lines = metrics.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last line may be half written
    taken = [row for row in rows if "total" in row]
    first = {row["epoch"]: row["step"] for row in reversed(taken)}
    return [row for row in taken if row["step"] - first[row["epoch"]] >= LEFT_OUT]


def _goal(row: WaitingTime) -> Goal:
    why = f"a step computes for {row.milliseconds - row.waited:.0f} ms and then waits {row.waited:.0f} ms for its batch"
    advice = "data.workers=1 loads it meanwhile" if row.workers == 0 else "more workers, or cores, are needed"
    what = f"waiting for data, {_named(row.stem_cache_gb)}, {row.workers} workers"
    return Goal(what, row.share, SHARE, percent=True, why=f"{why}: {advice}")


def _named(cache: float) -> str:
    return "with stem cache" if cache else "without stem cache"
