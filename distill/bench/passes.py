"""The bench of tower passes: how many frames and captions go through the teachers' towers, with labels and without.

A student on small towers is trained twice from the same weights over the same plan: from the labels that a label job
wrote, and with live teachers. Hooks on the teachers' towers count the frames and captions in all three jobs. Both
trainings must give the same losses.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill import comm
from distill.bench.steps import Setting, build, build_teachers, live_rows, objective, write_labels
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.loader import Batch, PairDataset, load_batches
from distill.data.plan import Plan
from distill.evaluation.report import aligned
from distill.log import progress
from distill.model.contract import RetrievalConfig, Teacher
from distill.model.towers import CONFIG_FILE, ClipConfig
from distill.training.engine import Engine

TOWERS = {  # small, but with the text layers and positions from which the papers' heads are initialised
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 4},
}


@dataclass(frozen=True, kw_only=True)
class TowerPasses:
    """The frames and captions that went through the towers of all teachers in one job."""

    job: str
    frames: int
    captions: int


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The counts of a label job, a training from its labels, and a training with live teachers."""

    teachers: list[str]
    videos: int
    captions: int  # of every video
    epochs: int
    steps: int
    rows: list[TowerPasses]
    saved_frames: int
    saved_captions: int
    loss_difference: float  # largest over all steps, relative

    def table(self) -> str:
        """Return the report as text."""
        lines = [["through the teachers' towers", "frames", "captions"]]
        lines += [[row.job, f"{row.frames:,}", f"{row.captions:,}"] for row in self.rows]
        lines.append(["saved", f"{self.saved_frames:,}", f"{self.saved_captions:,}"])
        job, _, live = self.rows
        about = f"{self.videos} videos with {self.captions} captions each, {' and '.join(self.teachers)}, small towers"
        sentence = (
            f"teacher forward passes over {self.epochs} epochs ({self.steps} steps): {live.frames / job.frames:.3g} "
            f"times fewer frames, {live.captions / job.captions:.3g} times fewer captions; the losses of both "
            f"trainings differ by {self.loss_difference:.1e} at most, relatively"
        )
        return "\n\n".join([about, aligned(lines), sentence])


class _Counter:
    """Counts the rows that enter the towers of some teachers."""

    def __init__(self, teachers: Sequence[Teacher]):
        self._counts = {"visual": 0, "text": 0}
        for teacher in teachers:
            teacher.clip.visual.register_forward_pre_hook(self._hook("visual"))
            teacher.clip.text.register_forward_pre_hook(self._hook("text"))

    def _hook(self, tower: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            self._counts[tower] += len(inputs[0])

        return count

    def row(self, job: str) -> TowerPasses:
        """Return the counts since the last row."""
        row = TowerPasses(job=job, frames=self._counts["visual"], captions=self._counts["text"])
        self._counts = {"visual": 0, "text": 0}
        return row


def small(setting: Setting, folder: Path, *, pairs: int) -> Setting:
    """Return the setting with small towers, written to `folder`, in fp32, with `pairs` pairs in a step."""
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": TOWERS}))
    clip = ClipConfig(model=str(folder), weights="random")

    def on_small(config: RetrievalConfig) -> RetrievalConfig:
        return config.model_copy(update={"clip": clip})

    return replace(
        setting,
        student=on_small(setting.student),
        teachers=[on_small(teacher) for teacher in setting.teachers],
        data=setting.data.model_copy(update={"batch_size": pairs}),
        bf16=False,
    )


def count(setting: Setting, frames: FrameSet, folder: Path, *, epochs: int, seed: int = 0) -> Counted:
    """Run the three jobs and count. Every video of `frames` must have the same number of captions."""
    teachers = build_teachers(setting.teachers)
    counter, kinds = _Counter(teachers), [config.kind for config in setting.teachers]
    labels = [
        write_labels(teacher, kind, setting, frames, folder / kind, batch=32, storage="float32")
        for teacher, kind in zip(teachers, kinds, strict=True)
    ]
    rows = [counter.row("label job")]
    captions = [len(video.captions) for video in frames.videos]
    plan = Plan(captions, setting.data.batch_size, epochs, seed)
    stored = _train(setting, frames, labels, labels, [], plan)
    rows.append(counter.row(f"{epochs} epochs from labels"))
    live = _train(setting, frames, [], labels, teachers, plan)
    rows.append(counter.row(f"{epochs} epochs with live teachers"))
    job, with_labels, with_teachers = rows
    return Counted(
        teachers=kinds,
        videos=len(frames),
        captions=captions[0],
        epochs=epochs,
        steps=plan.total_steps,
        rows=rows,
        saved_frames=with_teachers.frames - with_labels.frames - job.frames,
        saved_captions=with_teachers.captions - with_labels.captions - job.captions,
        loss_difference=max(abs(a - b) / abs(b) for a, b in zip(stored, live, strict=True)),
    )


def _train(
    setting: Setting,
    frames: FrameSet,
    read: Sequence[LabelSet],
    heads: Sequence[LabelSet],
    teachers: Sequence[Teacher],
    plan: Plan,
) -> list[float]:
    """Return the loss of every step of the plan, with the labels in `read`, or else those that `teachers` make."""
    student = build(setting.student, 0).train()
    engine = Engine(objective(student, heads, setting), student, setting.optim, 0, setting.data.batch_size)
    dataset = PairDataset(frames, read, setting.tokenizer(), pixels=True)
    pairs = [[(int(v), int(c)) for v, c in plan.batch(step)] for step in range(plan.total_steps)]
    losses = []
    for step, batch in enumerate(progress(load_batches(dataset, pairs, 0), "train (steps)", len(pairs))):
        batch: Batch = batch.to(comm.device())
        if teachers:
            batch = replace(batch, labels=[live_rows(teacher, batch, bf16=setting.bf16) for teacher in teachers])
        losses.append(engine.step(batch, step, plan.total_steps)["total"])
    return losses
