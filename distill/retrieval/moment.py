"""The moment of a video with the highest frame weights: which seconds of a hit to show."""

import itertools
from collections.abc import Sequence

SHOWN = 0.5  # share of the peak weight above which a neighbouring frame belongs to the moment
LONE_FRAME = 1.0  # seconds that a video's only frame stands for


def best_moment(
    weights: Sequence[float], timestamps: Sequence[float], duration: float, start: float = 0.0
) -> tuple[float, float]:
    """Return the seconds around the frame with the highest weight, as far as neighbours weigh at least half as much.

    A frame stands for the time up to half way to its neighbours; nothing is shown before `start` or after `duration`.
    Frames come in any order, and may come twice.
    """
    heaviest: dict[float, float] = {}
    for second, weight in zip(timestamps, weights, strict=False):  # padded frames have weights, but no time
        heaviest[second] = max(weight, heaviest.get(second, 0.0))
    timestamps = sorted(heaviest)
    weights = [heaviest[second] for second in timestamps]
    peak = max(range(len(timestamps)), key=lambda frame: weights[frame])
    first = last = peak
    while first > 0 and weights[first - 1] >= SHOWN * weights[peak]:
        first -= 1
    while last + 1 < len(timestamps) and weights[last + 1] >= SHOWN * weights[peak]:
        last += 1
    gaps = [after - before for before, after in itertools.pairwise(timestamps)] or [LONE_FRAME]
    begin = timestamps[first] - gaps[max(first - 1, 0)] / 2
    end = timestamps[last] + gaps[min(last, len(gaps) - 1)] / 2
    length = max(duration, timestamps[-1])  # some containers declare less than they hold
    return round(max(begin, start), 3), round(min(end, length), 3)
