"""The frames of several videos in one tensor, padded to one number of frames."""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from distill.data.frames import FrameSet


def pad(
    pixels: UInt8[np.ndarray, "frame 3 height width"], num_frames: int
) -> tuple[UInt8[np.ndarray, "padded 3 height width"], Bool[np.ndarray, " padded"]]:
    """Zeros after the last real frame, and the mask that says which are real."""
    padded = np.zeros((num_frames, *pixels.shape[1:]), np.uint8)
    padded[: len(pixels)] = pixels
    return padded, np.arange(num_frames) < len(pixels)


def pictures(
    frames: FrameSet, videos: Sequence[int], part: str = "pairs"
) -> UInt8[Tensor, "video padded 3 height width"]:
    """Decoded frames, then zeros; `part` names what of a batch they are.

    In memory the colours of a pixel stand together, as they come from the decoder: to part them takes a tenth of the
    decoding, and is left to the device (`clip.normalise`).
    """
    decoded = _buffer((len(videos), frames.num_frames, frames.size, frames.size, 3), part)
    for row, video in enumerate(videos):
        frames.decode(video, decoded[row].numpy())
        decoded[row, frames.videos.frame_count(video) :] = 0
    return decoded.permute(0, 1, 4, 2, 3)


def _buffer(shape: tuple[int, ...], part: str) -> Tensor:
    """Return uninitialised memory for the pictures of one task: the next buffer in a worker, fresh memory elsewhere."""
    worker = get_worker_info()
    if worker is None:
        return torch.empty(shape, dtype=torch.uint8)
    buffers: deque[Tensor] = worker.dataset.buffers[part]  # pyrefly: ignore
    buffers.rotate(-1)
    if buffers[0].shape != shape:
        buffers[0] = torch.empty(shape, dtype=torch.uint8).share_memory_()
    return buffers[0]


def real(frames: FrameSet, videos: Sequence[int]) -> Bool[Tensor, "video padded"]:
    """Which frames of videos are not padding."""
    count = torch.tensor([frames.videos.frame_count(video) for video in videos])
    return torch.arange(frames.num_frames) < count[:, None]
