"""The videos of a frame set and their captions: as columns of its register, and one by one when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import (
    Annotated,
    Any,
    NotRequired,  # pydantic needs this one before Python 3.12
)

import numpy as np
from jaxtyping import Int64
from pydantic import Field, with_config
from typing_extensions import TypedDict

from distill.data.growing import GrowingRegister
from distill.data.indexes import Description
from distill.data.ondemand import Chosen, OnDemand
from distill.data.register import FIRST, Register
from distill.records import STRICT, parsed

VIDEOS = {  # of each video
    "video.sample": "q",  # the row of its sample
    "video.id": "B*",
    "video.source": "B*",
    "video.frames_sha256": "B*",
    "video.duration": "d",  # seconds
    "video.timestamp": "d*",  # seconds, of each frame
    "video.caption": "q*",  # of each caption a row of "source", counted from 1; 0: nobody said who wrote it
}
CAPTIONS = {"caption.id": "B*", "caption.text": "B*"}  # of each caption, those of a video one after the other
SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence or paragraph that describes a video; `id` is unique within an annotation file.

    `source` says who wrote it, where that is known: human, or a model and its revision.
    """

    id: str
    text: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class PackedVideo:
    """One packed video and its captions."""

    id: str
    key: str
    source: str  # file name relative to the video folder
    captions: tuple[Caption, ...]
    timestamps: tuple[float, ...]  # seconds, one per packed frame
    duration: float  # seconds
    frames_sha256: str


class StoredCaption(TypedDict):
    """A caption as JSON."""

    id: str
    text: str
    source: NotRequired[str]


@with_config(STRICT)
class _About(TypedDict):
    """A packed video as JSON."""

    video: str
    source: str
    captions: list[StoredCaption]
    timestamps: Annotated[list[float], Field(min_length=1)]
    duration: float
    frames_sha256: str


class VideoColumns(Description):
    """Fills the columns of videos in a register that grows."""

    kinds = MappingProxyType({**VIDEOS, **CAPTIONS, SOURCE: "B*"})

    def __init__(self, register: GrowingRegister, where: object):
        super().__init__(register, where)
        self._sources: dict[str, int] = {}

    def add(self, sample: int, key: str, about: Any) -> None:
        """Add what the JSON of a sample says. Raises `ArtefactError` where it describes no video."""
        known = parsed(_About, about, f"{self.where}: sample {key}", "make the set again")
        register = self.register
        register.add("video.sample", sample)
        register.add_string("video.id", known["video"])
        register.add_string("video.source", known["source"])
        register.add_string("video.frames_sha256", known["frames_sha256"])
        register.add("video.duration", known["duration"])
        register.add("video.timestamp", *known["timestamps"])
        register.end_row("video.timestamp")
        for said in known["captions"]:
            register.add_string("caption.id", said["id"])
            register.add_string("caption.text", said["text"])
            register.add("video.caption", self._source(said.get("source")))
        register.end_row("video.caption")

    def _source(self, name: str | None) -> int:
        if name is None:
            return 0
        if name not in self._sources:
            self._sources[name] = len(self._sources) + 1
            self.register.add_string(SOURCE, name)
        return self._sources[name]


class Videos(OnDemand[PackedVideo]):
    """The videos of a register in the order of their samples. Raises `ArtefactError` if its columns do not fit."""

    def __init__(self, register: Register):
        samples, keys = register["video.sample"], register.strings("key")
        register.check(VIDEOS, len(samples))
        register.check_below("video.sample", len(keys))
        register.check(CAPTIONS, len(register["video.caption"]))
        self._register, self._sources = register, ("", *register.strings(SOURCE))
        register.check_below("video.caption", len(self._sources))
        self.keys: Sequence[str] = keys if len(samples) == len(keys) else Chosen(keys, samples)
        self.ids, self.texts = register.strings("video.id"), register.strings("caption.text")

    @property
    def first_text(self) -> np.ndarray:
        """The rows of `texts` with which the captions of each video begin, and the number of all."""
        return self._register["video.caption" + FIRST]

    @property
    def samples(self) -> np.ndarray:
        """The number of each video's sample."""
        return self._register["video.sample"]

    def __len__(self) -> int:
        return len(self.ids)

    def _made(self, row: int) -> PackedVideo:
        first, end = self.first_text[row : row + 2].tolist()
        strings = self._register.strings
        return PackedVideo(
            id=self.ids[row],
            key=self.keys[row],
            source=strings("video.source")[row],
            captions=tuple(self._caption(number) for number in range(first, end)),
            timestamps=tuple(self._register.row("video.timestamp", row).tolist()),
            duration=float(self._register["video.duration"][row]),
            frames_sha256=strings("video.frames_sha256")[row],
        )

    def _caption(self, row: int) -> Caption:
        source = int(self._register["video.caption"][row])
        ids = self._register.strings("caption.id")
        return Caption(ids[row], self.texts[row], self._sources[source] if source else None)

    def caption_counts(self, videos: range | None = None) -> Int64[np.ndarray, " video"]:
        """Return how many captions every video has, or each of these neighbours."""
        first = self.first_text if videos is None else self.first_text[videos.start : videos.stop + 1]
        return np.diff(first).astype(np.int64)

    def caption_count(self, video: int) -> int:
        """Return how many captions a video has."""
        first, end = self.first_text[video : video + 2].tolist()
        return end - first

    def frame_counts(self) -> Int64[np.ndarray, " video"]:
        """Return how many frames every video has."""
        return self._register.lengths("video.timestamp")

    def frame_count(self, video: int) -> int:
        """Return how many frames a video has."""
        return len(self._register.row("video.timestamp", video))

    def text(self, video: int, caption: int) -> str:
        """Return the text of a video's caption."""
        first, end = self.first_text[video : video + 2].tolist()
        return self.texts[range(first, end)[caption]]

    def place(self, text: int) -> tuple[int, int]:
        """Return the video of a row of `texts`, and which of its captions that is."""
        wanted = self.first_text.dtype.type(text)  # a number of another type would have the whole column copied
        video = int(self.first_text.searchsorted(wanted, side="right")) - 1
        return video, text - int(self.first_text[video])

    def texts_of(self, videos: range) -> list[str]:
        """Return the texts of the captions of neighbouring videos, video by video."""
        return self.texts[slice(*self.first_text[[videos.start, videos.stop]].tolist())]

    def sources(self) -> dict[str | None, int]:
        """Return how many captions each has written, in the order in which they come first; None: nobody says who."""
        found, first, counts = np.unique(self._register["video.caption"], return_index=True, return_counts=True)
        names = (None, *self._sources[1:])
        return {names[found[place]]: int(counts[place]) for place in np.argsort(first)}
