"""Batches for the towers: token ids, uint8 frames padded to `num_frames`, label rows; decoding in worker processes."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.config import Config
from distill.data.frames import FrameSet
from distill.data.labels import LabelSet
from distill.data.tokens import Tokenizer
from distill.errors import RecipeError


class DataConfig(Config):
    """Where the frames are and how they are batched. `batch_size` is the global one, over all processes.

    `same_video`: the lineage's code shuffles captions and lets those of one video meet in a batch as each other's
    negatives ("negatives"); "mask" lets them meet and leaves those pairs out of the contrastive loss; "apart" never
    puts two captions of one video into a batch.
    """

    train: str  # frame sets (folders)
    val: str
    test: str | None = None
    max_words: int = 32
    num_frames: int = 12
    batch_size: int = 128
    same_video: Literal["apart", "mask", "negatives"] = "apart"
    workers: int = 0  # decoding processes per training process

    def check(self, frames: FrameSet, path: str) -> None:
        """Refuses frames that were sampled for another setting."""
        if frames.num_frames != self.num_frames:
            raise RecipeError(
                f"data.num_frames: {self.num_frames}, but {path} was packed with {frames.num_frames} frames a video; "
                f"pack again or set data.num_frames={frames.num_frames}"
            )


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch: pair i is (caption i, video i)."""

    videos: list[int]
    ids: Tensor  # int64 [pair, word]
    frames: Tensor | None  # uint8 [pair, frame, 3, height, width]; None when the stem's outputs are cached
    real: Tensor  # bool [pair, frame]
    labels: list[dict[str, Tensor]]  # one table of rows per label set

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device, copied while the host goes on if the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Page-locked copies, for the loader."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            ids=change(self.ids),
            frames=None if self.frames is None else change(self.frames),
            real=change(self.real),
            labels=[{name: change(value) for name, value in rows.items()} for rows in self.labels],
        )


def pad(
    pixels: UInt8[np.ndarray, "frame 3 height width"], num_frames: int
) -> tuple[UInt8[np.ndarray, "padded 3 height width"], Bool[np.ndarray, " padded"]]:
    """Zeros after the last real frame, and the mask that says which are real."""
    padded = np.zeros((num_frames, *pixels.shape[1:]), np.uint8)
    padded[: len(pixels)] = pixels
    return padded, np.arange(num_frames) < len(pixels)


class PairDataset(Dataset):
    """Whole batches of (video, caption) pairs at once, so that captions are tokenised and labels stacked together."""

    def __init__(
        self, frames: FrameSet, labels: Sequence[LabelSet], tokenizer: Tokenizer, num_frames: int, *, pixels: bool
    ):
        self.frames, self.labels, self.tokenizer, self.num_frames = frames, labels, tokenizer, num_frames
        self.pixels = pixels

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of these pairs."""
        videos = [video for video, _ in pairs]
        texts = [self.frames.videos[video].captions[caption].text for video, caption in pairs]
        count = torch.tensor([len(self.frames.videos[video].timestamps) for video in videos])
        return Batch(
            videos=videos,
            ids=torch.from_numpy(self.tokenizer(texts)),
            frames=self._stack(videos) if self.pixels else None,
            real=torch.arange(self.num_frames) < count[:, None],
            labels=[labels.batch(pairs) for labels in self.labels],
        )

    def _stack(self, videos: list[int]) -> Tensor:
        return torch.from_numpy(np.stack([pad(self.frames.pixels(video), self.num_frames)[0] for video in videos]))


class VideoDataset(Dataset):
    """Batches of whole videos without captions: (frames, real)."""

    def __init__(self, frames: FrameSet, num_frames: int):
        self.frames, self.num_frames = frames, num_frames

    def __getitems__(self, videos: list[int]) -> tuple[Tensor, Tensor]:
        """uint8 [video, frame, 3, height, width] and bool [video, frame]."""
        padded = [pad(self.frames.pixels(video), self.num_frames) for video in videos]
        return torch.from_numpy(np.stack([p for p, _ in padded])), torch.from_numpy(np.stack([r for _, r in padded]))


def load_batches(dataset: Dataset, batches: Iterable[list], workers: int) -> Iterator:
    """Runs `dataset.__getitems__` over the batches, in `workers` processes ahead of the consumer, in order."""
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # the recipe decides
        yield from loader


def _as_is(batch):
    return batch
