"""The bench of tower passes: how many frames and captions go through the teachers' towers, with labels and without.

A student on small towers is trained twice from the same weights over the same plan: from the labels that a label job
wrote, and with live teachers. Hooks on the teachers' towers count the frames and captions in all three jobs. Both
trainings must give the same losses.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill import comm
from distill.bench.steps import Setting, build, build_teachers, labelled, objective, write_labels
from distill.data.batch import Batch
from distill.data.datasets import PairDataset
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.loader import load_batches
from distill.data.plan import Plan
from distill.evaluation.report import aligned
from distill.log import progress
from distill.model.contract import Teacher
from distill.model.towers import CONFIG_FILE, ClipConfig
from distill.training.engine import Engine

TOWERS = {  # small, but with the text layers and positions from which the papers' heads are initialised
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 4},
}


@dataclass(frozen=True)
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


def _counting(teachers: Sequence[Teacher]) -> Counter[str]:
    """Return a counter of the frames and captions that enter the towers of some teachers after this call."""
    rows: Counter[str] = Counter()
    for teacher in teachers:
        for what, tower in (("frames", teacher.clip.visual), ("captions", teacher.clip.text)):
            tower.register_forward_pre_hook(lambda _, inputs, what=what: rows.update({what: len(inputs[0])}))
    return rows


def small(setting: Setting, folder: Path, *, pairs: int) -> Setting:
    """Return the setting with small towers, written to `folder`, in fp32, with `pairs` pairs in a step."""
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": TOWERS}))
    clip = {"clip": ClipConfig(model=str(folder), weights="random")}
    return replace(
        setting,
        student=setting.student.model_copy(update=clip),
        teachers=[teacher.model_copy(update=clip) for teacher in setting.teachers],
        data=setting.data.model_copy(update={"batch_size": pairs}),
        bf16=False,
    )


def count(setting: Setting, frames: FrameSet, folder: Path, *, epochs: int) -> Counted:
    """Run the three jobs and count. Every video of `frames` must have the same number of captions."""
    teachers = build_teachers(setting.teachers)
    passed = _counting(teachers)

    def counted(job: str) -> TowerPasses:
        row = TowerPasses(job, passed["frames"], passed["captions"])
        passed.clear()
        return row

    labels = write_labels(teachers, setting, frames, folder, batch=32, storage="float32")
    job = counted("label job")
    captions = [len(video.captions) for video in frames.videos]
    plan = Plan(captions, setting.data.batch_size, epochs, seed=0)
    losses = _train(setting, frames, labels, [], plan)
    stored = counted(f"{epochs} epochs from labels")
    live_losses = _train(setting, frames, labels, teachers, plan)
    live = counted(f"{epochs} epochs with live teachers")
    return Counted(
        teachers=setting.kinds,
        videos=len(frames),
        captions=captions[0],
        epochs=epochs,
        steps=plan.total_steps,
        rows=[job, stored, live],
        saved_frames=live.frames - stored.frames - job.frames,
        saved_captions=live.captions - stored.captions - job.captions,
        loss_difference=max(abs(a - b) / abs(b) for a, b in zip(losses, live_losses, strict=True)),
    )


def _train(
    setting: Setting, frames: FrameSet, labels: Sequence[LabelSet], teachers: Sequence[Teacher], plan: Plan
) -> list[float]:
    """Return the loss of every step of the plan, with the rows of `labels`, or else those that `teachers` make."""
    student = build(setting.student, 0).train()
    engine = Engine(objective(student, labels, setting), student, setting.optim, 0, setting.data.batch_size)
    dataset = PairDataset(frames, [] if teachers else labels, setting.tokenizer(), pixels=True)
    pairs = [[(int(v), int(c)) for v, c in plan.batch(step)] for step in range(plan.total_steps)]
    losses = []
    for step, batch in enumerate(progress(load_batches(dataset, pairs, 0), "train (steps)", len(pairs))):
        batch: Batch = batch.to(comm.device())
        if teachers:
            batch = labelled(batch, teachers, bf16=setting.bf16)
        losses.append(engine.step(batch, step, plan.total_steps)["total"])
    return losses
