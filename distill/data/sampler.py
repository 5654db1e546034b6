"""Samplers: the rules that choose which frames of a video a model sees.

A sampler is a strict config, so it is hashed and stored with the frames it chose. Its one method, `indices`, takes the
number of frames, the frame rate and optionally the start and end of a clip in seconds, and returns frame numbers of the
file (0-based), ascending unless the sampler's docstring says otherwise. It raises `VideoError` if a clip has too few.
"""

import itertools
import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from distill.config import Config
from distill.errors import VideoError


class Clip4ClipSampler(Config):
    """CLIP4Clip's rule, shared by X-CLIP, TS2-Net, TeachCLIP and EERCF.

    The frame rate is truncated to whole frames (29.97 -> 29), and `fps` frames are taken from every second, including
    the second in which the clip ends. If these are more than `num_frames`, `slice` keeps the first, the last, or evenly
    spaced ones (positions truncated, not rounded).
    """

    kind: Literal["clip4clip"]
    fps: PositiveInt = 1
    num_frames: PositiveInt = 12
    slice: Literal["head", "tail", "uniform"] = "uniform"
    min_frames: PositiveInt = 1  # a shorter video is refused

    def indices(self, total: int, rate: float, start: float | None = None, end: float | None = None) -> list[int]:
        """Return frame numbers of a video, or of the clip from second `start` to `end`."""
        whole = int(rate)
        if whole == 0:
            raise VideoError(f"frame rate below 1: {rate:g} per second")
        offsets = range(0, whole, max(whole // self.fps, 1))[: self.fps]
        if len(offsets) < self.fps:
            raise VideoError(f"frame rate below the sampler's: {rate:g} per second, {self.fps} asked")
        seconds = math.ceil(total / whole)
        first = 0 if start is None else math.floor(start)
        last = seconds if end is None else min(math.ceil(end), seconds)
        every = (second * whole + offset for second in range(first, last + 1) for offset in offsets)
        found = [index for index in every if index < total]
        if len(found) < self.min_frames:
            cut = "" if start is None and end is None else f" between {start} s and {end} s"
            few = f"too few frames: {len(found)} sampled of {total}{cut}"
            raise VideoError(f"{few}, at least {self.min_frames} expected")
        if len(found) <= self.num_frames:
            return found
        if self.slice == "head":
            return found[: self.num_frames]
        if self.slice == "tail":
            return found[-self.num_frames :]
        return [found[place] for place in np.linspace(0, len(found) - 1, num=self.num_frames, dtype=int)]


class GlsclSampler(Config):
    """GLSCL's rule for MSR-VTT, MSVD and LSMDC; for DiDeMo and ActivityNet its authors use CLIP4Clip's rule.

    The frame rate divided by `fps` is rounded to a whole step (29.97 -> 30), and every step-th frame is taken, starting
    with the clip's first. If these are more than `num_frames`, evenly spaced ones are kept (positions truncated, not
    rounded). The authors then augment training frames at random (RandAugment); this project does not.
    """

    kind: Literal["glscl"]
    fps: PositiveInt = 1
    num_frames: PositiveInt = 12

    def indices(self, total: int, rate: float, start: float | None = None, end: float | None = None) -> list[int]:
        """Return frame numbers of a video, or of the clip from second `start` to `end`."""
        step = round(rate / self.fps)
        if step == 0:
            raise VideoError(f"frame rate below the sampler's: {rate:g} per second, {self.fps} asked")
        first = 0 if start is None else int(start * rate)
        last = total - 1 if end is None else int(min(end * rate, total - 1))
        found = range(first, last + 1, step)
        if not found:
            cut = "" if start is None and end is None else f" between {start} s and {end} s"
            raise VideoError(f"no frames: 0 sampled of {total}{cut}")
        if len(found) <= self.num_frames:
            return list(found)
        return [found[place] for place in np.linspace(0, len(found) - 1, num=self.num_frames, dtype=int)]


class PromptSwitchSampler(Config):
    """Prompt Switch's rule at test time: `num_frames / prompts` passes over a video divided into `prompts` equal parts.

    Each pass takes one frame of every part, later in the part than the pass before, and forms one cube of prompts. With
    more than one pass the frames are therefore NOT ordered by time. A very short video gives the same frame more than
    once, and a video with fewer frames than parts gives fewer frames. Galleries sort by time before they show seconds,
    and teachers see frames ordered by time; students that depend on the order of frames (temporal transformers) need
    another sampler. In training the authors draw a random frame of every part; here a frame set is packed once.
    """

    kind: Literal["prompt_switch"]
    num_frames: PositiveInt = 12
    prompts: PositiveInt = 6

    @model_validator(mode="after")
    def _whole_passes(self) -> "PromptSwitchSampler":
        if self.num_frames % self.prompts:
            raise ValueError(f"num_frames: {self.num_frames} is no multiple of prompts, {self.prompts}")
        return self

    def indices(self, total: int, rate: float, start: float | None = None, end: float | None = None) -> list[int]:
        """Return frame numbers of a video, or of the clip from second `start` to `end`, which is treated as a video.

        The authors have no rule for clips.
        """
        first = 0 if start is None else int(start * rate)
        behind = total if end is None else min(math.ceil(end * rate), total)
        if behind <= first:
            cut = "" if start is None and end is None else f" between {start} s and {end} s"
            raise VideoError(f"no frames: 0 sampled of {total}{cut}")
        parts = np.linspace(first, behind, min(self.prompts, behind - first) + 1).astype(int).tolist()
        passes = self.num_frames // self.prompts
        return [
            begin + (after - 1 - begin) // (passes + 1) * number
            for number in range(1, passes + 1)
            for begin, after in itertools.pairwise(parts)
        ]


SAMPLERS = {"clip4clip": Clip4ClipSampler, "glscl": GlsclSampler, "prompt_switch": PromptSwitchSampler}
Sampler = Annotated[Clip4ClipSampler | GlsclSampler | PromptSwitchSampler, Field(discriminator="kind")]
