"""The batches of training: those of the plan, of which every process loads its share, and the stem outputs in them.

A batch's fingerprint follows from the plan alone, so it needs no word from other processes. Stem outputs are those of
the frozen lower vision layers of a tower with `freeze_vision`: what does not train gives the same tokens every time, so
they are computed once per run instead of once per epoch.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from distill import comm
from distill.data.frames import FrameSet
from distill.data.loader import Batch, DataConfig, PairDataset, VideoDataset, load_batches
from distill.data.plan import Plan
from distill.data.prefetch import Rows
from distill.errors import ExpectedError, RecipeError
from distill.log import progress
from distill.model.contract import RetrievalModel

STEM_BATCH = 16  # videos; fixed, so that a resumed run computes the same bits
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


def stem_table(model: RetrievalModel, frames: FrameSet, *, bf16: bool, workers: int, limit_gb: float) -> Tensor | None:
    """Return the stem tokens [video, frame, patch + 1, width] of a whole frame set on the CPU, fp32. A collective.

    None where the limit is 0 or no layer is frozen. Raises `RecipeError` where the tokens do not fit into the limit.
    """
    tower = model.clip.visual
    if not limit_gb or tower.stem_layers is None:
        return None
    gigabytes = len(frames) * frames.num_frames * tower.positional_embedding.numel() * 4 / 1e9
    if gigabytes > limit_gb:
        raise RecipeError(
            f"train.stem_cache_gb: {limit_gb} GB, but {frames.path} needs {gigabytes:.1f} GB of stem outputs; raise it "
            f"or set it to 0 (the stem then runs every time)"
        )
    rows = comm.share(len(frames))
    batches = [rows[start : start + STEM_BATCH] for start in range(0, len(rows), STEM_BATCH)]
    parts = []
    with torch.no_grad(), torch.autocast(comm.device().type, torch.bfloat16, enabled=bf16):
        loaded = load_batches(VideoDataset(frames), batches, workers)
        for pixels, real in progress(loaded, f"stem of {frames.path}", len(batches)):
            tokens = model.clip.frames_to_stem(pixels.to(comm.device()), real.to(comm.device()))
            parts.append(tokens.float())
    return comm.gather_rows(torch.cat(parts), len(frames)).cpu()
