"""Captions without videos: the lines of a text file, or those of a frame set, apart from its videos."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.cache import Cache
from distill.data.distinct import distinct
from distill.data.frames import FrameSet
from distill.data.ondemand import Chosen, OnDemand
from distill.data.textfiles import listed, read_text
from distill.data.videos import Videos
from distill.errors import ArtefactError
from distill.remote import Place, locate

PER_SAMPLE = 1000  # captions of a text file in one sample of its label set


@dataclass(frozen=True)
class Texts:
    """Distinct captions, and where a label set has each: the key of a sample and a row of it."""

    path: Place
    kind: str  # of the parent that label sets name: `texts` (a file), `frames`
    id: str  # sha256 of the file, or id of the frame set
    captions: Sequence[str]
    places: Sequence[tuple[str, int]]

    @classmethod
    def open(cls, where: str | Place, *, verify: bool = True, cache: Cache | None = None) -> "Texts":
        """Read a text file, one caption a line, or a frame set. Raises `ArtefactError` for one without captions."""
        path = locate(where)
        if isinstance(path, Path) and path.is_file():
            text = read_text(path)
            captions = list(dict.fromkeys(listed(text)))
            places = _InSamples(len(captions))
            found = cls(path, "texts", hashlib.sha256(text.encode()).hexdigest(), captions, places)
        else:
            frames = FrameSet(path, verify=verify, cache=cache)
            first, _ = distinct(frames.videos.texts)
            captions, places = Chosen(frames.videos.texts, first), _Places(frames.videos, first)
            found = cls(path, "frames", frames.manifest.id, captions, places)
        if not found.captions:
            raise ArtefactError(
                f"{path}: no captions; expected a text file with one a line, or a frame set that has some"
            )
        return found


class _Places(OnDemand[tuple[str, int]]):
    """The sample and the row of captions of a frame set, by their numbers."""

    def __init__(self, videos: Videos, captions: np.ndarray):
        self._videos, self._captions = videos, captions

    def __len__(self) -> int:
        return len(self._captions)

    def _made(self, row: int) -> tuple[str, int]:
        video, caption = self._videos.place(int(self._captions[row]))
        return self._videos.keys[video], caption


class _InSamples(OnDemand[tuple[str, int]]):
    """The sample and the row of each caption of a text file."""

    def __init__(self, captions: int):
        self._number = captions

    def __len__(self) -> int:
        return self._number

    def _made(self, row: int) -> tuple[str, int]:
        return f"{row // PER_SAMPLE:05d}", row % PER_SAMPLE
