"""The recipe's section `data`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from distill.cache import Cache
from distill.config import Config
from distill.data.frames import FrameSet
from distill.errors import RecipeError


class DataConfig(Config):
    """Where the frames are and how they are batched. `batch_size` is the global one, over all processes.

    `same_video`: the lineage's code shuffles captions and lets those of one video meet in a batch as each other's
    negatives ("negatives"); "mask" lets them meet and leaves those pairs out of the contrastive loss; "apart" never
    puts two captions of one video into a batch.
    """

    train: str  # frame sets: folders, or URLs (file, http, https, s3, gs)
    val: str  # frame set that chooses the best weights
    test: str | None = None  # frame set that is evaluated once, at the end
    max_words: int = Field(default=32, ge=3, le=1 << 16)  # tokens of a caption, start and end included
    num_frames: int = Field(default=12, ge=1, le=1 << 16)  # frames of a video, as packed
    batch_size: int = Field(default=128, ge=1, le=1 << 24)  # pairs of a step over all processes
    same_video: Literal["apart", "mask", "negatives"] = "apart"  # two captions of a video in a batch
    unlabelled: str | None = None  # frame set whose videos need no captions: teachers rank them beside a batch's videos
    unlabelled_size: int = Field(default=128, ge=1, le=1 << 24)  # of them in a step over all processes
    texts: str | None = None  # captions without videos: a text file, one a line, or a frame set, apart from its videos
    texts_size: int = Field(default=128, ge=1, le=1 << 24)  # of them in a step over all processes
    shuffle_shards: int = Field(default=0, ge=0)  # together; 0: all, best on local disks; a few stream remote ones well
    workers: int = Field(default=0, ge=0, le=1024)  # decoding processes per training process
    memory_gb: float = Field(default=4.0, gt=0)  # for the batches that they have ready, per training process
    cache: str | None = None  # folder for what comes from URLs; default: in the user's cache folder
    cache_gb: float = Field(default=50.0, gt=0)  # most that it may hold

    def open_cache(self) -> Cache:
        """Where remote shards are kept."""
        return Cache(Path(self.cache), self.cache_gb) if self.cache else Cache(gigabytes=self.cache_gb)

    def check(self, frames: FrameSet, path: str) -> None:
        """Refuses frames that were sampled for another setting."""
        if frames.num_frames != self.num_frames:
            raise RecipeError(
                f"data.num_frames: {self.num_frames}, but {path} was packed with {frames.num_frames} frames a video; "
                f"pack again or set data.num_frames={frames.num_frames}"
            )
