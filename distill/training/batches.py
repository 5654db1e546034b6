"""The batches of training: those of the plan, of which every process loads its share.

A batch's fingerprint follows from the plan alone, so it needs no word from other processes.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from distill import comm
from distill.data.frames import FrameSet
from distill.data.loader import Batch, DataConfig, PairDataset, load_batches
from distill.data.plan import Plan
from distill.data.prefetch import Rows
from distill.errors import ExpectedError

log = logging.getLogger(__name__)


def plan_batches(frames: FrameSet, config: DataConfig, epochs: int, seed: int) -> Plan:
    """Return the batches of all epochs; warn of captions that never find one."""
    window = config.shuffle_shards
    plan = Plan(
        [len(video.captions) for video in frames.videos],
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


def fingerprint(pairs: Int64[np.ndarray, "pair 2"]) -> str:
    """Return 12 hex digits that tell which captions of which videos a global batch holds, and in which order."""
    return hashlib.sha256(pairs.astype("<i8").tobytes()).hexdigest()[:12]


def load_shares(dataset: PairDataset, plan: Plan, config: DataConfig, first: int) -> Iterator[tuple[Batch, str]]:
    """Yield this process's share of every batch from step `first` on, and the fingerprint of the whole batch.

    Raises `ExpectedError` where the loader ends before the plan.
    """
    each = config.batch_size // comm.world_size()
    own = slice(comm.rank() * each, (comm.rank() + 1) * each)
    fingerprints: deque[str] = deque()  # of batches on their way through the loader

    def shares() -> Iterator[Rows]:
        for step in range(first, plan.total_steps):
            pairs = plan.batch(step)
            fingerprints.append(fingerprint(pairs))
            yield [(video, caption) for video, caption in pairs[own].tolist()]

    loaded = load_batches(dataset, dataset.ahead(shares(), config), config.workers, config.memory_gb)
    for step in range(first, plan.total_steps):
        batch = next(loaded, None)
        if batch is None:
            raise ExpectedError(
                f"{dataset.frames.path}: no batch came for step {step + 1} of {plan.total_steps}; run the same command "
                f"again, it continues at the last checkpoint"
            )
        yield batch, fingerprints.popleft()
