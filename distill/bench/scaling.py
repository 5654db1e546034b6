"""A training step on paper: what every process computes and moves, by the number of processes.

A step of B = ranks x pairs is the sum of its parts, none of which is assumed to hide another:

    towers      forward and backward of the process's own pairs, whatever the number of processes
    student     its matrix of all texts and videos and the losses on it, which every process computes in full: B^2
    teacher     the logits of the process's own texts and all videos: pairs x B, forward alone
    gather      features of the student, of labels those of videos, rows of the teacher's logits: from all other
                processes; and the gradient of the student's features back to their owners
    gradients   of the trained weights, reduced over processes: each sends and receives them twice

The counts are taken from one real step; how fast a machine is, is assumed or measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from distill.evaluation.report import aligned

FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """The work of one training step: floating-point operations, and numbers of 4 bytes that travel."""

    towers: float  # operations a pair, forward and backward
    student: float  # operations of a text with a video, forward and backward
    teacher: float  # operations of a text with a video, forward
    features: int  # numbers a pair that travel with a gradient
    labels: int  # numbers a pair that travel without one
    parameters: int  # trained


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How fast one process computes and is heard by the others."""

    name: str
    towers: float  # operations a second of large matrix products, as the towers reach them
    student: float  # operations a second of the student's matrix in fp32, its losses included
    teacher: float  # operations a second of the teacher's scores in fp32
    link: float  # bytes a second that a process receives, while all receive
    latency: float  # seconds of a collective without content


@dataclass(frozen=True)
class StepTime:
    """The seconds of one step's parts on one process."""

    ranks: int
    pairs: int  # of each process
    towers: float
    student: float
    teacher: float
    gather: float
    gradients: float
    moved: float  # bytes that a process receives
    matrix: float  # bytes of one matrix of all texts and videos

    @property
    def total(self) -> float:
        """The seconds of the step."""
        return self.towers + self.student + self.teacher + self.gather + self.gradients


# Assumptions, not measurements: a GPU of 2024 in bf16 at 45 % of its matrix peak of 990 TFLOP/s; fp32 products without
# tensor cores at 60 % of 67, of which the student's losses, which wait for memory, leave half; 200 Gbit/s a GPU.
ASSUMED = Machine(name="assumed GPU", towers=4.5e14, student=2e13, teacher=4e13, link=2.5e10, latency=3e-5)
COLLECTIVES = 5  # features with labels, their gradient, rows of logits, gradients of weights, the hosts' number


def forecast(work: StepWork, machine: Machine, ranks: int, pairs: int) -> StepTime:
    """Return the parts of a step of `pairs` pairs on each of `ranks` processes."""
    batch, others = ranks * pairs, (ranks - 1) * pairs
    gathered = FLOAT * others * (2 * work.features + work.labels + batch)
    reduced = 2 * FLOAT * work.parameters * (ranks - 1) / ranks
    waits = COLLECTIVES * machine.latency if ranks > 1 else 0.0
    return StepTime(
        ranks=ranks,
        pairs=pairs,
        towers=work.towers * pairs / machine.towers,
        student=work.student * batch**2 / machine.student,
        teacher=work.teacher * pairs * batch / machine.teacher,
        gather=gathered / machine.link + waits,
        gradients=reduced / machine.link,
        moved=gathered + reduced,
        matrix=float(FLOAT * batch**2),
    )


def table(steps: Sequence[StepTime]) -> str:
    """Return forecasts as text, in milliseconds; the efficiency is the time of the first row over that of each.

    `teacher in full` are those of a process that scored all texts, not its own alone.
    """
    head = ["ranks", "pairs", "towers", "student", "teacher", "gather", "gradients", "ms a step", "efficiency"]
    lines = [[*head, "MB moved", "MB a matrix", "teacher in full"]]
    for step in steps:
        parts = step.towers, step.student, step.teacher, step.gather, step.gradients, step.total
        cells = [str(step.ranks), f"{step.ranks * step.pairs:,}", *(f"{1e3 * part:,.1f}" for part in parts)]
        cells += [f"{100 * steps[0].total / step.total:.0f} %", f"{step.moved / 1e6:,.0f}", f"{step.matrix / 1e6:,.0f}"]
        cells.append(f"{1e3 * step.teacher * step.ranks:,.1f}")
        lines.append(cells)
    return aligned(lines)
