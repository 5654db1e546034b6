"""The bench of one GPU: training steps, label jobs, indexing and collectives beside what the device can do at most.

Everything is drawn: weights, videos and captions. Nothing but sizes decides how long it takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.bench import device, training
from distill.bench.device import CollectiveTime
from distill.bench.drawn import draw_frames, draw_videos
from distill.bench.encoding import EncodingSpeed, measure_index, measure_labels
from distill.bench.rounds import Goal
from distill.bench.steps import Setting, build_teachers, write_labels
from distill.bench.training import LABELS, PLAIN, TrainingStep, measure_training
from distill.data.frames import FrameSet
from distill.errors import ExpectedError
from distill.evaluation.report import aligned
from distill.model.preprocessing import image_size
from distill.model.towers import read_architecture

MFU, OF_PLAIN, OF_BARE, IDLE = 0.45, 1.05, 0.9, 0.05  # goals


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of what is drawn."""

    videos: int = 480  # of the frame set
    captions: int = 2  # of a video
    files: int = 48  # that are indexed
    seconds: int = 12  # of a file
    rate: int = 25  # its frames a second
    picture: tuple[int, int] = (640, 360)  # its width and height
    steps: int = 30  # of a kind that are timed
    rounds: int = 3  # of label jobs and indexing
    side: int = device.SIDE  # of the matrices whose product is the peak
    kinds: Sequence[str] = tuple(training.KINDS)
    collectives: Sequence[int] = (1 << 16, 1 << 20, 1 << 28)  # bytes


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """All that was measured on one device."""

    peak: float  # floating-point operations a second of bf16 matrix products
    pairs: int
    num_frames: int
    max_words: int
    precision: str
    steps: list[TrainingStep]
    left_out: list[str]  # kinds of step, with the reason
    jobs: list[EncodingSpeed]
    collectives: list[CollectiveTime]
    goals: list[Goal]

    def table(self) -> str:
        """Return the report as text."""
        about = (
            f"matrix products in bf16: {self.peak / 1e12:.3g} TFLOP/s; steps of {self.pairs} pairs, {self.num_frames} "
            f"frames, {self.max_words} words, {self.precision}"
        )
        steps = [["tower", "step", "ms", "pairs/s", "TFLOP", "MFU", "waiting for data", "idle", "GB"]]
        for row in self.steps:
            shares = [f"{100 * row.mfu:.1f} %", f"{100 * row.waited:.1f} %", _percent(row.idle)]
            rates = [f"{row.milliseconds:.1f}", f"{row.samples:,.0f}", f"{row.flops / 1e12:.3g}"]
            memory = "-" if row.gigabytes is None else f"{row.gigabytes:.1f}"
            steps.append([row.tower, row.step, *rates, *shares, memory])
        jobs = [["job", "a second", "bare towers", "ratio"]]
        jobs += [
            [job.job, f"{job.rate:,.0f} {job.unit}", f"{job.bare:,.0f}", f"{job.of_bare:.3f}"] for job in self.jobs
        ]
        words = [["collective, one process", "MB", "ms"]]
        words += [[one.collective, f"{one.megabytes:.3g}", f"{one.milliseconds:.3f}"] for one in self.collectives]
        left = [f"left out: {reason}" for reason in self.left_out]
        goals = [goal.sentence() for goal in self.goals]
        return "\n\n".join([about, aligned(steps), aligned(jobs), aligned(words), "\n".join([*left, *goals])])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def require_gpu() -> None:
    """Raise `ExpectedError` where there is no CUDA device."""
    if not torch.cuda.is_available():
        raise ExpectedError("no CUDA device: this bench measures one GPU; run it on a host that has one")


def measure_gpu(settings: Mapping[str, Setting], labelling: Setting, folder: Path, sizes: Sizes) -> GpuReport:
    """Measure the training of every tower's setting, and the label jobs and the indexing of another; `folder` is empty.

    All settings have the same batch, frames and words, and the last one the first tower.
    """
    peak = device.peak(sizes.side)
    steps, left_out, sets = [], [], {}
    for name, setting in settings.items():
        size = image_size(read_architecture(setting.student.clip))
        if size not in sets:
            sets[size] = _draw(setting, folder / f"frames-{size}", size, sizes)
        teachers = build_teachers(setting.teachers)
        labels = write_labels(teachers, setting, sets[size], folder / name, batch=32, storage="float16")
        del teachers
        options = {"kinds": sizes.kinds, "steps": sizes.steps, "peak": peak}
        rows, without = measure_training(name, setting, sets[size], labels, **options)
        steps, left_out = [*steps, *rows], [*left_out, *without]
    frames = next(iter(sets.values()))
    drawn = {"videos": sizes.files, "seconds": sizes.seconds, "rate": sizes.rate, "size": sizes.picture}
    draw_videos(folder / "files", **drawn)
    jobs = measure_labels(labelling, frames, folder / "labels", rounds=sizes.rounds)
    jobs += measure_index(labelling, frames, folder / "files", folder / "galleries", rounds=sizes.rounds)
    return GpuReport(
        peak=peak,
        pairs=labelling.data.batch_size,
        num_frames=labelling.data.num_frames,
        max_words=labelling.data.max_words,
        precision="bf16" if labelling.bf16 else "fp32",
        steps=steps,
        left_out=left_out,
        jobs=jobs,
        collectives=device.collectives(sizes.collectives),
        goals=_goals(steps, jobs),
    )


def _draw(setting: Setting, folder: Path, size: int, sizes: Sizes) -> FrameSet:
    drawn = {"videos": sizes.videos, "captions": sizes.captions, "num_frames": setting.data.num_frames}
    return draw_frames(folder, size=size, **drawn)


def _goals(steps: Sequence[TrainingStep], jobs: Sequence[EncodingSpeed]) -> list[Goal]:
    """Return the goals: of the first tower's use of the peak, of labels, and of what the device waits for."""
    goals, by_tower = [], {row.tower: {one.step: one for one in steps if one.tower == row.tower} for row in steps}
    for number, (tower, rows) in enumerate(by_tower.items()):
        labels, plain = rows[LABELS], rows[PLAIN]
        why = f"a step of {labels.flops / 1e12:.3g} TFLOP takes {labels.milliseconds:.1f} ms"
        if not number:
            goals.append(Goal(f"{tower}: MFU with labels", labels.mfu, MFU, at_least=True, percent=True, why=why))
        reading = f"{labels.milliseconds:.1f} ms instead of {plain.milliseconds:.1f}"
        of_plain = labels.milliseconds / plain.milliseconds
        goals.append(Goal(f"{tower}: step with labels over one without", of_plain, OF_PLAIN, why=reading))
        for row in rows.values():
            if row.idle is not None:
                waits = f"{100 * row.waited:.1f} % of the time is waiting for data, the rest for the host"
                goals.append(Goal(f"{tower}, {row.step}: device idle", row.idle, IDLE, percent=True, why=waits))
    for job in jobs:
        slower = f"{job.rate:,.0f} {job.unit} a second instead of {job.bare:,.0f}"
        goals.append(Goal(f"{job.job} over bare towers", job.of_bare, OF_BARE, at_least=True, why=slower))
    return goals
