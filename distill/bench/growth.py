"""The bench of growth: the seconds and the memory of what is done once per run, by the number of videos.

Each figure comes from a process of its own, on sets of distill/bench/grown.py, whose tars are not hashed. `held` is the
memory that a step leaves allocated, `mapped` what it leaves resident of mapped files, which processes share and the
system may drop, `most` the most that was allocated meanwhile, all beyond what the process held before the step.
"""

import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from distill.bench.grown import CAPTIONS, PER_SHARD, Grown, grow
from distill.bench.rounds import Goal, peak_memory
from distill.cache import Cache
from distill.data.dataconfig import DataConfig
from distill.data.datasets import PairDataset, TrainingDataset, UnpairedSource
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.tokens import Tokenizer
from distill.errors import ExpectedError
from distill.evaluation.evaluate import Encoded, rank
from distill.evaluation.report import aligned
from distill.labelling.given import GivenVectors
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.log import progress
from distill.model.features import TextFeatures, VideoFeatures
from distill.training.batches import Cycles, load_shares, plan_batches
from distill.workers import worker_pool

Measured = tuple[float, float, float, float, float]  # what a step costs, as in `Cost`
log = logging.getLogger(__name__)
BATCH, EPOCHS, WORKERS, BATCHES = 128, 10, 2, 20  # of the training whose first batches are loaded
WORDS, DIM = 32, 64  # tokens of a caption; numbers of a vector that is ranked
SECONDS, BYTES = 10.0, 200.0  # goals: to open both sets again, and what they may hold of each video and caption
LARGEST = 10_000_000  # videos, of which the goals are said


@dataclass(frozen=True)
class Cost:
    """The cost of one step; memory in MB."""

    videos: int
    step: str
    seconds: float
    busy: float  # seconds of the processor, which a busy machine does not change much
    held: float
    mapped: float
    most: float


@dataclass(frozen=True)
class GrowthReport:
    """All steps at all sizes."""

    rows: list[Cost]
    goals: list[Goal]

    def table(self) -> str:
        """As people read it."""
        lines = [["videos", "step", "time", "processor", "held", "most", "mapped"]]
        for row in self.rows:
            memory = (f"{megabytes:,.0f} MB" for megabytes in (row.held, row.most, row.mapped))
            lines.append([f"{row.videos:,}", row.step, f"{row.seconds:.3g} s", f"{row.busy:.3g} s", *memory])
        about = f"{CAPTIONS} captions a video, {PER_SHARD} videos a shard, batches of {BATCH}, {WORKERS} workers"
        goals = ["\n".join(goal.sentence() for goal in self.goals)] if self.goals else []
        return "\n\n".join([about, aligned(lines), *goals])


def measure_growth(folder: Path, sizes: Sequence[int], ranked: int) -> GrowthReport:
    """Write sets of each size into `folder` and take every step on them; rank `ranked` captions and videos (0: none).

    Raises `ExpectedError` for a size that is not whole shards.
    """
    odd = [videos for videos in sizes if videos < PER_SHARD or videos % PER_SHARD]
    if odd:
        raise ExpectedError(f"--videos: {odd[0]}, expected multiples of {PER_SHARD}, the videos of a shard")
    rows = []
    for videos in sizes:
        grown = grow(folder / str(videos), videos // PER_SHARD)
        for name, step in progress(STEPS.items(), f"steps with {videos:,} videos"):
            rows.append(_alone(name, step, videos, grown))
    if ranked:
        rows.append(_alone("rank as many captions", _rank, ranked, ranked))
    return GrowthReport(rows, [goal for row in rows for goal in _goals(row)])


def _alone(name: str, step: Callable, videos: int, about: object) -> Cost:
    """Take a step in a process of its own."""
    with worker_pool(1) as pool:
        found = Cost(videos, name, *pool.submit(step, about).result())
    log.info(f"{found.videos:,} videos: {name}: {found.seconds:.3g} s, {found.held:,.0f} MB")
    return found


def _measured(step: Callable[[], object]) -> Measured:
    """Return seconds, those of the processor, and MB that are held, mapped and were held at most."""
    before, began, busy = _resident(), time.perf_counter(), time.process_time()
    with peak_memory() as most:
        kept = step()
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
    held, mapped = (after - first for after, first in zip(_resident(), before, strict=True))
    del kept
    return seconds, busy, held, mapped, most[0] if most else 0.0


def _resident(process: str = "self") -> tuple[float, float]:
    """Return the MB of a process's memory that are allocated, and those of files; 0 where the system does not tell."""
    status = Path(f"/proc/{process}/status")
    lines = [line.split() for line in status.read_text().splitlines()] if status.is_file() else []
    found = {words[0]: int(words[1]) / 1e3 for words in lines if words and words[0].startswith("Rss")}
    return found.get("RssAnon:", 0.0), found.get("RssFile:", 0.0) + found.get("RssShmem:", 0.0)


def _frames(grown: Grown) -> FrameSet:
    return FrameSet(grown.frames, verify=False, cache=Cache(grown.frames.parent / "cache"))


def _labels(grown: Grown, frames: FrameSet) -> LabelSet:
    return LabelSet(grown.labels, frames, verify=False, coarse=None)


def _open(grown: Grown) -> Measured:
    return _measured(lambda: _frames(grown))


def _open_both(grown: Grown) -> Measured:
    def both() -> LabelSet:
        return _labels(grown, _frames(grown))

    return _measured(both)


def _config(workers: int) -> DataConfig:
    return DataConfig(train="", val="", batch_size=BATCH, num_frames=4, workers=workers)


def _plan(grown: Grown) -> Measured:
    frames = _frames(grown)

    def plan() -> object:
        made = plan_batches(frames, _config(0), EPOCHS, seed=0)
        return made, made.batch(0)

    return _measured(plan)


def _load(grown: Grown) -> Measured:
    """Return the cost of the first batch; `held` is the memory that a worker shares with no other process."""
    frames = _frames(grown)
    pairs = PairDataset(frames, [_labels(grown, frames)], Tokenizer(WORDS), pixels=True)
    plan = plan_batches(frames, _config(WORKERS), EPOCHS, seed=0)
    dataset, cycles = TrainingDataset(pairs, UnpairedSource(None, None)), Cycles(None, None)
    began, busy = time.perf_counter(), time.process_time()
    batches = load_shares(dataset, plan, cycles, _config(WORKERS), 0)
    next(batches)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    for _ in islice(batches, min(BATCHES, plan.total_steps) - 1):
        pass
    held = [_private(child.pid) for child in multiprocessing.active_children() if child.pid]
    return seconds, busy, max(held, default=0.0), 0.0, max(held, default=0.0)


def _private(process: int) -> float:
    """Return the MB of a process that it shares with no other."""
    rollup = Path(f"/proc/{process}/smaps_rollup")
    lines = [line.split() for line in rollup.read_text().splitlines()] if rollup.is_file() else []
    return sum(int(words[1]) / 1e3 for words in lines if words[0] in ("Private_Clean:", "Private_Dirty:"))


class _Unread(GivenVectors):
    """A labeller whose vectors nobody asks for."""

    id, frame_vectors = "drawn", False

    def __init__(self) -> None:
        pass


def _label_job(grown: Grown) -> Measured:
    frames = _frames(grown)
    config = LabelJobConfig(tiers=["features"], storage="float32", batch=32, precision="fp32")

    def job() -> object:
        made = LabelJob(_Unread(), frames, grown.labels.parent / "job", config)
        return made, made.counts

    return _measured(job)


def _cosine(text: TextFeatures, video: VideoFeatures) -> Tensor:
    return text.sentence @ video.vector.T


def _rank(number: int) -> Measured:
    sentences, vectors = torch.randn(2, number, DIM, generator=torch.Generator().manual_seed(0))
    seen = Encoded(TextFeatures(sentence=sentences), VideoFeatures(vector=vectors), torch.arange(number))
    return _measured(lambda: rank(_cosine, seen))


STEPS: dict[str, Callable[[Grown], Measured]] = {
    "open for the first time": _open,
    "open again": _open,
    "open with labels, first": _open_both,
    "open with labels again": _open_both,
    "plan and first rows": _plan,
    "first batch (held: a worker)": _load,
    "label job": _label_job,
}


def _goals(row: Cost) -> list[Goal]:
    if row.videos < LARGEST or row.step != "open with labels again":
        return []
    bytes_ = 1e6 * (row.held + row.mapped) / (row.videos * (1 + CAPTIONS))
    what = f"{row.videos:,} videos with labels"
    return [
        Goal(f"{what}: seconds to open again", row.seconds, SECONDS, why=f"{row.busy:.3g} s of the processor"),
        Goal(f"{what}: resident bytes of a video and caption", bytes_, BYTES, why="see the table"),
    ]
