"""Frame sets: the sampled frames and captions of one split, which all later steps read.

One sample per video, key `<shard><number>`: `<key>.json` (video id, source file, captions, timestamps) and
`<key>.000.jpg`, `<key>.001.jpg` ... (the sampled frames, shorter side resized to `size` bicubically, centre-cropped;
with `whole`, of any shape, shorter side at most `size`, for each tower to fit as it was trained).
The manifest lists the videos that could not be used, each with the reason. distill/packing/packing.py writes it.
"""

import copy
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import Field

from distill.cache import Cache
from distill.data.pictures import Fit, decode_jpeg
from distill.data.prefetch import ShardSource
from distill.data.shards import open_sealed_shards
from distill.data.videos import VideoColumns, Videos
from distill.errors import ArtefactError
from distill.manifest import NAME
from distill.records import View
from distill.remote import Place, locate

LARGEST = 1 << 14  # pixels of a side, and frames of a video: beyond any model
Size = Annotated[int, Field(gt=0, le=LARGEST)]
VERSION = 2  # in version 1 the index lacked the descriptions of the videos


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
        self.manifest, self._shards = open_sealed_shards(
            self.path, "frames", VERSION, verify=verify, cache=cache, describe=VideoColumns
        )
        self.cache, self.videos = self._shards.cache, Videos(self._shards.register)
        config = self.manifest.view(_Config, self.path)
        self.size, self.num_frames, self.whole = config.size, config.sampler.num_frames, config.whole
        self._fit: Fit | None = None
        most = self.videos.frame_counts().max(initial=0)
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
        found = np.empty((self.videos.frame_count(video), self.size, self.size, 3), np.uint8)
        self.decode(video, found)
        return found.transpose(0, 3, 1, 2)

    def decode(self, video: int, into: UInt8[np.ndarray, "padded height width 3"]) -> None:
        """Decode the frames of one video into the first positions of `into`, without an intermediate copy."""
        if self.whole and self._fit is None:
            raise ArtefactError(f"{self.path}: its frames are whole, of several shapes; use FrameSet.fitted first")
        key = self.videos.keys[video]
        try:
            for number in range(self.videos.frame_count(video)):
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

    def shards(self) -> dict[str, range]:
        """Return the videos (by number) of each tar that has some."""
        rows, samples = self.videos.samples, self._shards.samples()
        # Bounds have the column's own type: searching for another one would copy the whole column.
        bounds = np.array([(some.start, some.stop) for some in samples.values()], rows.dtype)
        found = zip(samples, np.searchsorted(rows, bounds).tolist(), strict=True)
        return {tar: range(first, end) for tar, (first, end) in found if first < end}

    def source(self) -> ShardSource:
        """Return the shards of this set and the key of every video, for prefetching."""
        return ShardSource(self._shards, self.videos.keys)
