"""The loop: steps of the plan from wherever the last checkpoint stood, validation per epoch, the best weights kept.

Everything that a step depends on is a function of (recipe, step) and the weights, so a run that was killed and started
again writes the same losses, to the bit on the same number of processes.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save
from torch import Tensor

from distill import comm, signals
from distill.config import Config
from distill.data.frames import FrameSet
from distill.data.loader import Batch, DataConfig, PairDataset, load_batches
from distill.data.plan import Plan
from distill.data.tokens import Tokenizer
from distill.errors import ExpectedError
from distill.evaluation.evaluate import evaluate
from distill.model.blocks import checkpoint_blocks, compile_blocks
from distill.model.contract import RetrievalModel
from distill.publishing import published
from distill.training import checkpoint
from distill.training.checkpoint import Progress
from distill.training.engine import Engine
from distill.training.monitor import Monitor
from distill.training.objective import LossConfig, Objective
from distill.training.optim import OptimConfig
from distill.training.source import LabelSource
from distill.training.stems import stem_table

log = logging.getLogger(__name__)
BEST = "best.safetensors"
CHECKPOINT = 1  # no signal that is heard has this number


class TrainConfig(Config):
    """How long, how precisely and how safely to train."""

    epochs: int = Field(ge=1)  # passes over all captions
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: the towers run under autocast; weights and losses stay fp32
    zero: Literal[0, 1, 2, 3] = 0  # DeepSpeed ZeRO stage
    accumulate: int = Field(default=1, ge=1)  # micro-batches a step: less memory, the same loss, one more forward
    activation_checkpointing: bool = False  # blocks keep only their inputs: less memory, same bits, one more forward
    compile: bool = False  # torch.compile of the blocks; not with ZeRO 3
    stem_cache_gb: float = 0.0  # memory for the frozen vision layers' outputs; 0 computes them every time
    validate_every: int = Field(default=1, ge=1)  # epochs between validations; the last epoch's end always has one
    checkpoint_every: int = Field(default=0, ge=0)  # steps between checkpoints, besides the one at each epoch's end
    checkpoint_minutes: float = Field(default=15.0, ge=0)  # and minutes between them; 0: only as above
    timeout_minutes: float = Field(default=30.0, gt=0)  # how long a process waits for one that does not answer
    log_every: int = Field(default=20, ge=1)  # steps between console lines

    @model_validator(mode="after")
    def _compiles(self) -> "TrainConfig":
        if self.compile and self.zero == 3:
            raise ValueError(
                "compile: true, but zero: 3 takes a block's parameters apart between its calls, and what is compiled "
                "would find them empty; use zero: 2, or compile: false"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model and everything it is trained on."""

    folder: Path
    seed: int
    model: RetrievalModel
    tokenizer: Tokenizer
    train: FrameSet
    val: FrameSet
    sources: list[LabelSource]
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
    for source in job.sources:
        source.head.to(comm.device())
    counts = [len(video.captions) for video in job.train.videos]
    apart = job.data.same_video == "apart"
    plan = Plan(
        counts,
        job.data.batch_size,
        job.config.epochs,
        job.seed,
        same_video_apart=apart,
        shards=[number for number, rows in enumerate(job.train.shards().values()) for _ in rows],
        window=job.data.shuffle_shards,
    )
    stems = _Stems(job)
    objective = Objective(
        job.model,
        [(source.head, source.weight) for source in job.sources],
        job.losses,
        bf16=job.bf16,
        mask_same_video=job.data.same_video == "mask",
        accumulate=job.config.accumulate,
    )
    if job.config.compile:
        compile_blocks(job.model)
    if job.config.activation_checkpointing:
        checkpoint_blocks(job.model)
    engine = Engine(objective, job.model, job.optim, job.config.zero, job.data.batch_size)
    progress = _resume(job, engine)
    monitor = Monitor(job.folder, plan.total_steps, progress.metrics_bytes) if comm.rank() == 0 else None
    job.model.train()
    if progress.step and _validates(job, plan, progress.step):
        progress = _validate(job, engine, stems, monitor, progress)
    signals.hold()
    before = clock = saved = time.perf_counter()
    batches = _batches(job, plan, progress.step, pixels=stems.train is None)
    for step, batch in zip(range(progress.step, plan.total_steps), batches, strict=False):
        waited = time.perf_counter() - clock
        batch = batch.to(comm.device())
        pairs = _fingerprint(batch)
        # Noise and dropout are functions of the step, and alike on every rank: they fall where all see the whole batch.
        torch.manual_seed(hash((job.seed, step)) % (1 << 63))
        values = engine.step(stems.fill(batch), step, plan.total_steps)
        clock = time.perf_counter()
        seconds, before = clock - before, clock
        if monitor:
            timing = {"seconds": round(seconds, 4), "data_wait": round(waited, 4)}
            monitor.row(step + 1, {"epoch": plan.epoch_of(step), "batch": pairs, **values, **timing})
            if (step + 1) % job.config.log_every == 0 or step == progress.step:
                monitor.show(step + 1, values, job.data.batch_size, seconds)
        done, wanted = step + 1, _wanted(job, saved)
        ended = done == plan.total_steps or plan.epoch_of(done) != plan.epoch_of(step)
        if ended or wanted or (job.config.checkpoint_every and done % job.config.checkpoint_every == 0):
            progress, saved = _save(job, engine, monitor, progress, done), time.perf_counter()
        if wanted > CHECKPOINT:
            raise signals.Stopped(wanted, f"after step {done}; the same command continues there" if monitor else "")
        if ended and _validates(job, plan, done):
            progress = _validate(job, engine, stems, monitor, progress)
        before = clock = time.perf_counter() if ended else clock
    signals.heed()
    if monitor:
        monitor.close()
    comm.barrier()
    return load_file(job.folder / BEST)


def _wanted(job: Job, saved: float) -> int:
    """What is wanted after this step: nothing (0), a CHECKPOINT, or an end (the number of a signal). A collective."""
    due = job.config.checkpoint_minutes and time.perf_counter() - saved >= 60 * job.config.checkpoint_minutes
    return comm.largest(signals.waiting() or (CHECKPOINT if due else 0))


def _validates(job: Job, plan: Plan, done: int) -> bool:
    """Whether a validation follows the epoch that ends after `done` steps."""
    return done == plan.total_steps or (
        plan.epoch_of(done) != plan.epoch_of(done - 1) and plan.epoch_of(done) % job.config.validate_every == 0
    )


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
    shares = ([(int(v), int(c)) for v, c in plan.batch(step)[rows]] for step in range(first, plan.total_steps))
    dataset = PairDataset(
        job.train, [source.labels for source in job.sources], job.tokenizer, job.data.num_frames, pixels=pixels
    )
    return load_batches(dataset, dataset.ahead(shares, job.data), job.data.workers, job.data.memory_gb)


def _fingerprint(batch: Batch) -> str:
    """Which videos and captions the whole batch holds, and in which order, in 12 hex digits. A collective."""
    videos = torch.tensor(batch.videos, device=batch.ids.device)
    whole = comm.gather({"videos": videos.unsqueeze(1), "ids": batch.ids})
    table = torch.cat([whole["videos"], whole["ids"]], dim=1)
    return hashlib.sha256(table.cpu().numpy().tobytes()).hexdigest()[:12]


def _resume(job: Job, engine: Engine) -> Progress:
    if comm.rank() == 0:
        checkpoint.tidy(job.folder / "checkpoints")
    found = checkpoint.latest(job.folder / "checkpoints")
    step = 0 if found is None else found[2].step
    newest = comm.largest(step)
    if step < newest:
        raise ExpectedError(
            f"{job.folder / 'checkpoints'}: step {step} is the last one here, but another process sees step {newest}; "
            f"all hosts must share the folder of runs (out), and see it as it is now"
        )
    if found is None:
        return Progress(step=0, metrics_bytes=0)
    weights, state, progress = found
    engine.load(weights, state, progress.step, job.folder / "checkpoints")
    log.info(f"resumed at step {progress.step} from {job.folder / 'checkpoints'}")
    if job.bf16 and progress.processes != comm.world_size():
        log.warning(
            f"written by {progress.processes} process(es), continued by {comm.world_size()}: equal to bf16's rounding; "
            f"only with train.precision=fp32 do losses stay equal to 1e-5"
        )
    return progress


def _validate(job: Job, engine: Engine, stems: _Stems, monitor: Monitor | None, progress: Progress) -> Progress:
    """Scores the weights and keeps the best. The checkpoint is older than that, so what resumes from it does it again.

    So an interruption, which takes effect at once here, costs a validation and no step.
    """
    step = progress.step
    signals.heed()
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
    signals.hold()
    if t2v["R@1"] <= progress.best_score:
        return progress
    weights = engine.weights()
    if comm.rank() == 0:
        with published(job.folder / BEST) as file:
            file.write(save(weights))
    return progress.model_copy(update={"best_step": step, "best_score": t2v["R@1"]})


def _save(job: Job, engine: Engine, monitor: Monitor | None, progress: Progress, step: int) -> Progress:
    weights, state = engine.weights(), engine.optimizer_state()
    progress = progress.model_copy(update={"step": step, "processes": comm.world_size()})
    if monitor:
        progress = progress.model_copy(update={"metrics_bytes": monitor.bytes()})
        checkpoint.save(job.folder / "checkpoints", weights, state, progress)
    comm.barrier()
    return progress
