"""The batches of training: those of the plan, of which every process loads its share.

A batch's fingerprint follows from the plan alone, so it needs no word from other processes.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from distill import comm
from distill.data.batch import Batch
from distill.data.cycle import Cycle
from distill.data.dataconfig import DataConfig
from distill.data.datasets import TrainingDataset, UnpairedSource
from distill.data.draw import Draw
from distill.data.frames import FrameSet
from distill.data.loader import load_batches
from distill.data.plan import Plan
from distill.errors import ExpectedError, RecipeError

log = logging.getLogger(__name__)
VIDEOS, TEXTS = 4, 5  # uses of random numbers, beside those of the plan


@dataclass(frozen=True)
class Cycles:
    """The order of videos and of captions that come round beside the pairs."""

    videos: Cycle | None
    texts: Cycle | None


def plan_batches(frames: FrameSet, config: DataConfig, epochs: int, seed: int) -> Plan:
    """Return the batches of all epochs; warn of captions that never find one."""
    window = config.shuffle_shards
    plan = Plan(
        frames.videos.caption_counts(),
        config.batch_size,
        epochs,
        seed,
        same_video_apart=config.same_video == "apart",
        shards=[len(rows) for rows in frames.shards().values()] if window else (),
        window=window,
    )
    most = max(plan.left_out)
    if most >= config.batch_size:
        log.warning(
            f"{frames.path}: up to {most} captions are left out of an epoch, because their videos have more captions "
            f"than there are batches to keep them apart in; lower data.batch_size, raise data.shuffle_shards, or "
            f"choose another data.same_video"
        )
    return plan


def plan_unpaired(source: UnpairedSource, config: DataConfig, seed: int) -> Cycles:
    """Return the order of what stands beside the pairs; `RecipeError` where there is less than a batch of it."""

    def cycle(key: str, number: int | None, size: int, use: int) -> Cycle | None:
        if number is None:
            return None
        if size > number:
            raise RecipeError(
                f"data.{key}_size: {size}, but data.{key} holds {number}; lower it to at most {number}, or add some"
            )
        return Cycle(number, size, seed, use)

    texts = None if source.texts is None else len(source.texts.captions)
    videos = None if source.videos is None else len(source.videos)
    return Cycles(
        cycle("unlabelled", videos, config.unlabelled_size, VIDEOS), cycle("texts", texts, config.texts_size, TEXTS)
    )


def fingerprint(*rows: Int64[np.ndarray, "..."]) -> str:
    """Return 12 hex digits that tell what a global batch holds, and in which order: captions of which videos, and what
    stands beside these pairs."""
    return hashlib.sha256(b"".join(each.astype("<i8").tobytes() for each in rows)).hexdigest()[:12]


def load_shares(
    dataset: TrainingDataset, plan: Plan, cycles: Cycles, config: DataConfig, first: int
) -> Iterator[tuple[Batch, str]]:
    """Yield this process's share of every batch from step `first` on, and the fingerprint of the whole batch.

    Raises `ExpectedError` where the loader ends before the plan.
    """
    fingerprints: deque[str] = deque()  # of batches on their way through the loader

    def shares() -> Iterator[Draw]:
        for step in range(first, plan.total_steps):
            pairs, nothing = plan.batch(step), np.empty(0, np.int64)
            videos, texts = (nothing if each is None else each.batch(step) for each in (cycles.videos, cycles.texts))
            fingerprints.append(fingerprint(pairs, videos, texts))
            shown = [(video, caption) for video, caption in _own(pairs).tolist()]
            yield Draw(shown, _own(videos).tolist(), _own(texts).tolist())

    loaded = load_batches(dataset, dataset.ahead(shares(), config), config.workers, config.memory_gb)
    for step in range(first, plan.total_steps):
        batch = next(loaded, None)
        if batch is None:
            raise ExpectedError(
                f"{dataset.pairs.frames.path}: no batch came for step {step + 1} of {plan.total_steps}; run the same "
                f"command again, it continues at the last checkpoint"
            )
        yield batch, fingerprints.popleft()


def _own(rows: np.ndarray) -> np.ndarray:
    """Return this process's share of the rows of a batch."""
    each = len(rows) // comm.world_size()
    return rows[comm.rank() * each : (comm.rank() + 1) * each]
