"""A label set as the labels of a frame set: by the numbers of its videos and captions.

Labels that were made on the very frames have their sample keys. Those of other frames of the same videos are found by
the ids of videos and captions, and their relevance is interpolated in time. distill/data/labels.py has the format.
"""

import logging
from array import array
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.labels import LABELS, Coarse, StoredLabels, text_sha256
from distill.data.ondemand import Chosen
from distill.data.prefetch import ShardSource
from distill.data.register import Strings
from distill.errors import ArtefactError
from distill.remote import Place

Mismatch = Literal["error", "interpolate"]
log = logging.getLogger(__name__)


class LabelSet(StoredLabels):
    """A sealed label set as the labels of `frames`; one that was made on other frames is refused.

    With `on_mismatch="interpolate"` it is taken if it knows every video and caption of `frames`: relevance is then
    interpolated in time, and the largest gap is logged. `coarse` is the tier that `batch` reads beside the relevance.
    """

    def __init__(
        self,
        path: str | Place,
        frames: FrameSet,
        *,
        verify: bool = True,
        coarse: Coarse | None = "features",
        on_mismatch: Mismatch = "error",
    ):
        super().__init__(path, verify=verify, cache=frames.cache)
        self._frames, self._coarse = frames, coarse
        expected, found = frames.manifest.id, self.manifest.parents.get("frames", "nothing")
        if found == expected:
            self._aligned = None
        elif on_mismatch == "interpolate":
            self._aligned = _align(self, frames)
        else:
            raise ArtefactError(
                f"{self.path}: labels were made from frames {found[:12]}, but {frames.path} is {expected[:12]}; rerun "
                f"tools/dump_soft_labels.py on it, point data.train at the frames that were labelled, or, if the "
                f"videos and captions are the same, set on_mismatch: interpolate beside its path in labels"
            )
        self._keys = frames.videos.keys if self._aligned is None else self._aligned.keys
        if self.shards.lacks(LABELS) or not (isinstance(self._keys, Strings) and self._keys.same(self.keys)):
            for video, key in enumerate(self._keys):
                if LABELS not in self.shards.extensions(key):
                    one = frames.videos[video]
                    raise ArtefactError(f"{self.path}: no labels for video {one.id} ({one.key}); make the set again")

    def source(self) -> ShardSource:
        """Where the labels of every video come from."""
        return ShardSource(self.shards, self._keys)

    def relevance(self, video: int, caption: int) -> Float[Tensor, " frame"]:
        """The teacher's raw score of every frame for one caption."""
        key, row = self._place(video, caption)
        found = self.tensor(key, "relevance", row)
        labelled = None if self._aligned is None else self._aligned.times(video)
        if found.dim() != 1 or not found.is_floating_point() or len(found) < len(() if labelled is None else labelled):
            raise ArtefactError(
                f"{self.path}: 'relevance' of sample {key} is {found.dtype} {list(found.shape)} in each row, not "
                f"one number per frame; make the set again"
            )
        if labelled is None:
            return found
        return interpolated(found, labelled, self._frames.videos[video].timestamps, self._frames.num_frames)

    def _place(self, video: int, caption: int) -> tuple[str, int]:
        """Return the key of a video's labels, and the row of one of its captions there."""
        if self._aligned is None:
            return self._keys[video], range(self._frames.videos.caption_count(video))[caption]
        return self._keys[video], self._aligned.caption(video, caption)

    def videos(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Features of videos by name, as fp32; the first axis is the video. Their captions, if any, are not read."""
        rows = [(self._keys[number], 0) for number in numbers]
        return self.rows(rows, "features", "video") if rows else {}

    def captions(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Features of the captions of (video, caption) pairs by name, as fp32; the first axis is the pair."""
        rows = [self._place(*pair) for pair in pairs]
        return self.rows(rows, "features", "text")

    def batch(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Rows of (video, caption) pairs by name, real numbers as fp32; the first axis is the pair."""
        rows = [self._place(*pair) for pair in pairs]
        coarse = self.rows(rows, self._coarse) if self._coarse else {}
        if "relevance" not in self.tiers:
            return coarse
        relevance = [(self._keys[video], self.relevance(video, caption)) for video, caption in pairs]
        return {"relevance": self.stacked("relevance", relevance), **coarse}


def interpolated(
    row: Float[Tensor, " labelled"], labelled: Sequence[float], wanted: Sequence[float], num_frames: int
) -> Float[Tensor, " frame"]:
    """Relevance known at the times `labelled` (seconds, in any order, padding behind them in the row) at `wanted` ones.

    Linear between neighbours, the nearest value beyond the ends. Padded frames get the row's lowest value: there is
    nothing to see on them.
    """
    order = np.argsort(labelled, kind="stable")
    values = np.full(num_frames, row.min().item(), np.float32)
    values[: len(wanted)] = np.interp(wanted, np.asarray(labelled)[order], row.numpy()[: len(labelled)][order])
    return torch.from_numpy(values)


class _Aligned:
    """Where the labels of every video are in a set of other frames, and at which times they were made."""

    def __init__(self, stored: StoredLabels, frames: FrameSet):
        self._samples, self._captions, self._times = array("q"), array("q"), array("d")
        self._ends, self._first = array("q", [0]), frames.videos.first_text
        self.keys = Chosen(stored.keys, self._samples)

    def add(self, sample: int, captions: Sequence[int], labelled: Sequence[float]) -> None:
        """Add the next video: its sample, the rows of its captions there, and seconds; none if they are its own."""
        self._samples.append(sample)
        self._captions.extend(captions)
        self._times.extend(labelled)
        self._ends.append(len(self._times))

    def caption(self, video: int, caption: int) -> int:
        """Return the row of a video's caption."""
        first, end = self._first[video : video + 2].tolist()
        return self._captions[range(first, end)[caption]]

    def times(self, video: int) -> array | None:
        """Return the seconds of the frames that the teacher saw, where they are not the video's own."""
        return self._times[self._ends[video] : self._ends[video + 1]] or None


def _align(stored: StoredLabels, frames: FrameSet) -> _Aligned:
    """Find every video and caption of `frames` in labels of other frames, by id and text."""
    samples = {stored.about(key)["video"]: sample for sample, key in enumerate(stored.keys)}
    found, gap, widest = _Aligned(stored, frames), 0.0, ""
    for video in frames.videos:
        if video.id not in samples:
            raise ArtefactError(f"{stored.path}: no labels of video {video.id}; label {frames.path} itself")
        key = stored.keys[samples[video.id]]
        about = stored.about(key)
        numbers = {(caption["id"], caption["text_sha256"]): row for row, caption in enumerate(about["captions"])}
        rows = [numbers.get((caption.id, text_sha256(caption.text))) for caption in video.captions]
        if None in rows:
            caption = video.captions[rows.index(None)]
            raise ArtefactError(
                f"{stored.path}: no labels of caption {caption.id} of video {video.id}, or of another text; label "
                f"{frames.path} itself"
            )
        labelled = tuple(about["timestamps"])
        distance = np.abs(np.subtract.outer(video.timestamps, labelled)).min(axis=1).max()
        if distance > gap:
            gap, widest = float(distance), video.id
        same = labelled == video.timestamps
        if rows and "relevance" in stored.tiers:
            same = same and stored.tensor(key, "relevance", 0).numel() == frames.num_frames
        found.add(samples[video.id], [row for row in rows if row is not None], () if same else labelled)
    log.info(
        f"{stored.path}: made on other frames, relevance is interpolated in time; the largest gap between a training "
        f"frame and its nearest labelled one is {gap:.3f} s" + (f" (video {widest})" if widest else "")
    )
    return found
