"""The bench of a whole training step on one device: loading, copying, computing and reporting as a run does them.

Every kind of step is a training of its own, with random weights, over drawn videos. The share of the peak (MFU) counts
the operations of the model once, whatever is computed again to save memory.
"""

import gc
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from distill import comm
from distill.bench.device import idle
from distill.bench.steps import Setting, build, objective
from distill.data.batch import Batch
from distill.data.datasets import PairDataset, TrainingDataset, UnpairedSource
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.errors import RecipeError
from distill.log import progress
from distill.model.blocks import checkpoint_blocks, compile_blocks, require_compiler
from distill.model.contract import RetrievalModel
from distill.training.ahead import Ahead
from distill.training.batches import Cycles, load_shares, plan_batches
from distill.training.cost import counted
from distill.training.engine import Engine
from distill.training.stems import check_stems, stem_table, with_stems

WARM = 5  # steps before any is timed
PROFILED = 5  # steps after the timed ones
PLAIN, LABELS = "no labels", "labels"
KINDS: Mapping[str, Sequence[str]] = {  # kind of step: what is turned on beside labels
    PLAIN: (),
    LABELS: (),
    "labels, stem cache": ("stems",),
    "labels, compile": ("compile",),
    "labels, activation checkpointing": ("checkpoint",),
}
GIGABYTES = 1e9  # a limit for stems that none reaches: the drawn videos are few


@dataclass(frozen=True)
class TrainingStep:
    """One kind of step of one tower."""

    tower: str
    step: str
    milliseconds: float  # the median
    samples: float  # pairs a second
    flops: int  # of the model, forward and backward, counted in one step
    mfu: float  # flops / (time x peak)
    waited: float  # part of the time in which the device had nothing to do but wait for its batch
    idle: float | None  # part in which it ran no kernel, whatever it waited for; None without a GPU
    gigabytes: float | None  # most memory of the device; None without a GPU


def measure_training(
    tower: str,
    setting: Setting,
    frames: FrameSet,
    labels: Sequence[LabelSet],
    *,
    kinds: Sequence[str],
    steps: int,
    peak: float,
) -> tuple[list[TrainingStep], list[str]]:
    """Train a little by every kind of step, one after the other; also return why kinds were left out."""
    rows: dict[str, TrainingStep] = {}
    left_out = []
    for kind in kinds:
        try:
            training = _Training(setting, frames, [] if kind == PLAIN else labels, KINDS[kind])
        except RecipeError as reason:
            left_out.append(f"{tower}, {kind}: {reason}")
            continue
        known = rows[LABELS].flops if {"compile", "checkpoint"} & {*KINDS[kind]} else None
        rows[kind] = training.measured(tower, kind, steps, peak, known)
        del training
        gc.collect()  # an engine is part of circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return list(rows.values()), left_out


class _Training:
    """A training of random weights, as distill/training/loop.py goes through it."""

    def __init__(self, setting: Setting, frames: FrameSet, labels: Sequence[LabelSet], options: Sequence[str]):
        if "compile" in options:
            require_compiler(comm.device())
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.setting, self.frames, self.labels = setting, frames, labels
        model = build(setting.student, 0)
        self.stems = self._stems(model) if "stems" in options else None
        self.engine = self._engine(model.train(), options)

    def _stems(self, model: RetrievalModel) -> torch.Tensor:
        if not check_stems(model, [self.frames], GIGABYTES):
            raise RecipeError("model.clip.freeze_vision: null, but stems are those of frozen layers; set it to 0")
        return stem_table(model, self.frames, bf16=self.setting.bf16, workers=self.setting.data.workers)

    def _engine(self, model: RetrievalModel, options: Sequence[str]) -> Engine:
        losses = objective(model, self.labels, self.setting)
        if "compile" in options:
            compile_blocks(model)
        if "checkpoint" in options:
            checkpoint_blocks(model)
        return Engine(losses, model, self.setting.optim, 0, self.setting.data.batch_size)

    def _place(self, batch: Batch) -> Batch:
        return (batch if self.stems is None else with_stems(batch, self.stems, None)).to(comm.device())

    def measured(self, tower: str, kind: str, steps: int, peak: float, known: int | None) -> TrainingStep:
        """Take the steps; `known` are the operations of one, if they were counted where nothing hides them."""
        data, pairs = self.setting.data, sum(len(video.captions) for video in self.frames.videos)
        dataset = PairDataset(self.frames, self.labels, self.setting.tokenizer(), pixels=self.stems is None)
        epochs = math.ceil((1 + WARM + steps + PROFILED) / (pairs // data.batch_size)) + 1
        plan = plan_batches(self.frames, data, epochs, seed=0)
        whole = TrainingDataset(dataset, UnpairedSource(None, None))
        loaded = load_shares(whole, plan, Cycles(None, None), data, 0)
        taken = self._taken(Ahead(loaded, self._place), plan.total_steps)
        flops = counted(partial(next, taken))[1] if known is None else known
        times = [*islice(progress(taken, f"{tower}, {kind} (steps)", WARM + steps), WARM + steps)][WARM:]
        seconds = statistics.median(second for second, _ in times)
        asleep = idle(lambda: [*islice(taken, PROFILED)])
        on_gpu = torch.cuda.is_available()
        return TrainingStep(
            tower=tower,
            step=kind,
            milliseconds=1e3 * seconds,
            samples=data.batch_size / seconds,
            flops=flops,
            mfu=flops / (seconds * peak),
            waited=sum(waited for _, waited in times) / sum(second for second, _ in times),
            idle=asleep,
            gigabytes=torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        )

    def _taken(self, ahead: Ahead, total: int) -> Iterator[tuple[float, float]]:
        """Yield the seconds of every step, and those of them in which the device waited for its batch."""
        before = time.perf_counter()
        for step, (batch, _) in enumerate(ahead):
            self.engine.step(batch, step, total, meanwhile=ahead.fetch)
            now = time.perf_counter()
            yield now - before, ahead.waited()
            before = now
