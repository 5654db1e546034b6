"""Frame sets: the sampled frames and captions of one split, which all later steps read.

One sample per video, key `<shard><number>`: `<key>.json` (video id, source file, captions, timestamps) and
`<key>.000.jpg`, `<key>.001.jpg` ... (the sampled frames, shorter side resized to `size` bicubically, centre-cropped;
with `whole`, of any shape, shorter side at most `size`, for each tower to fit as it was trained).
The manifest lists the videos that could not be used, each with the reason. distill/packing/packing.py writes it.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    NotRequired,  # pydantic needs this one before Python 3.12
)

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field, with_config
from typing_extensions import TypedDict

from distill.cache import Cache
from distill.data.pictures import Fit, decode_jpeg
from distill.data.prefetch import ShardSource
from distill.data.shards import open_sealed_shards
from distill.errors import ArtefactError
from distill.manifest import NAME
from distill.records import STRICT, View, parsed
from distill.remote import Place, locate

LARGEST = 1 << 14  # pixels of a side, and frames of a video: beyond any model
Size = Annotated[int, Field(gt=0, le=LARGEST)]
VERSION = 2  # in version 1 the index lacked the descriptions of the videos


@dataclass(frozen=True, slots=True)  # there may be millions
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


class SampledFrames(View):
    """The settings of a sampler that readers need."""

    num_frames: Size


class _Config(View):
    sampler: SampledFrames
    size: Size
    whole: bool = False


class FrameSet:
    """A sealed frame set: its videos in shard order, and their pixels.

    Frames that were kept `whole` have no pixels until the set is `fitted` to a tower; `size` is the tower's then.
    """

    def __init__(self, path: str | Place, *, verify: bool = True, cache: Cache | None = None):
        self.path = locate(path)
        self.videos: list[PackedVideo] = []
        self.manifest, self._shards = open_sealed_shards(
            self.path, "frames", VERSION, verify=verify, cache=cache, told=self._add
        )
        self.cache = self._shards.cache
        config = self.manifest.view(_Config, self.path)
        self.size, self.num_frames, self.whole = config.size, config.sampler.num_frames, config.whole
        self._fit: Fit | None = None
        most = max((len(video.timestamps) for video in self.videos), default=0)
        if most > self.num_frames:
            raise ArtefactError(
                f"{self.path / NAME}: config: damaged at sampler.num_frames: {self.num_frames}, but a video has {most} "
                f"frames; make the set again"
            )

    def __len__(self) -> int:
        return len(self.videos)

    def fitted(self, fit: Fit, where: str) -> "FrameSet":
        """Return this set with pictures as a tower takes them.

        Raises `ArtefactError`, which begins with `where`, if they were cut otherwise or are too small.
        """
        if fit == Fit(self.size) and not self.whole:
            return self
        if not self.whole or self.manifest.config["size"] < fit.size:
            kept = f"frames of {self.manifest.config['size']} pixels" + (
                " at most" if self.whole else ", cut as for CLIP"
            )
            one = f"--size {fit.size}" if fit == Fit(fit.size) and not self.whole else f"--whole --size {fit.size}"
            raise ArtefactError(f"{where}: {self.path} holds {kept}, but the tower takes {fit}; pack again with {one}")
        fitted = copy.copy(self)
        fitted._fit, fitted.size = fit, fit.size
        return fitted

    def pixels(self, video: int) -> UInt8[np.ndarray, "frame 3 height width"]:
        """Return the RGB frames of one video, without padding."""
        found = np.empty((len(self.videos[video].timestamps), self.size, self.size, 3), np.uint8)
        self.decode(video, found)
        return found.transpose(0, 3, 1, 2)

    def decode(self, video: int, into: UInt8[np.ndarray, "padded height width 3"]) -> None:
        """Decode the frames of one video into the first positions of `into`, without an intermediate copy."""
        if self.whole and self._fit is None:
            raise ArtefactError(f"{self.path}: its frames are whole, of several shapes; use FrameSet.fitted first")
        key = self.videos[video].key
        try:
            for number in range(len(self.videos[video].timestamps)):
                picture = decode_jpeg(self._shards.read(key, f"{number:03d}.jpg"), self._fit).transpose(1, 2, 0)
                if picture.shape != into.shape[1:]:
                    raise ValueError(f"{picture.shape[1]} x {picture.shape[0]} pixels, not {self.size} x {self.size}")
                into[number] = picture
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow's own
            where = self.path / self._shards.shard_of(key)
            raise ArtefactError(f"{where}: frames of {key} cannot be decoded ({error}); make the set again") from None

    def check_settings(self, expected: dict[str, Any], model: Path) -> None:
        """Raise `ArtefactError` if the frames were sampled or cut with other settings than `model` was trained with."""
        packed = {key: {"whole": False, **self.manifest.config}[key] for key in expected}
        if packed != expected:
            raise ArtefactError(
                f"{self.path}: packed with {json.dumps(packed)}, but {model} was trained with {json.dumps(expected)}; "
                f"pack the videos again with those settings"
            )

    def shards(self) -> dict[str, list[int]]:
        """Return the videos (by number) of each tar."""
        rows: dict[str, list[int]] = {}
        for number, video in enumerate(self.videos):
            rows.setdefault(self._shards.shard_of(video.key), []).append(number)
        return rows

    def source(self) -> ShardSource:
        """Return the shards of this set and the key of every video, for prefetching."""
        return ShardSource(self._shards, [video.key for video in self.videos])

    def _add(self, key: str, about: Any) -> None:
        known = parsed(_About, about, f"{self.path}: sample {key}", "make the set again")
        video = PackedVideo(
            id=known["video"],
            key=key,
            source=known["source"],
            captions=tuple(Caption(said["id"], said["text"], said.get("source")) for said in known["captions"]),
            timestamps=tuple(known["timestamps"]),
            duration=known["duration"],
            frames_sha256=known["frames_sha256"],
        )
        self.videos.append(video)
