"""Samplers: the rules that choose which frames of a video a model sees.

A sampler is a strict config, so it is hashed and stored with the frames it chose. It has its rule in two forms:

* `indices` counts frames, as published. It takes the number of frames, the frame rate and optionally the start and end
  of a clip in seconds. It is defined at rates for which `counts` is true.
* `moments` goes by time, where the rate is not constant. It takes the edges of the times for which a player shows each
  frame: frame `i` from `edges[i]` until `edges[i + 1]`, in seconds.

Both return frame numbers (0-based), ascending unless the sampler's docstring says otherwise, and raise `VideoError` if
there are too few frames. Time and memory of both are bounded by the number of frames, however long a frame is shown.
"""

import itertools
import math
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float
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

    def counts(self, rate: float) -> bool:
        """Return whether every second has `fps` frames at this rate."""
        return len(self._offsets(rate)) == self.fps

    def indices(self, total: int, rate: float, start: float | None = None, end: float | None = None) -> list[int]:
        """Return frame numbers of a video, or of the clip from second `start` to `end`."""
        whole, offsets = int(rate), self._offsets(rate)
        if whole == 0:
            raise VideoError(f"frame rate below 1: {rate:g} per second")
        if len(offsets) < self.fps:
            raise VideoError(f"frame rate below the sampler's: {rate:g} per second, {self.fps} asked")
        seconds = math.ceil(total / whole)
        first = 0 if start is None else math.floor(start)
        last = seconds if end is None else min(math.ceil(end), seconds)
        every = (second * whole + offset for second in range(first, last + 1) for offset in offsets)
        return self._kept([index for index in every if index < total], f"{total}{_cut(start, end)}")

    def moments(self, edges: Float[np.ndarray, " edge"]) -> list[int]:
        """Return the frames shown at the first moment, and every 1 / `fps` seconds after it."""
        return self._kept(_regular(edges, self.fps), f"{len(edges) - 1}")

    def _offsets(self, rate: float) -> range:
        """Return the frames of a second that are taken."""
        return range(0, int(rate), max(int(rate) // self.fps, 1))[: self.fps]

    def _kept(self, found: list[int], among: str) -> list[int]:
        if len(found) < self.min_frames:
            raise VideoError(f"too few frames: {len(found)} sampled of {among}, at least {self.min_frames} expected")
        if len(found) <= self.num_frames:
            return found
        if self.slice == "head":
            return found[: self.num_frames]
        if self.slice == "tail":
            return found[-self.num_frames :]
        return _even(found, self.num_frames)


class GlsclSampler(Config):
    """GLSCL's rule for MSR-VTT, MSVD and LSMDC; for DiDeMo and ActivityNet its authors use CLIP4Clip's rule.

    The frame rate divided by `fps` is rounded to a whole step (29.97 -> 30), and every step-th frame is taken, starting
    with the clip's first. If these are more than `num_frames`, evenly spaced ones are kept (positions truncated, not
    rounded). The authors then augment training frames at random (RandAugment); this project does not.
    """

    kind: Literal["glscl"]
    fps: PositiveInt = 1
    num_frames: PositiveInt = 12

    def counts(self, rate: float) -> bool:
        """Return whether a step is at least one frame at this rate."""
        return round(rate / self.fps) > 0

    def indices(self, total: int, rate: float, start: float | None = None, end: float | None = None) -> list[int]:
        """Return frame numbers of a video, or of the clip from second `start` to `end`."""
        if not self.counts(rate):
            raise VideoError(f"frame rate below the sampler's: {rate:g} per second, {self.fps} asked")
        first = 0 if start is None else int(start * rate)
        last = total - 1 if end is None else int(min(end * rate, total - 1))
        found = list(range(first, last + 1, round(rate / self.fps)))
        if not found:
            raise VideoError(_none(total, start, end))
        return self._kept(found)

    def moments(self, edges: Float[np.ndarray, " edge"]) -> list[int]:
        """Return the frames shown at the first moment, and every 1 / `fps` seconds after it."""
        return self._kept(_regular(edges, self.fps))

    def _kept(self, found: list[int]) -> list[int]:
        return found if len(found) <= self.num_frames else _even(found, self.num_frames)


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

    def counts(self, rate: float) -> bool:
        """Return True: the rule divides frames, whatever their rate."""
        return True

    def indices(self, total: int, rate: float, start: float | None = None, end: float | None = None) -> list[int]:
        """Return frame numbers of a video, or of the clip from second `start` to `end`, which is treated as a video.

        The authors have no rule for clips.
        """
        first = 0 if start is None else int(start * rate)
        behind = total if end is None else min(math.ceil(end * rate), total)
        if behind <= first:
            raise VideoError(_none(total, start, end))
        parts = np.linspace(first, behind, min(self.prompts, behind - first) + 1).astype(int).tolist()
        passes = self.num_frames // self.prompts
        return [
            begin + (after - 1 - begin) // (passes + 1) * number
            for number in range(1, passes + 1)
            for begin, after in itertools.pairwise(parts)
        ]

    def moments(self, edges: Float[np.ndarray, " edge"]) -> list[int]:
        """Return the frames shown in each pass at the same share of parts of equal length."""
        parts = np.linspace(edges[0], edges[-1], min(self.prompts, len(edges) - 1) + 1)
        passes = self.num_frames // self.prompts
        shares = np.arange(1, passes + 1)[:, None] / (passes + 1)
        asked = (parts[:-1] + shares * np.diff(parts)).ravel()
        return np.searchsorted(edges[1:-1], asked, side="right").tolist()


class PigSampler(Config):
    """PIG's rule at test time: frames evenly spaced over the whole video, its first and last frame among them.

    Positions are truncated, and no second is asked for: a video of ten minutes gives as many frames as one of ten
    seconds. A video with fewer frames than `num_frames` gives some of them more than once, so none is padded. In
    training the authors shift both ends at random by up to one distance of frames; here a frame set is packed once.
    """

    kind: Literal["pig"]
    num_frames: PositiveInt = 12

    def counts(self, rate: float) -> bool:
        """Return True: the rule divides frames, whatever their rate."""
        return True

    def indices(self, total: int, rate: float, start: float | None = None, end: float | None = None) -> list[int]:
        """Return frame numbers of a video, or of the clip from second `start` to `end`, which is treated as a video.

        The authors have no rule for clips.
        """
        first = 0 if start is None else int(start * rate)
        last = total - 1 if end is None else int(min(end * rate, total - 1))
        if last < first:
            raise VideoError(_none(total, start, end))
        return np.linspace(first, last, self.num_frames).astype(int).tolist()

    def moments(self, edges: Float[np.ndarray, " edge"]) -> list[int]:
        """Return the frames shown at moments evenly spaced from the first frame to the begin of the last one."""
        asked = np.linspace(edges[0], edges[-2], self.num_frames)
        return np.searchsorted(edges[1:-1], asked, side="right").tolist()


def _none(total: int, start: float | None, end: float | None) -> str:
    """Say that a video, or a clip of it, holds no frame."""
    return f"no frames: 0 sampled of {total}{_cut(start, end)}"


def _cut(start: float | None, end: float | None) -> str:
    return "" if start is None and end is None else f" between {start} s and {end} s"


def _regular(edges: Float[np.ndarray, " edge"], fps: int) -> list[int]:
    """Return the frames that are shown at any of the moments `edges[0] + k / fps`."""
    since = (edges - edges[0]) * fps
    following = np.ceil(since[:-1])  # the first of the moments, in steps, that is not before the frame
    return np.flatnonzero(following < since[1:]).tolist()


def _even(found: list[int], number: int) -> list[int]:
    """Return evenly spaced ones of `found`; positions are truncated, as published."""
    return [found[place] for place in np.linspace(0, len(found) - 1, num=number, dtype=int)]


SAMPLERS = {
    "clip4clip": Clip4ClipSampler,
    "glscl": GlsclSampler,
    "pig": PigSampler,
    "prompt_switch": PromptSwitchSampler,
}
Sampler = Annotated[Clip4ClipSampler | GlsclSampler | PigSampler | PromptSwitchSampler, Field(discriminator="kind")]
