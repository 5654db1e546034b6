"""Which frames of a video are looked at: named, parametrised rules that travel with the frames they chose.

A sampler is a strict config part (so it is hashed and stored with a frame set) with one method: number of frames, frame
rate and optionally a clip's start and end in seconds -> source frame numbers, ascending.
"""

import math
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from distill.config import Config
from distill.errors import VideoError


class Clip4ClipSampler(Config):
    """CLIP4Clip's rule, shared by X-CLIP, TS2-Net, TeachCLIP and EERCF.

    The frame rate is truncated to whole frames (29.97 -> 29); `fps` frames are taken from every second, including the
    one that the clip ends in; of more than `num_frames`, `slice` keeps the first, the last, or evenly spaced ones
    (places truncated, not rounded).
    """

    kind: Literal["clip4clip"]
    fps: PositiveInt = 1
    num_frames: PositiveInt = 12
    slice: Literal["head", "tail", "uniform"] = "uniform"
    min_frames: PositiveInt = 1  # a shorter video is refused

    def indices(
        self, info_num_frames: int, info_fps: float, start: float | None = None, end: float | None = None
    ) -> list[int]:
        """Frame numbers for a video of `info_num_frames` at `info_fps`; `start` and `end` cut a clip out (seconds)."""
        rate = int(info_fps)
        if rate == 0:
            raise VideoError(f"frame rate below 1: {info_fps:g} per second")
        offsets = range(0, rate, max(rate // self.fps, 1))[: self.fps]
        if len(offsets) < self.fps:
            raise VideoError(f"frame rate below the sampler's: {info_fps:g} per second, {self.fps} asked")
        seconds = math.ceil(info_num_frames / rate)
        first = 0 if start is None else math.floor(start)
        last = seconds if end is None else min(math.ceil(end), seconds)
        every = (second * rate + offset for second in range(first, last + 1) for offset in offsets)
        found = [index for index in every if index < info_num_frames]
        if len(found) < self.min_frames:
            cut = "" if start is None and end is None else f" between {start} s and {end} s"
            least = f"at least {self.min_frames} expected"
            raise VideoError(f"too few frames: {len(found)} sampled of {info_num_frames}{cut}, {least}")
        return self._cut(found)

    def _cut(self, found: list[int]) -> list[int]:
        if len(found) <= self.num_frames:
            return found
        if self.slice == "head":
            return found[: self.num_frames]
        if self.slice == "tail":
            return found[-self.num_frames :]
        return [found[place] for place in np.linspace(0, len(found) - 1, num=self.num_frames, dtype=int)]


SAMPLERS = {"clip4clip": Clip4ClipSampler}
Sampler = Clip4ClipSampler  # becomes a union by `kind` with the second rule
