"""The bench of ranks: a training step on several processes, each core with the same work, beside a forecast.

Every process has one thread. With more processes than cores each gets that much fewer pairs, so that a core's work
stays. The parts of a step and the speed of the link are measured alone, and put together by distill/bench/scaling.py;
the second table is that forecast for a GPU box, with the counts of a step of the papers' size.
"""

import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distill import comm
from distill.bench import scaling
from distill.bench.drawn import WORDS
from distill.bench.rounds import timed
from distill.bench.scaling import Machine, StepTime, StepWork
from distill.bench.steps import Setting, build, build_teachers, labelled
from distill.data.batch import Batch
from distill.evaluation.report import aligned
from distill.model.contract import Teacher, teacher_logits
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.preprocessing import image_size
from distill.model.towers import read_architecture
from distill.training import engine
from distill.training.cost import counted
from distill.training.objective import Objective, total_loss
from distill.training.teachers import Teachers, TeacherScores

PAPER_RANKS, PAPER_PAIRS = (1, 8, 64, 512), 128
COUNTED_PAIRS = 2  # of the step whose operations are counted
LINK_BYTES = 1 << 23  # that each process gives, to measure the link
TIMEOUT = 10.0  # minutes


@dataclass(frozen=True)
class Measured:
    """A step on so many processes."""

    ranks: int
    pairs: int  # of each process
    seconds: float  # the median over rounds, of the slowest process
    forecast: float  # seconds that its parts add up to
    link: float  # bytes a second that a process receives; 0 for a process alone


@dataclass(frozen=True)
class RanksReport:
    """Measured steps beside their forecasts, and the forecast for a GPU box."""

    rows: list[Measured]
    work: StepWork  # of the step that was measured
    paper: list[StepTime]
    assumed: Machine

    def table(self) -> str:
        """Return the report as text."""
        first = self.rows[0]
        lines = [["ranks", "pairs each", "ms a step", "efficiency", "forecast", "its efficiency", "link"]]
        for row in self.rows:
            link = f"{row.link / 1e9:.2f} GB/s" if row.link else ""
            both = (first.seconds, row.seconds), (first.forecast, row.forecast)
            cells = [cell for one, own in both for cell in (f"{1e3 * own:,.0f}", f"{100 * one / own:.0f} %")]
            lines.append([str(row.ranks), str(row.pairs), *cells, link])
        assumed = self.assumed
        about = (
            f"on paper, {self.paper[0].pairs} pairs on each process, ms; {assumed.name}: towers "
            f"{assumed.towers / 1e12:.0f} TFLOP/s, the student's matrix {assumed.student / 1e12:.0f}, the teacher's "
            f"{assumed.teacher / 1e12:.0f}, link {assumed.link / 1e9:.0f} GB/s, a collective "
            f"{1e6 * assumed.latency:.0f} us"
        )
        return "\n\n".join([aligned(lines), about, scaling.table(self.paper)])


def measure_ranks(setting: Setting, paper: Setting, ranks: Sequence[int], *, pairs: int, rounds: int) -> RanksReport:
    """Take steps on so many processes each, time their parts, and forecast a step of the paper's size.

    `pairs` are those of a core.
    """
    cores, most, rows = len(os.sched_getaffinity(0)), max(ranks), []
    alone = _run(setting, 1, pairs, rounds, most * pairs)
    work = StepWork(**alone["work"])
    machine = _machine(alone, work, pairs, most)
    for number in ranks:
        crowd = max(1, -(-number // cores))  # processes of a core
        own = max(1, pairs // crowd)
        found = alone if number == 1 else _run(setting, number, own, rounds)
        speeds = {part: getattr(machine, part) / crowd for part in ("towers", "student", "teacher")}
        whole = scaling.forecast(work, replace(machine, **speeds, link=found["link"] or machine.link), number, own)
        rows.append(Measured(number, own, found["seconds"], whole.total, found["link"]))
    of_paper = _work(_Step(paper, COUNTED_PAIRS))
    on_paper = [scaling.forecast(of_paper, scaling.ASSUMED, number, PAPER_PAIRS) for number in PAPER_RANKS]
    return RanksReport(rows, work, on_paper, scaling.ASSUMED)


class _Step:
    """One process's model, teachers and batch of drawn pictures and words, with random weights."""

    def __init__(self, setting: Setting, pairs: int):
        self.setting, self.pairs = setting, pairs
        self.model = build(setting.student, 0).train()
        self.teachers: list[Teacher] = build_teachers(setting.teachers)
        size, data = image_size(read_architecture(setting.student.clip)), setting.data
        shape = (pairs, data.num_frames, 3, size, size)
        drawn = Batch(
            videos=comm.rank() * pairs + torch.arange(pairs),
            ids=torch.from_numpy(setting.tokenizer()([_words(comm.rank() * pairs + n) for n in range(pairs)])),
            frames=torch.randint(256, shape, dtype=torch.uint8),
            real=torch.ones(shape[:2], dtype=torch.bool),
            labels=[],
        )
        self.batch = labelled(drawn.to(comm.device()), self.teachers, bf16=setting.bf16)
        self.heads = [(teacher.interaction, 1.0) for teacher in self.teachers]
        self.objective = Objective(self.model, self.heads, setting.losses, bf16=setting.bf16)

    def whole(self) -> None:
        """Compute the losses of the batch and their gradient."""
        self.objective(self.batch)["total"].backward()

    def encoded(self, pairs: int) -> tuple[TextFeatures, VideoFeatures]:
        """Return features of so many pairs, a multiple of the batch's, that want a gradient."""
        with torch.no_grad():
            text, video = self.model.encode_text(self.batch.ids), self.model.encode_video(*self._seen())
        times = pairs // self.pairs

        def many(features: Any) -> Any:
            tables = {name: value.repeat(times, *[1] * (value.ndim - 1)) for name, value in features.tensors().items()}
            wanted = {n: v.float().requires_grad_() if v.is_floating_point() else v for n, v in tables.items()}
            return type(features)(**wanted)

        return many(text), many(video)

    def student(self, pairs: int) -> Callable[[], None]:
        """Return a call that scores so many pairs with each other, and takes the losses and their gradient."""
        text, video = self.encoded(pairs)
        says = torch.randn(pairs, pairs)
        relevance = torch.randn(pairs, self.setting.data.num_frames)
        teachers = [TeacherScores(logits=says, relevance=relevance) for _ in self.heads]

        def call() -> None:
            scores = self.model.training_scores(text, video, None)
            total_loss(scores, teachers, self.setting.losses)["total"].backward()

        return call

    def teacher(self, videos: int) -> Callable[[], None]:
        """Return a call that scores the batch's texts with so many videos, a multiple of its own, by the teachers."""
        times = videos // self.pairs
        many = [{n: v.repeat(times, *[1] * (v.ndim - 1)) for n, v in rows.items()} for rows in self.batch.labels]

        @torch.no_grad()
        def call() -> None:
            for (head, _), own, known in zip(self.heads, self.batch.labels, many, strict=True):
                teacher_logits(head, own, known)

        return call

    def _seen(self) -> tuple[Tensor, Tensor]:
        assert self.batch.frames is not None, "drawn pixels"
        return self.batch.frames, self.batch.real


def _machine(alone: dict[str, Any], work: StepWork, pairs: int, ranks: int) -> Machine:
    """Return the speed of the parts of a step on one core, which were timed at the batch of so many ranks."""
    small = alone["student"] / ranks**2 + alone["teacher"] / ranks  # of the batch of one process
    return Machine(
        name="this machine",
        towers=work.towers * pairs / max(alone["seconds"] - small, 1e-9),
        student=work.student * (ranks * pairs) ** 2 / alone["student"],
        teacher=work.teacher * pairs * ranks * pairs / alone["teacher"],
        link=math.inf,  # nothing travels
        latency=0.0,
    )


def _work(step: _Step) -> StepWork:
    """Count a step's work: what grows with texts times videos, by batches of one and of two sizes, and the rest."""
    one, two = step.pairs, 2 * step.pairs
    calls = step.whole, step.student(one), step.student(two), step.teacher(one), step.teacher(two)
    whole, student_one, student_two, teacher_one, teacher_two = (counted(call)[1] for call in calls)
    student = (student_two - 2 * student_one) / (two**2 - 2 * one**2)
    teacher = (teacher_two - teacher_one) / (one * two - one**2)
    text, video = step.encoded(one)
    shared = Teachers(step.heads, step.setting.losses).shared(step.batch)
    numbers = [sum(v.numel() // one for v in side.tensors().values()) for side in (text, video)]
    return StepWork(
        towers=(whole - (student + teacher) * one**2) / one,
        student=student,
        teacher=teacher,
        features=sum(numbers),
        labels=sum(v.numel() // one for rows in shared.values() for v in rows.values()),
        parameters=sum(p.numel() for p in step.model.parameters() if p.requires_grad),
    )


def _words(number: int) -> str:
    """Return eleven words, other ones for every number."""
    words = WORDS.split()
    return " ".join(words[(number // len(words) ** place + place * number) % len(words)] for place in range(11))


def _run(setting: Setting, ranks: int, pairs: int, rounds: int, batch: int = 0) -> dict[str, Any]:
    """Run so many processes, and return what the first found: seconds, link, and with `batch` the parts of a step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.multiprocessing.start_processes(
            _rank, (ranks, setting, pairs, rounds, batch, folder), nprocs=ranks, start_method="spawn"
        )
        return json.loads((folder / "found.json").read_text())


def _rank(rank: int, ranks: int, setting: Setting, pairs: int, rounds: int, batch: int, folder: Path) -> None:
    """One process: takes steps, and tells what it took."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": 0}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}})
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=ranks)
    engine.start(TIMEOUT)
    step = _Step(setting, pairs)
    trained = engine.Engine(step.objective, step.model, setting.optim, 0, ranks * pairs)

    def take() -> None:
        comm.barrier()
        trained.step(step.batch, 0, 1 << 20)
        comm.barrier()

    found: dict[str, Any] = {"seconds": _median(take, rounds), "link": _link(rounds) if ranks > 1 else 0.0}
    if batch:
        found |= {part: _median(getattr(step, part)(batch), rounds) for part in ("student", "teacher")}
        found["work"] = vars(_work(step))
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    comm.close()


def _link(rounds: int) -> float:
    """Return the bytes a second that this process receives while all gather. A collective."""
    rows = torch.zeros(LINK_BYTES // 4, 1)
    return LINK_BYTES * (comm.world_size() - 1) / _median(lambda: comm.gather({"rows": rows}), rounds)


def _median(call: Callable[[], Any], rounds: int) -> float:
    """Return the median of the seconds of some calls, after one that warms up."""
    call()
    return statistics.median(timed(call) for _ in range(rounds))
