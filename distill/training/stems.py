"""Outputs of the frozen lower vision layers, computed once per run instead of once per epoch.

Only for towers with `freeze_vision`: what does not train gives the same tokens every time, so training on the stored
tokens equals training on pixels.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int64
from torch import Tensor

from distill import comm
from distill.data.batch import Batch
from distill.data.datasets import VideoDataset
from distill.data.frames import FrameSet
from distill.data.loader import load_batches
from distill.errors import RecipeError
from distill.log import progress
from distill.model.clip import VisionTower
from distill.model.contract import RetrievalModel

BATCH = 16  # videos; fixed, so that a resumed run computes the same bits


def check_stems(model: RetrievalModel, sets: Sequence[FrameSet], limit_gb: float) -> bool:
    """Return whether stem outputs are stored: where the limit is not 0, and a layer is frozen.

    Raises `RecipeError` where the tokens of a set do not fit into the limit.
    """
    tower = model.clip.visual
    if not limit_gb or not isinstance(tower, VisionTower) or tower.stem_layers is None:
        return False
    for frames in sets:
        gigabytes = len(frames) * frames.num_frames * tower.positional_embedding.numel() * 4 / 1e9
        if gigabytes > limit_gb:
            raise RecipeError(
                f"train.stem_cache_gb: {limit_gb} GB, but {frames.path} needs {gigabytes:.1f} GB of stem outputs; "
                f"raise it or set it to 0 (the stem then runs every time)"
            )
    return True


def stem_table(model: RetrievalModel, frames: FrameSet, *, bf16: bool, workers: int) -> Tensor:
    """Return the stem tokens [video, frame, patch + 1, width] of a whole frame set on the CPU, fp32. A collective."""
    rows = comm.share(len(frames))
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    parts = []
    with torch.no_grad(), torch.autocast(comm.device().type, torch.bfloat16, enabled=bf16):
        loaded = load_batches(VideoDataset(frames), batches, workers)
        for pixels, real in progress(loaded, f"stem of {frames.path}", len(batches)):
            tokens = model.clip.frames_to_stem(pixels.to(comm.device()), real.to(comm.device()))
            parts.append(tokens.float())
    return comm.gather_rows(torch.cat(parts), len(frames)).cpu()


def with_stems(batch: Batch, table: Tensor, unpaired: Tensor | None) -> Batch:
    """Return a batch with the stem tokens of its videos in place of pixels, still on the CPU.

    `unpaired` are those of the videos without captions, if there are any.
    """
    beside = batch.unpaired
    if beside is not None:
        beside = replace(beside, frames=_rows(table if unpaired is None else unpaired, beside.videos))
    return replace(batch, frames=_rows(table, batch.videos), unpaired=beside)


def _rows(table: Tensor, videos: Int64[Tensor, " video"]) -> Tensor:
    """Return rows in memory from which a GPU copies while the host goes on."""
    shape = (len(videos), *table.shape[1:])
    found = torch.empty(shape, dtype=table.dtype, pin_memory=torch.cuda.is_available())
    return torch.index_select(table, 0, videos, out=found)
