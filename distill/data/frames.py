"""Frame sets: the sampled frames and captions of one split, which all later steps read.

One sample per video, key `<shard><number>`: `<key>.json` (video id, source file, captions, timestamps) and
`<key>.000.jpg`, `<key>.001.jpg` ... (the sampled frames, shorter side resized to `size` bicubically, centre-cropped).
The manifest lists the videos that could not be used, each with the reason. distill/packing/packing.py writes it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from distill.cache import Cache
from distill.data.pictures import decode_jpeg
from distill.data.prefetch import ShardSource
from distill.data.shards import open_sealed_shards
from distill.errors import ArtefactError
from distill.manifest import NAME
from distill.remote import Place, locate

LARGEST = 1 << 14  # pixels of a side, and frames of a video: beyond any model
VERSION = 2  # in version 1 the index lacked the descriptions of the videos


@dataclass(frozen=True, slots=True)  # there may be millions
class Caption:
    """A sentence or paragraph that describes a video; `id` is unique within an annotation file."""

    id: str
    text: str


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


class FrameSet:
    """A sealed frame set: its videos in shard order, and their pixels."""

    def __init__(self, path: str | Place, *, verify: bool = True, cache: Cache | None = None):
        self.path = locate(path)
        self.videos: list[PackedVideo] = []
        self.manifest, self._shards = open_sealed_shards(
            self.path, "frames", VERSION, verify=verify, cache=cache, told=self._add
        )
        self.cache = self._shards.cache
        self.size, self.num_frames = self._geometry()

    def _geometry(self) -> tuple[int, int]:
        """Return the height and width in pixels, and the number of frames per video, from the manifest."""
        sampler = self.manifest.config.get("sampler")
        size = self.manifest.config.get("size")
        frames = sampler.get("num_frames") if isinstance(sampler, dict) else None
        most = max((len(video.timestamps) for video in self.videos), default=0)
        if type(size) is not int or type(frames) is not int or not 0 < size <= LARGEST or not most <= frames <= LARGEST:
            raise ArtefactError(
                f"{self.path / NAME}: {frames!r} frames of {size!r} pixels, expected whole numbers from 1 to {LARGEST} "
                f"and at least {most} frames; make the set again"
            )
        return size, frames

    def __len__(self) -> int:
        return len(self.videos)

    def pixels(self, video: int) -> UInt8[np.ndarray, "frame 3 height width"]:
        """Return the RGB frames of one video, without padding."""
        found = np.empty((len(self.videos[video].timestamps), self.size, self.size, 3), np.uint8)
        self.decode(video, found)
        return found.transpose(0, 3, 1, 2)

    def decode(self, video: int, into: UInt8[np.ndarray, "padded height width 3"]) -> None:
        """Decode the frames of one video into the first positions of `into`, without an intermediate copy."""
        key = self.videos[video].key
        try:
            for number in range(len(self.videos[video].timestamps)):
                picture = decode_jpeg(self._shards.read(key, f"{number:03d}.jpg")).transpose(1, 2, 0)
                if picture.shape != into.shape[1:]:
                    raise ValueError(f"{picture.shape[1]} x {picture.shape[0]} pixels, not {self.size} x {self.size}")
                into[number] = picture
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow's own
            where = self.path / self._shards.shard_of(key)
            raise ArtefactError(f"{where}: frames of {key} cannot be decoded ({error}); make the set again") from None

    def check_settings(self, expected: dict[str, Any], model: Path) -> None:
        """Raise `ArtefactError` if the frames were sampled or cut with other settings than `model` was trained with."""
        packed = {key: self.manifest.config[key] for key in expected}
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
        try:
            video = PackedVideo(
                id=about["video"],
                key=key,
                source=about["source"],
                captions=tuple(Caption(caption["id"], caption["text"]) for caption in about["captions"]),
                timestamps=tuple(about["timestamps"]),
                duration=about["duration"],
                frames_sha256=about["frames_sha256"],
            )
            texts = [video.id, video.source, video.frames_sha256, *(t for c in video.captions for t in (c.id, c.text))]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("an id, a caption or another text is missing")
            if not video.timestamps or not all(math.isfinite(second) for second in (video.duration, *video.timestamps)):
                raise TypeError("timestamps are missing or not finite")
        except (KeyError, TypeError, OverflowError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise ArtefactError(f"{self.path}: sample {key}: {reason}; make the set again") from None
        self.videos.append(video)
