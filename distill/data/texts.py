"""Captions without videos: the lines of a text file, or those of a frame set, apart from its videos."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.cache import Cache
from distill.data.frames import FrameSet
from distill.data.textfiles import listed, read_text
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
            places = [(f"{n // PER_SAMPLE:05d}", n % PER_SAMPLE) for n in range(len(captions))]
            found = cls(path, "texts", hashlib.sha256(text.encode()).hexdigest(), captions, places)
        else:
            frames = FrameSet(path, verify=verify, cache=cache)
            first: dict[str, tuple[str, int]] = {}
            for video in frames.videos:
                for row, caption in enumerate(video.captions):
                    first.setdefault(caption.text, (video.key, row))
            found = cls(path, "frames", frames.manifest.id, list(first), list(first.values()))
        if not found.captions:
            raise ArtefactError(
                f"{path}: no captions; expected a text file with one a line, or a frame set that has some"
            )
        return found
