"""The loop: steps of the plan from wherever the last checkpoint stood, validation per epoch, the best weights kept.

Everything that a step depends on is a function of (recipe, step) and the weights, so a run that was killed and started
again writes the same losses, to the bit on the same number of processes.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from distill import comm, signals
from distill.data.batch import Batch
from distill.data.datasets import PairDataset, TrainingDataset
from distill.errors import ExpectedError
from distill.evaluation.evaluate import encode, rank
from distill.model.blocks import checkpoint_blocks, compile_blocks
from distill.publishing import publish
from distill.training import checkpoint
from distill.training.ahead import Ahead
from distill.training.batches import load_shares, plan_batches, plan_unpaired
from distill.training.checkpoint import Progress
from distill.training.cost import Cost, Meter, counted
from distill.training.engine import Engine
from distill.training.job import Job
from distill.training.monitor import Monitor
from distill.training.objective import Objective
from distill.training.stems import check_stems, stem_table, with_stems
from distill.training.trackers import open_trackers

log = logging.getLogger(__name__)
BEST = "best.safetensors"
CHECKPOINT = 1  # no signal that is heard has this number


@dataclass(frozen=True)
class Trained:
    """The weights that were best on validation (T2V R@1), on the CPU, their metrics there, and the cost of it all."""

    weights: dict[str, Tensor]
    validation: dict[str, dict[str, float]] | None  # None: of a run that an earlier version began
    cost: Cost


def train(job: Job) -> Trained:
    """Trains to the end of the plan."""
    run = _Run(job)
    run.to_the_end()
    signals.heed()
    if run.monitor:
        run.monitor.close()
    cost = run.cost()
    comm.barrier()
    return Trained(load_file(job.folder / BEST), run.progress.best, cost)


def seed_of(seed: int, step: int) -> int:
    """Return the seed of a step's noise and dropout: 64 bits of NumPy's SeedSequence, whose algorithm never changes."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])


class _Run:
    """A training that goes on from its last checkpoint."""

    def __init__(self, job: Job):
        self.meter = Meter()
        torch.manual_seed(job.seed)
        job.model.to(comm.device())
        for source in job.sources:
            source.head.to(comm.device())
        self.job, self.plan = job, plan_batches(job.train, job.data, job.config.epochs, job.seed)
        self.cycles = plan_unpaired(job.unpaired, job.data, job.seed)
        sets = (job.train, job.val, job.unpaired.videos)
        stored = check_stems(job.model, [frames for frames in sets if frames is not None], job.config.stem_cache_gb)
        self.stems, self.val_stems, self.unpaired_stems = (
            stem_table(job.model, frames, bf16=job.bf16, workers=job.data.workers)
            if stored and frames is not None
            else None
            for frames in sets
        )
        self.engine = _engine(job)
        self.progress = _resume(job, self.engine)
        self.meter.seconds_before = self.progress.seconds
        self.meter.joules_before = self.progress.joules if self.progress.step else 0.0
        self.monitor: Monitor | None = None
        if comm.rank() == 0:
            trackers = open_trackers(job.config.track, job.folder)
            self.monitor = Monitor(job.folder, self.plan.total_steps, self.progress.metrics_bytes, trackers)

    def to_the_end(self) -> None:
        """Take all steps that are left, with checkpoints and validations between them."""
        job, plan, first = self.job, self.plan, self.progress.step
        job.model.train()
        if first:
            self._validate()
        signals.hold()
        before = self.saved = time.perf_counter()
        labels = [source.labels for source in job.sources]
        pairs = PairDataset(job.train, labels, job.tokenizer, pixels=self.stems is None)
        loaded = load_shares(TrainingDataset(pairs, job.unpaired), plan, self.cycles, job.data, first)
        ahead = Ahead(loaded, self._on_device)
        for step, (batch, fingerprint) in enumerate(ahead, first):
            # Noise and dropout are alike on every rank: they fall where all see the whole batch.
            torch.manual_seed(seed_of(job.seed, step))
            take = partial(self.engine.step, batch, step, plan.total_steps, meanwhile=ahead.fetch)
            values = self._counted(take)
            clock = time.perf_counter()
            seconds, before = clock - before, clock
            self._report(step, fingerprint, values, seconds, ahead.waited())
            done, wanted = step + 1, self._wanted()
            ended = done == plan.total_steps or plan.epoch_of(done) != plan.epoch_of(step)
            if ended or wanted or (job.config.checkpoint_every and done % job.config.checkpoint_every == 0):
                self._save(done)
            if wanted > CHECKPOINT:
                where = f" after step {done}; the same command continues there"
                raise signals.Stopped(wanted, where if self.monitor else "")
            if ended:
                self._validate()
                before = time.perf_counter()

    def _counted(self, take: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Take a step. The first one of a run is counted; all have the same shapes. What is compiled is not seen."""
        self.meter.tick()
        if self.progress.flops is not None or self.job.config.compile:
            return take()
        values, flops = counted(take)
        self.progress = self.progress.model_copy(update={"flops": flops})
        return values

    def cost(self) -> Cost:
        """Return the cost of the whole run. A collective."""
        steps, each = self.plan.total_steps, self.progress.flops
        return Cost(
            steps=steps,
            samples=steps * self.job.data.batch_size,
            flops=None if each is None else steps * each,
            seconds=self.meter.seconds,
            joules=self.meter.joules(),
        )

    def _on_device(self, batch: Batch) -> Batch:
        """Return the batch on this process's device, with stem outputs in place of pixels where they are cached."""
        if self.stems is not None:
            batch = with_stems(batch, self.stems, self.unpaired_stems)
        return batch.to(comm.device())

    def _report(self, step: int, fingerprint: str, values: dict[str, float], seconds: float, waited: float) -> None:
        if self.monitor is None:
            return
        timing = {"seconds": round(seconds, 4), "data_wait": round(waited, 4)}
        self.monitor.row(step + 1, {"epoch": self.plan.epoch_of(step), "batch": fingerprint, **values, **timing})
        if (step + 1) % self.job.config.log_every == 0 or step == self.progress.step:
            self.monitor.show(step + 1, values, self.job.data.batch_size, seconds)

    def _wanted(self) -> int:
        """Return what is wanted now: nothing (0), a CHECKPOINT, or an end (the number of a signal). A collective."""
        minutes = self.job.config.checkpoint_minutes
        due = minutes and time.perf_counter() - self.saved >= 60 * minutes
        return comm.largest(signals.waiting() or (CHECKPOINT if due else 0))

    def _validate(self) -> None:
        """Score the weights where an epoch has ended that is to be validated, and keep the best.

        What resumes validates again: the last checkpoint is older than this. So an interruption, which takes effect at
        once here, costs a validation and no step.
        """
        job, step = self.job, self.progress.step
        epoch = self.plan.epoch_of(step)
        ended = epoch != self.plan.epoch_of(step - 1) and epoch % job.config.validate_every == 0
        if not ended and step != self.plan.total_steps:
            return
        signals.heed()
        seen = encode(job.model, job.val, job.tokenizer, bf16=job.bf16, stems=self.val_stems, workers=job.data.workers)
        metrics = rank(job.model.similarity, seen).metrics
        t2v = metrics["t2v"]
        log.info(f"validation after step {step}: " + "  ".join(f"{name} {value:.1f}" for name, value in t2v.items()))
        if self.monitor:
            self.monitor.row(step, {"val": metrics})
        signals.hold()
        if t2v["R@1"] <= self.progress.best_score:
            return
        weights = self.engine.weights()
        if comm.rank() == 0:
            publish(job.folder / BEST, save(weights))
        self.progress = self.progress.model_copy(update={"best_score": t2v["R@1"], "best": metrics})

    def _save(self, step: int) -> None:
        weights, state = self.engine.weights(), self.engine.optimizer_state()
        spent = {"seconds": self.meter.seconds, "joules": self.meter.joules()}
        self.progress = self.progress.model_copy(update={"step": step, "processes": comm.world_size(), **spent})
        if self.monitor:
            self.progress = self.progress.model_copy(update={"metrics_bytes": self.monitor.bytes()})
            checkpoint.save(self.job.folder / "checkpoints", weights, state, self.progress)
        comm.barrier()
        self.saved = time.perf_counter()


def _engine(job: Job) -> Engine:
    objective = Objective(
        job.model,
        [(source.head, source.weight) for source in job.sources],
        job.losses,
        bf16=job.bf16,
        mask_same_video=job.data.same_video == "mask",
        accumulate=job.config.accumulate,
        temperatures=[source.temperatures for source in job.sources],
    )
    if job.config.compile:
        compile_blocks(job.model)
    if job.config.activation_checkpointing:
        checkpoint_blocks(job.model)
    return Engine(objective, job.model, job.optim, job.config.zero, job.data.batch_size, objective.why)


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
