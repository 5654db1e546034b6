"""The loop: steps of the plan from wherever the last checkpoint stood, validation per epoch, the best weights kept.

Everything that a step depends on is a function of (recipe, step) and the weights, so a run that was killed and started
again writes the same losses, to the bit on the same number of processes.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save
from torch import Tensor

from distill import comm
from distill.config import Config
from distill.data.frames import FrameSet
from distill.data.labels import LabelSet
from distill.data.loader import Batch, DataConfig, PairDataset, load_batches
from distill.data.plan import Plan
from distill.data.tokens import Tokenizer
from distill.evaluation.evaluate import evaluate
from distill.manifest import published
from distill.model.contract import Interaction, RetrievalModel
from distill.training import checkpoint
from distill.training.checkpoint import Progress
from distill.training.engine import Engine
from distill.training.monitor import Monitor
from distill.training.objective import LossConfig, Objective
from distill.training.optim import OptimConfig
from distill.training.stems import stem_table

log = logging.getLogger(__name__)
BEST = "best.safetensors"


class TrainConfig(Config):
    """How long, how precisely and how safely to train."""

    epochs: int = Field(ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: the towers run under autocast; weights and losses stay fp32
    zero: Literal[0, 1, 2, 3] = 0  # DeepSpeed ZeRO stage
    stem_cache_gb: float = 0.0  # memory for the frozen vision layers' outputs; 0 computes them every time
    validate_every: int = Field(default=1, ge=1)  # epochs between validations; the last epoch's end always has one
    checkpoint_every: int = Field(default=0, ge=0)  # steps between checkpoints, besides the one at each epoch's end
    log_every: int = Field(default=20, ge=1)  # steps between console lines


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model and everything it is trained on."""

    folder: Path
    seed: int
    model: RetrievalModel
    interactions: list[Interaction]
    tokenizer: Tokenizer
    train: FrameSet
    val: FrameSet
    labels: list[LabelSet]
    label_weights: list[float]
    data: DataConfig
    losses: LossConfig
    optim: OptimConfig
    config: TrainConfig

    @property
    def bf16(self) -> bool:
        return self.config.precision == "bf16"


def train(job: Job) -> dict[str, Tensor]:
    """Trains to the end of the plan and returns the weights that were best on validation (T2V R@1), on the CPU."""
    torch.manual_seed(job.seed)
    job.model.to(comm.device())
    for interaction in job.interactions:
        interaction.to(comm.device())
    counts = [len(video.captions) for video in job.train.videos]
    apart = job.data.same_video == "apart"
    plan = Plan(counts, job.data.batch_size, job.config.epochs, job.seed, same_video_apart=apart)
    stems = _Stems(job)
    weights, masked = job.label_weights, job.data.same_video == "mask"
    objective = Objective(job.model, job.interactions, weights, job.losses, bf16=job.bf16, mask_same_video=masked)
    engine = Engine(objective, job.model, job.optim, job.config.zero, job.data.batch_size)
    progress = _resume(job, engine)
    monitor = Monitor(job.folder, plan.total_steps, progress.metrics_bytes) if comm.rank() == 0 else None
    job.model.train()
    before = clock = time.perf_counter()
    batches = _batches(job, plan, progress.step, pixels=stems.train is None)
    for step, batch in zip(range(progress.step, plan.total_steps), batches, strict=False):
        waited = time.perf_counter() - clock
        # Noise and dropout are functions of the step, and alike on every rank: they fall where all see the whole batch.
        torch.manual_seed(hash((job.seed, step)) % (1 << 63))
        values = engine.step(stems.fill(batch.to(comm.device())), step, plan.total_steps)
        clock = time.perf_counter()
        seconds, before = clock - before, clock
        if monitor:
            timing = {"seconds": round(seconds, 4), "data_wait": round(waited, 4)}
            monitor.row(step + 1, {"epoch": plan.epoch_of(step), **values, **timing})
            if (step + 1) % job.config.log_every == 0 or step == progress.step:
                monitor.show(step + 1, values, job.data.batch_size, seconds)
        last = step + 1 == plan.total_steps
        ended = last or plan.epoch_of(step + 1) != plan.epoch_of(step)
        if last or (ended and (plan.epoch_of(step) + 1) % job.config.validate_every == 0):
            progress = _validate(job, engine, stems, monitor, progress, step + 1)
        if ended or (job.config.checkpoint_every and (step + 1) % job.config.checkpoint_every == 0):
            progress = _save(job, engine, monitor, progress, step + 1)
        before = clock = time.perf_counter() if ended else clock
    if monitor:
        monitor.close()
    comm.barrier()
    return load_file(job.folder / BEST)


class _Stems:
    """Stem outputs of the training and validation videos, or nothing where the recipe wants none."""

    def __init__(self, job: Job):
        self.train = self.val = None
        if job.config.stem_cache_gb and job.model.clip.visual.stem_layers is not None:
            options: dict[str, Any] = {"bf16": job.bf16, "workers": job.data.workers, "quiet": comm.rank() != 0}
            limit = job.config.stem_cache_gb
            self.train = stem_table(job.model, job.train, job.data.num_frames, limit_gb=limit, **options)
            self.val = stem_table(job.model, job.val, job.data.num_frames, limit_gb=limit, **options)

    def fill(self, batch: Batch) -> Batch:
        """The batch with stem outputs in place of pixels."""
        if self.train is None:
            return batch
        return replace(batch, frames=self.train[batch.videos].to(batch.ids.device))


def _batches(job: Job, plan: Plan, first: int, *, pixels: bool) -> Iterator[Batch]:
    """This process's share of every batch from step `first` on, with pixels unless the stems are cached."""
    each = job.data.batch_size // comm.world_size()
    rows = slice(comm.rank() * each, (comm.rank() + 1) * each)
    shares = [[(int(v), int(c)) for v, c in plan.batch(step)[rows]] for step in range(first, plan.total_steps)]
    dataset = PairDataset(job.train, job.labels, job.tokenizer, job.data.num_frames, pixels=pixels)
    return load_batches(dataset, shares, job.data.workers)


def _resume(job: Job, engine: Engine) -> Progress:
    found = checkpoint.latest(job.folder / "checkpoints")
    if found is None:
        return Progress(step=0, metrics_bytes=0)
    weights, state, progress = found
    engine.load(weights, state, progress.step)
    log.info(f"resumed at step {progress.step} from {job.folder / 'checkpoints'}")
    return progress


def _validate(
    job: Job, engine: Engine, stems: _Stems, monitor: Monitor | None, progress: Progress, step: int
) -> Progress:
    scores = evaluate(
        job.model,
        job.val,
        job.tokenizer,
        job.data.num_frames,
        bf16=job.bf16,
        stems=stems.val,
        workers=job.data.workers,
    )
    t2v = scores.metrics["t2v"]
    log.info(f"validation after step {step}: " + "  ".join(f"{name} {value:.1f}" for name, value in t2v.items()))
    if monitor:
        monitor.row(step, {"val": scores.metrics})
    if t2v["R@1"] <= progress.best_score:
        return progress
    weights = engine.weights()
    if comm.rank() == 0:
        with published(job.folder / BEST) as file:
            file.write(save(weights))
    return replace(progress, best_step=step, best_score=t2v["R@1"])


def _save(job: Job, engine: Engine, monitor: Monitor | None, progress: Progress, step: int) -> Progress:
    weights, state = engine.weights(), engine.optimizer_state()
    progress = replace(progress, step=step)
    if monitor:
        progress = replace(progress, metrics_bytes=monitor.bytes())
        checkpoint.save(job.folder / "checkpoints", weights, state, progress)
    comm.barrier()
    return progress
