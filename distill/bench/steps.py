"""The bench of training steps: a student's step without a teacher, with stored labels, and with live teachers.

One student, one optimizer and one objective take all three steps, in turns, on the same pairs. Weights are random,
because time does not depend on them. Frames are decoded and on the device before timing starts (the bench of the loader
measures decoding), but labels are read from their shards within the step, without a worker that would hide the time.
Live teachers make the rows that label shards hold, and the objective treats both alike, so both steps compute the same
loss; the report has the difference.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distill import catalogue, comm
from distill.bench.rounds import Goal, ratio, take_turns
from distill.data.frames import FrameSet
from distill.data.labels import Storage
from distill.data.labelset import LabelSet
from distill.data.loader import Batch, DataConfig, PairDataset
from distill.data.tokens import Tokenizer, read_vocabulary
from distill.evaluation.report import aligned
from distill.labelling.job import LabelJob, LabelJobConfig
from distill.labelling.teacher import TeacherRelease
from distill.model.clip import ClipModel
from distill.model.contract import Interaction, RetrievalConfig, RetrievalModel, Teacher
from distill.training.engine import Engine
from distill.training.objective import LossConfig, Objective
from distill.training.optim import OptimConfig
from distill.training.source import label_source

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

    def tokenizer(self) -> Tokenizer:
        """Return the student's tokenizer."""
        return Tokenizer(self.data.max_words, read_vocabulary(self.student.clip.folder))


@dataclass(frozen=True, kw_only=True)
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
    return catalogue.build(config, ClipModel.from_config(config.clip)).to(comm.device())


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
    teacher: Teacher, kind: str, setting: Setting, frames: FrameSet, out: Path, *, batch: int, storage: Storage
) -> LabelSet:
    """Label a frame set as tools/dump_soft_labels.py does; return the opened labels."""
    release = TeacherRelease(model=teacher, tokenizer=setting.tokenizer(), kind=kind, id=f"random {kind}")
    precision = "bf16" if setting.bf16 else "fp32"
    config = LabelJobConfig(tiers=["relevance", "features"], storage=storage, batch=batch, precision=precision)
    job = LabelJob(release, frames, out, config)
    assert job.begin() is None, "a new folder"
    job.label()
    return LabelSet(out, frames)


def objective(model: RetrievalModel, labels: Sequence[LabelSet], setting: Setting) -> Objective:
    """Return the objective that a training run builds from label sets."""
    sources = [label_source(one) for one in labels]
    heads = [(source.head.to(comm.device()), source.weight) for source in sources]
    return Objective(model, heads, setting.losses, bf16=setting.bf16)


@torch.no_grad()
def live_rows(teacher: Teacher, batch: Batch, *, bf16: bool) -> dict[str, Tensor]:
    """Return the rows that a label set would hold for these pairs, computed by the teacher from the batch."""
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
    teachers = build_teachers(setting.teachers)
    kinds = [config.kind for config in setting.teachers]
    pairs_in_step = setting.data.batch_size
    labels = [
        write_labels(teacher, kind, setting, frames, folder / kind, batch=min(pairs_in_step, 32), storage="float16")
        for teacher, kind in zip(teachers, kinds, strict=True)
    ]
    student = build(setting.student, 0).train()
    losses = objective(student, labels, setting)
    engine = Engine(losses, student, setting.optim, 0, pairs_in_step)
    steps = _Steps(setting, frames, labels, teachers, engine)
    batches = {kind: getattr(steps, name) for kind, name in ((PLAIN, "plain"), (LABELS, "stored"), (LIVE, "live"))}
    with torch.no_grad():
        stored, live = (float(losses(batches[kind]())["total"]) for kind in (LABELS, LIVE))
    times = take_turns(
        {kind: partial(steps.seconds, make) for kind, make in batches.items()}, rounds, "steps in turns (rounds)"
    )
    flops = {kind: steps.flops(make) for kind, make in batches.items()}
    rows = [
        StepCost(
            step=kind,
            flops=flops[kind],
            milliseconds=1e3 * statistics.median(times[kind]),
            of_plain=ratio(times[kind], times[PLAIN]),
        )
        for kind in batches
    ]
    return StepsReport(
        pairs=pairs_in_step,
        num_frames=setting.data.num_frames,
        max_words=setting.data.max_words,
        precision="bf16" if setting.bf16 else "fp32",
        rows=rows,
        by_operations=flops[LABELS] / flops[LIVE],
        loss_difference=abs(stored - live) / abs(live),
        goals=_goals(rows, times),
    )


class _Steps:
    """The three ways to fill a batch, and the step that is taken on it."""

    def __init__(
        self,
        setting: Setting,
        frames: FrameSet,
        labels: Sequence[LabelSet],
        teachers: Sequence[Teacher],
        engine: Engine,
    ):
        size = setting.data.batch_size
        self._pairs = [(video, 0) for video in range(size)]
        tokenizer = setting.tokenizer()
        self._without = PairDataset(frames, [], tokenizer, pixels=False)
        self._with = PairDataset(frames, labels, tokenizer, pixels=False)
        pictures = PairDataset(frames, [], tokenizer, pixels=True).__getitems__(self._pairs)
        self._frames = pictures.to(comm.device()).frames
        self._teachers, self._engine, self._bf16 = teachers, engine, setting.bf16

    def plain(self) -> Batch:
        """Return a batch without labels, for the contrastive loss alone."""
        return self._filled(self._without)

    def stored(self) -> Batch:
        """Return a batch with labels read from their shards."""
        return self._filled(self._with)

    def live(self) -> Batch:
        """Return a batch with labels that the teachers make now."""
        batch = self._filled(self._without)
        return replace(batch, labels=[live_rows(teacher, batch, bf16=self._bf16) for teacher in self._teachers])

    def seconds(self, make: Callable[[], Batch]) -> float:
        """Return the seconds for making a batch and taking a step on it."""
        _synchronise()
        start = time.perf_counter()
        self._step(make())
        _synchronise()
        return time.perf_counter() - start

    def flops(self, make: Callable[[], Batch]) -> int:
        """Return the operations of the same, as torch counts them while they run."""
        with _counted_attention(), FlopCounterMode(display=False) as counter:
            self._step(make())
        return counter.get_total_flops()

    def _filled(self, dataset: PairDataset) -> Batch:
        return replace(dataset.__getitems__(self._pairs).to(comm.device()), frames=self._frames)

    def _step(self, batch: Batch) -> None:
        self._engine.step(batch, 0, 1 << 20)


@contextmanager
def _counted_attention() -> Iterator[None]:
    """Switch off torch's fused attention layer for inference, which the counter does not see."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _goals(rows: Sequence[StepCost], times: dict[str, list[float]]) -> list[Goal]:
    plain, labels, live = rows
    rate = {row.step: row.flops / row.milliseconds / 1e9 for row in rows}  # TFLOP/s
    extra = (live.flops - plain.flops) / max(live.milliseconds - plain.milliseconds, 1e-9) / 1e9
    return [
        Goal(
            what="step with labels over step without a teacher",
            found=labels.of_plain,
            limit=OF_PLAIN,
            why=f"operations give {labels.flops / plain.flops:.3f}; the rest is reading labels and small products",
        ),
        Goal(
            what="step with labels over step with live teachers",
            found=ratio(times[LABELS], times[LIVE]),
            limit=OF_LIVE,
            why=f"operations give {labels.flops / live.flops:.3f}, but the teachers, forward only, run at "
            f"{extra:.2f} TFLOP/s and the student's whole step, optimizer included, at {rate[LABELS]:.2f}",
        ),
    ]
