"""Time and memory of the batch plan: its start, its first batch, the batches after that, and one in mid-run.

Times are those of the processor: a plan works in one thread and waits for nothing. Memory is the peak of what Python
and NumPy allocate for the start and the first batch, measured by tracemalloc in a run of its own.
"""

import itertools
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.bench.rounds import Goal
from distill.data.plan import Plan
from distill.evaluation.report import aligned
from distill.log import progress

EPOCHS, BATCH, CAPTIONS, SHARD = 10, 128, 20, 1000  # captions of a video, videos of a shard
FOLLOWING = 1000  # batches
SMALL, LARGE = 9_000, 500_000  # videos
START, FIRST, MEMORY = {SMALL: 0.05, LARGE: 1.0}, 3.0, 1000.0  # goals: seconds, seconds, MB
PLANS: list[tuple[int, str, dict[str, Any]]] = [
    (SMALL, "apart", {}),
    (SMALL, "apart, windows of 2 shards", {"window": 2}),
    (LARGE, "apart", {}),
    (LARGE, "apart, windows of 4 shards", {"window": 4}),
    (LARGE, "negatives", {"same_video_apart": False}),
]


@dataclass(frozen=True)
class PlanTime:
    """One plan; seconds are medians over rounds."""

    videos: int
    captions: int
    drawn: str  # captions of a video in a batch, and windows
    start: float  # seconds until the number of steps is known
    first: float  # seconds until the first batch is there
    following: float  # seconds of each of the batches after it
    middle: float  # seconds of a batch in the middle of the run, where a resumed run may begin
    megabytes: float


@dataclass(frozen=True)
class PlanReport:
    """All plans."""

    rows: list[PlanTime]
    goals: list[Goal]

    def table(self) -> str:
        """As people read it."""
        lines = [["captions", "same video, windows", "start", "first batch", "batch after it", "in mid-run", "memory"]]
        for row in self.rows:
            times = (f"{1e3 * seconds:.3g} ms" for seconds in (row.start, row.first, row.following, row.middle))
            lines.append([f"{row.captions:,}", row.drawn, *times, f"{row.megabytes:.0f} MB"])
        about = f"{EPOCHS} epochs, batches of {BATCH}, {CAPTIONS} captions a video, shards of {SHARD} videos"
        return "\n\n".join([about, aligned(lines), "\n".join(goal.sentence() for goal in self.goals)])


def measure_plans(rounds: int) -> PlanReport:
    """Make every plan `rounds` times, and once more to see its memory."""
    rows = [_row(*plan, rounds) for plan in progress(PLANS, "plans")]
    return PlanReport(rows, [goal for row in rows for goal in _goals(row)])


def _row(videos: int, drawn: str, options: dict[str, Any], rounds: int) -> PlanTime:
    captions, shards = [CAPTIONS] * videos, [SHARD] * (videos // SHARD)

    def plan() -> Plan:
        return Plan(captions, BATCH, EPOCHS, seed=0, shards=shards, **options)

    times = [_times(plan) for _ in range(rounds)]
    tracemalloc.start()
    plan().batch(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    medians = [statistics.median(some) for some in zip(*times, strict=True)]
    return PlanTime(videos, videos * CAPTIONS, drawn, *medians, megabytes=peak / 1e6)


def _times(plan: Callable[[], Plan]) -> tuple[float, ...]:
    """Processor seconds of the start, the first batch, each that follows, and one in mid-run."""
    clocks = [time.process_time()]
    made = plan()
    clocks.append(time.process_time())
    for steps in (range(1), range(1, 1 + FOLLOWING), [made.total_steps // 2]):
        for step in steps:
            made.batch(step)
        clocks.append(time.process_time())
    start, first, following, middle = (after - before for before, after in itertools.pairwise(clocks))
    return start, first, following / FOLLOWING, middle


def _goals(row: PlanTime) -> list[Goal]:
    what, why = f"{row.captions:,} captions, {row.drawn}", "other programs that read much memory slow it, too"
    return [
        Goal(f"{what}: seconds to start", row.start, START[row.videos], why=why),
        Goal(f"{what}: seconds to the first batch", row.first, FIRST, why=why),
        Goal(f"{what}: MB of memory", row.megabytes, MEMORY, why=why),
    ]
