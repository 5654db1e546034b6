"""Vectors that were computed elsewhere, as a teacher of the frame set or the text file that they belong to.

All that is needed is read once, and checked, before anything is written: every caption has a sentence vector; every
video a `vector`, or `frames` from whose mean it is made, or both; all have one width, are finite and not zero; and
frames are those of the frame set, by their number and, where they are given, by their times.
"""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.texts import Texts
from distill.data.vectorfiles import VectorFiles
from distill.data.videos import PackedVideo
from distill.errors import ArtefactError, first_few
from distill.labelling.labeller import CosineLabeller, framed, in_time
from distill.log import progress
from distill.model.features import TextFeatures, VideoFeatures
from distill.model.similarity import SHORTEST, unit

SAME_TIME = 1e-3  # seconds by which times of the same frame may differ
log = logging.getLogger(__name__)


class GivenVectors(CosineLabeller):
    """Vectors from files, checked to be those of `given`; features are of length 1."""

    looks = False

    def __init__(self, files: VectorFiles, given: FrameSet | Texts):
        self.files, self.id = files, files.id
        videos, ids = (given.videos, list(given.videos.ids)) if isinstance(given, FrameSet) else ([], [])
        texts = list(dict.fromkeys(given.captions if isinstance(given, Texts) else given.videos.texts))
        self.frame_vectors = any(id in files.keys("frames") for id in ids)
        self._pooled = self.frame_vectors and not any(id in files.keys("vector") for id in ids)
        self._require("sentence", texts, given)
        if self.frame_vectors:
            self._require("frames", ids, given)
        if not self._pooled:
            self._require("vector", ids, given)
        self._width: int | None = None
        self._check(texts, videos)
        self._count_others(texts, ids, given)

    @property
    def device(self) -> torch.device:
        """Where cosines are computed: there is nothing that a GPU would do faster."""
        return torch.device("cpu")

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Return the sentence vectors of captions."""
        return TextFeatures(sentence=torch.stack([self._row("sentence", text) for text in texts]))

    def encode_videos(
        self,
        videos: Sequence[PackedVideo],
        pixels: UInt8[Tensor, "video frame 3 height width"],
        real: Bool[Tensor, "video frame"],
    ) -> VideoFeatures:
        """Return the vectors of videos; their frames, where there are any, in the order of time."""
        if not self.frame_vectors:
            return VideoFeatures(vector=torch.stack([self._row("vector", video.id) for video in videos]))
        frames = torch.zeros(*real.shape, self._width or 0)
        for row, video in enumerate(videos):
            frames[row, : len(video.timestamps)] = self._row("frames", video.id)[in_time(video.timestamps)]
        found = framed(frames, real)
        if self._pooled:
            return found
        vector = torch.stack([self._row("vector", video.id) for video in videos])
        return VideoFeatures(vector=vector, frames=found.frames, real=real)

    def warn_of_cuts(self, texts: Sequence[str], where: str) -> None:
        """Say nothing: how much of a caption was read, its vector does not tell."""

    def _row(self, field: str, key: str) -> Tensor:
        """Return vectors of length 1: made in double precision, in which no length overflows."""
        return unit(self.files.read(field, key)).float()

    def _require(self, field: str, keys: Sequence[str], given: FrameSet | Texts) -> None:
        known = self.files.keys(field)
        missing = [key for key in keys if key not in known]
        if missing:
            what = "captions" if field == "sentence" else "videos"
            raise ArtefactError(
                f"{self.files.folder}: no {field} of {len(missing):,} of {len(keys):,} {what} of {given.path}: "
                f"{first_few([repr(key)[:100] for key in missing])}; add them to its files"
            )

    def _count_others(self, texts: Sequence[str], ids: Sequence[str], given: FrameSet | Texts) -> None:
        """Log one line if the files hold vectors that are not needed."""
        videos = {*self.files.keys("vector"), *self.files.keys("frames")}
        left = len({*self.files.keys("sentence")} - {*texts}), len(videos - {*ids})
        if any(left):
            what = f"{left[0]:,} captions and {left[1]:,} videos"
            log.info(f"{self.files.folder}: vectors of {what} that are not in {given.path} are not used")

    def _check(self, texts: Sequence[str], videos: Sequence[PackedVideo]) -> None:
        """Read everything once; raise `ArtefactError` for the first that is no vector of these captions and videos."""
        for text in progress(texts, f"check {self.files.folder} (captions)"):
            self._check_rows("sentence", text, self.files.read("sentence", text), 1)
        for video in progress(videos, f"check {self.files.folder} (videos)"):
            if not self._pooled:
                self._check_rows("vector", video.id, self.files.read("vector", video.id), 1)
            if self.frame_vectors:
                frames = self.files.read("frames", video.id)
                self._check_rows("frames", video.id, frames, 2)
                self._check_times(video, len(frames))

    def _check_rows(self, field: str, key: str, rows: Tensor, axes: int) -> None:
        wrong = partial(self.files.wrong, field, key)
        if rows.dim() != axes or not rows.numel():
            raise wrong(f"is {list(rows.shape)}, expected [{'frame, dim' if axes == 2 else 'dim'}]")
        self._width = self._width or rows.shape[-1]
        if rows.shape[-1] != self._width:
            raise wrong(f"has {rows.shape[-1]} dimensions, others have {self._width}")
        if not rows.isfinite().all():
            raise wrong("is not finite")
        if (rows.norm(dim=-1) <= SHORTEST).any():
            raise wrong("is zero, which points nowhere")

    def _check_times(self, video: PackedVideo, count: int) -> None:
        packed = torch.tensor(video.timestamps, dtype=torch.float64)
        if count != len(packed):
            raise self.files.wrong("frames", video.id, f"has {count} rows, but {len(packed)} frames are packed")
        if video.id in self.files.keys("timestamps"):
            times = self.files.read("timestamps", video.id)
            if times.shape != packed.shape or not ((times - packed).abs() <= SAME_TIME).all():
                shown = [[round(second, 3) for second in each.flatten()[:4].tolist()] for each in (times, packed)]
                raise self.files.wrong(
                    "timestamps", video.id, f"begins {shown[0]}, but the packed frames are at {shown[1]} (seconds)"
                )
