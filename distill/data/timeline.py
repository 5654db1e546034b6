"""The timeline of a video: when a player shows each of its frames."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int64

from distill.data.sampler import Sampler
from distill.errors import VideoError

ROUNDING = 0.0005  # seconds by which the time stamps of containers that count milliseconds may be late
Span = tuple[float, float] | None  # start and end in seconds of the file; None: the whole file


@dataclass(frozen=True)
class Timeline:
    """The frames of a video in the order in which a player shows them; second 0 is where its clock begins."""

    ticks: Int64[np.ndarray, " frame"]  # time stamp of each frame, ascending, in units of `base`
    origin: Fraction  # time stamp of second 0, in seconds
    base: Fraction  # seconds of a tick
    duration: float  # seconds until the last frame has been shown
    rate: float | None  # frames per second; None where the rate is not constant
    counted: bool = False  # whether decoded frames are known by their number, as they carry no time stamps

    def __len__(self) -> int:
        return len(self.ticks)

    def seconds(self, frame: int) -> float:
        """Return when a player begins to show a frame."""
        return float(int(self.ticks[frame]) * self.base - self.origin)

    def choose(self, sampler: Sampler, span: Span, published: bool = False) -> list[int]:
        """Return the frames that `sampler` takes of a span, which begin in it, or else the one that is shown there.

        A span is treated as a video of its own; `published` cuts of data sets as their authors cut, by whole seconds.
        Frames are counted, as published, where the rate is constant. Raises `VideoError` if no frame is shown.
        """
        if published and self.rate is not None and sampler.counts(self.rate):
            return sampler.indices(len(self), self.rate, *(span or ()))
        first, edges = self._shown(span)
        if self.rate is not None and sampler.counts(self.rate):
            return [first + frame for frame in sampler.indices(len(edges) - 1, self.rate)]
        return [first + frame for frame in sampler.moments(edges)]

    def _shown(self, span: Span) -> tuple[int, Float[np.ndarray, " edge"]]:
        """Return the first frame of a span, and the edges of what is shown in it, frame after frame, in seconds."""
        rounding = min(float(self.base) / 2, ROUNDING)
        begins = self.ticks * float(self.base) - float(self.origin) - rounding
        if span is None:
            return 0, np.array([begins[0] + rounding, *begins[1:], self.duration])
        start, end = span
        first, behind = np.searchsorted(begins + rounding, np.array(span) - rounding).tolist()
        if first == behind:  # a frame that began earlier is still shown
            first -= 1
        if first < 0 or start >= self.duration:
            shown = f"{self.seconds(0):.3f} to {self.duration:.3f} s"
            raise VideoError(f"no frame between {start:g} and {end:g} s; its frames are shown from {shown}")
        return first, np.array([start, *begins[first + 1 : behind], min(end, self.duration)])


def constant_rate(
    ticks: Int64[np.ndarray, " frame"], base: Fraction, rates: tuple[Fraction | None, ...]
) -> float | None:
    """Return the first of `rates`, frames per second, that all time stamps follow to less than a tick; or None."""
    for rate in filter(None, rates):
        late = ticks - ticks[0] - np.arange(len(ticks)) / float(rate * base)
        if late.max() - late.min() < 0.999:  # a whole tick is a frame that is missing or comes twice
            return float(rate)
    return None
