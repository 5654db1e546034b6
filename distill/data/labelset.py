"""A label set as the labels of a frame set: by the numbers of its videos and captions.

Labels that were made on the very frames have their sample keys. Those of other frames of the same videos are found by
the ids of videos and captions, and their relevance is interpolated in time. distill/data/labels.py has the format.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distill.data.frames import FrameSet
from distill.data.labels import Coarse, StoredLabels, text_sha256
from distill.data.prefetch import ShardSource
from distill.errors import ArtefactError
from distill.remote import Place

Mismatch = Literal["error", "interpolate"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """Where the labels of one training video are."""

    key: str
    rows: Sequence[int]  # of its captions
    labelled: tuple[float, ...] | None = None  # timestamps of its labels, where the frames have others


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
            self._places = [_Place(video.key, range(len(video.captions))) for video in frames.videos]
        elif on_mismatch == "interpolate":
            self._places = _aligned(self, frames)
        else:
            raise ArtefactError(
                f"{self.path}: labels were made from frames {found[:12]}, but {frames.path} is {expected[:12]}; rerun "
                f"tools/dump_soft_labels.py on it, point data.train at the frames that were labelled, or, if the "
                f"videos and captions are the same, set on_mismatch: interpolate beside its path in labels"
            )
        for video, there in zip(frames.videos, self._places, strict=True):
            if "labels.safetensors" not in self.shards.extensions(there.key):
                raise ArtefactError(f"{self.path}: no labels for video {video.id} ({video.key}); make the set again")

    def source(self) -> ShardSource:
        """Where the labels of every video come from."""
        return ShardSource(self.shards, [place.key for place in self._places])

    def relevance(self, video: int, caption: int) -> Float[Tensor, " frame"]:
        """The teacher's raw score of every frame for one caption."""
        there = self._places[video]
        row = self.tensor(there.key, "relevance", there.rows[caption])
        if row.dim() != 1 or not row.is_floating_point() or len(row) < len(there.labelled or ()):
            raise ArtefactError(
                f"{self.path}: 'relevance' of sample {there.key} is {row.dtype} {list(row.shape)} in each row, not "
                f"one number per frame; make the set again"
            )
        if there.labelled is None:
            return row
        return interpolated(row, there.labelled, self._frames.videos[video].timestamps, self._frames.num_frames)

    def videos(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Features of videos by name, as fp32; the first axis is the video. Their captions, if any, are not read."""
        rows = [(self._places[number].key, 0) for number in numbers]
        return self.rows(rows, "features", "video") if rows else {}

    def captions(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Features of the captions of (video, caption) pairs by name, as fp32; the first axis is the pair."""
        rows = [(self._places[video].key, self._places[video].rows[caption]) for video, caption in pairs]
        return self.rows(rows, "features", "text")

    def batch(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Rows of (video, caption) pairs by name, real numbers as fp32; the first axis is the pair."""
        rows = [(self._places[video].key, self._places[video].rows[caption]) for video, caption in pairs]
        coarse = self.rows(rows, self._coarse) if self._coarse else {}
        if "relevance" not in self.tiers:
            return coarse
        relevance = [(self._places[video].key, self.relevance(video, caption)) for video, caption in pairs]
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


def _aligned(stored: StoredLabels, frames: FrameSet) -> list[_Place]:
    """Finds every video and caption of `frames` in labels of other frames, by id and text."""
    abouts = {about["video"]: (key, about) for key in stored.keys for about in [stored.about(key)]}
    places, gap, widest = [], 0.0, ""
    for video in frames.videos:
        if video.id not in abouts:
            raise ArtefactError(f"{stored.path}: no labels of video {video.id}; label {frames.path} itself")
        key, about = abouts[video.id]
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
        places.append(_Place(key, [row for row in rows if row is not None], None if same else labelled))
    log.info(
        f"{stored.path}: made on other frames, relevance is interpolated in time; the largest gap between a training "
        f"frame and its nearest labelled one is {gap:.3f} s" + (f" (video {widest})" if widest else "")
    )
    return places
