"""The bench of training steps: a student's step without a teacher, with stored labels, and with live teachers.

One student, one optimizer and one objective take all three steps, in turns, on the same pairs. Frames are decoded and
on the device before timing starts (the bench of the loader measures decoding), but labels are read from their shards
within the step, without a worker that would hide the time. Live teachers make the rows that label shards hold, so both
steps compute the same loss; the report has the difference.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distill import catalogue, comm
from distill.bench.rounds import Goal, ratio, take_turns, timed
from distill.data.batch import Batch
from distill.data.dataconfig import DataConfig
from distill.data.datasets import PairDataset
from distill.data.frames import FrameSet
from distill.data.labels import Storage
from distill.data.labelset import LabelSet
from distill.data.tokens import TextTokenizer
from distill.evaluation.report import aligned
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.labelling.teacher import TeacherRelease
from distill.model.contract import Interaction, RetrievalConfig, RetrievalModel, Teacher
from distill.model.towers import Towers, open_tokenizer, read_architecture
from distill.training.engine import Engine
from distill.training.lossconfig import LossConfig
from distill.training.objective import Objective
from distill.training.optim import OptimConfig

OF_PLAIN = 1.10  # goal: a step with labels over one without a teacher
OF_LIVE = 0.63  # goal: over one with live teachers (3 passes of the student's size instead of 5 would be 0.6)
PLAIN, LABELS, LIVE = "no teacher", "labels", "live teachers"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A student, its teachers and its training, as their recipes say."""

    student: RetrievalConfig
    teachers: Sequence[RetrievalConfig]
    data: DataConfig
    losses: LossConfig
    optim: OptimConfig
    bf16: bool

    def tokenizer(self) -> TextTokenizer:
        """Return the student's tokenizer."""
        return open_tokenizer(self.student.clip, read_architecture(self.student.clip), self.data.max_words)

    @property
    def kinds(self) -> list[str]:
        """The kinds of the teachers."""
        return [teacher.kind for teacher in self.teachers]


@dataclass(frozen=True)
class StepCost:
    """One kind of step."""

    step: str
    flops: int  # of matrix products, convolutions and attention, forwards and backwards, counted while it ran
    milliseconds: float
    of_plain: float  # its time over that of the step without a teacher, the median over rounds


@dataclass(frozen=True, kw_only=True)
class StepsReport:
    """The costs of the three kinds of step, and their goals."""

    pairs: int
    num_frames: int
    max_words: int
    precision: str
    rows: list[StepCost]
    by_operations: float  # labels over live, counted
    loss_difference: float  # between stored and live labels, relative, on the same weights
    goals: list[Goal]

    def table(self) -> str:
        """Return the report as text."""
        lines = [["step", "GFLOP", "ms", "of no teacher"]]
        for row in self.rows:
            lines.append([row.step, f"{row.flops / 1e9:,.1f}", f"{row.milliseconds:,.1f}", f"{row.of_plain:.3f}"])
        about = (
            f"a step of {self.pairs} pairs, {self.num_frames} frames, {self.max_words} words, {self.precision}\n"
            f"labels over live teachers by counted operations: {self.by_operations:.3f}; their losses differ by "
            f"{self.loss_difference:.1e}, relatively"
        )
        return "\n\n".join([about, aligned(lines), "\n".join(goal.sentence() for goal in self.goals)])


def build(config: RetrievalConfig, seed: int) -> RetrievalModel:
    """Return the model of a config with random weights, on this process's device."""
    torch.manual_seed(seed)
    return catalogue.build(config, Towers.from_config(config.clip)).to(comm.device())


def build_teachers(configs: Sequence[RetrievalConfig]) -> list[Teacher]:
    """Return frozen teachers; noise moves their scoring heads away from their initial values, which may be trivial."""
    teachers = []
    for number, config in enumerate(configs):
        teacher = build(config, 1 + number)
        assert isinstance(teacher, Teacher)
        with torch.no_grad():
            for parameter in teacher.interaction.parameters():
                if parameter.numel() > 1:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        teachers.append(teacher.eval().requires_grad_(False))
    return teachers


def write_labels(
    teachers: Sequence[Teacher],
    setting: Setting,
    frames: FrameSet,
    folder: Path,
    *,
    batch: int,
    storage: Storage,
    workers: int = 0,
) -> list[LabelSet]:
    """Label a frame set by each teacher as tools/dump_soft_labels.py does; return the opened labels."""
    given = {"storage": storage, "batch": batch, "workers": workers, "precision": "bf16" if setting.bf16 else "fp32"}
    config = LabelJobConfig.model_validate({"tiers": ["relevance", "features"], **given})
    for teacher, kind in zip(teachers, setting.kinds, strict=True):
        release = TeacherRelease(model=teacher, tokenizer=setting.tokenizer(), kind=kind, id=f"random {kind}")
        job = LabelJob(release, frames, folder / kind, config)
        assert job.begin() is None, "a new folder"
        job.label()
    return [LabelSet(folder / kind, frames) for kind in setting.kinds]


def objective(model: RetrievalModel, labels: Sequence[LabelSet], setting: Setting) -> Objective:
    """Return the objective that a training run builds from label sets."""
    heads = [(catalogue.scoring_head(one).to(comm.device()), 1.0) for one in labels]
    return Objective(model, heads, setting.losses, bf16=setting.bf16)


@torch.no_grad()
def labelled(batch: Batch, teachers: Sequence[Teacher], *, bf16: bool) -> Batch:
    """Return the batch with the rows that label sets would hold for its pairs, computed by live teachers."""
    return replace(batch, labels=[_rows(teacher, batch, bf16=bf16) for teacher in teachers])


def _rows(teacher: Teacher, batch: Batch, *, bf16: bool) -> dict[str, Tensor]:
    assert batch.frames is not None, "pixels"
    with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=bf16):
        text, video = teacher.encode_text(batch.ids), teacher.encode_video(batch.frames, batch.real)
    text = replace(text, **{name: value.float() for name, value in text.tensors().items()})
    video = replace(video, **{n: v.float() for n, v in video.tensors().items() if v.is_floating_point()})
    head: Interaction = teacher.interaction
    stored = {name: value.float() for name, value in video.tensors().items() if name in head.video_fields}
    return {"relevance": head.relevance(text, video), **text.tensors(), **stored}


def measure_steps(setting: Setting, frames: FrameSet, folder: Path, *, rounds: int) -> StepsReport:
    """Write labels of random teachers of the setting's size, then time and count the three steps."""
    data = setting.data
    teachers = build_teachers(setting.teachers)
    labels = write_labels(teachers, setting, frames, folder, batch=min(data.batch_size, 32), storage="float16")
    student = build(setting.student, 0).train()
    losses = objective(student, labels, setting)
    engine = Engine(losses, student, setting.optim, 0, data.batch_size)
    batches = _batches(setting, frames, labels, teachers)
    with torch.no_grad():
        stored, live = (float(losses(batches[kind]())["total"]) for kind in (LABELS, LIVE))
    sides = {kind: partial(timed, partial(_step, engine, make)) for kind, make in batches.items()}
    times = take_turns(sides, rounds, "steps in turns (rounds)")
    flops = {kind: _flops(engine, make) for kind, make in batches.items()}
    rows = [
        StepCost(kind, flops[kind], 1e3 * statistics.median(took), ratio(took, times[PLAIN]))
        for kind, took in times.items()
    ]
    return StepsReport(
        pairs=data.batch_size,
        num_frames=data.num_frames,
        max_words=data.max_words,
        precision="bf16" if setting.bf16 else "fp32",
        rows=rows,
        by_operations=flops[LABELS] / flops[LIVE],
        loss_difference=abs(stored - live) / abs(live),
        goals=_goals(rows, times),
    )


def _batches(
    setting: Setting, frames: FrameSet, labels: Sequence[LabelSet], teachers: Sequence[Teacher]
) -> dict[str, Callable[[], Batch]]:
    """Return by kind of step how its batch is made, of pictures that are decoded and on the device beforehand."""
    pairs, tokenizer = [(video, 0) for video in range(setting.data.batch_size)], setting.tokenizer()
    pictures = PairDataset(frames, [], tokenizer, pixels=True).__getitems__(pairs).to(comm.device()).frames
    without, stored = (PairDataset(frames, read, tokenizer, pixels=False) for read in ([], labels))

    def filled(dataset: PairDataset) -> Batch:
        return replace(dataset.__getitems__(pairs).to(comm.device()), frames=pictures)

    def live() -> Batch:
        return labelled(filled(without), teachers, bf16=setting.bf16)

    return {PLAIN: partial(filled, without), LABELS: partial(filled, stored), LIVE: live}


def _step(engine: Engine, make: Callable[[], Batch]) -> None:
    """Make a batch and take a step on it."""
    engine.step(make(), 0, 1 << 20)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _flops(engine: Engine, make: Callable[[], Batch]) -> int:
    """Return the operations of a step, as torch counts them while they run."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see the fused layer for inference
    with FlopCounterMode(display=False) as counter:
        _step(engine, make)
    torch.backends.mha.set_fastpath_enabled(before)
    return counter.get_total_flops()


def _goals(rows: Sequence[StepCost], times: dict[str, list[float]]) -> list[Goal]:
    plain, labels, live = rows
    rate = labels.flops / labels.milliseconds / 1e9  # TFLOP/s
    extra = (live.flops - plain.flops) / max(live.milliseconds - plain.milliseconds, 1e-9) / 1e9
    reading = f"operations give {labels.flops / plain.flops:.3f}; the rest is reading labels and small products"
    forward = (
        f"operations give {labels.flops / live.flops:.3f}, but the teachers, forward only, run at "
        f"{extra:.2f} TFLOP/s and the student's whole step, optimizer included, at {rate:.2f}"
    )
    of_live = ratio(times[LABELS], times[LIVE])
    return [
        Goal("step with labels over step without a teacher", labels.of_plain, OF_PLAIN, why=reading),
        Goal("step with labels over step with live teachers", of_live, OF_LIVE, why=forward),
    ]
