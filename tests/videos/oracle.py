"""The oracle of drawn videos: decodes every frame in order and reads its presentation time; counts differences."""

from pathlib import Path
from random import Random

import av
import numpy as np
from PIL import Image

from distill.data.sampler import Clip4ClipSampler
from distill.data.sampling import sample_one
from distill.data.timeline import Span
from distill.data.video import decode, probe
from distill.errors import VideoError
from videos.drawing import Drawn, number_of

PICK = Clip4ClipSampler(kind="clip4clip", num_frames=1000)
TICK = 0.0011  # seconds: containers of milliseconds round up or down
Shown = tuple[list[float], list[np.ndarray]]  # seconds and pictures of all frames, in order


def look(path: Path, drawn: Drawn) -> Shown:
    """Return all frames and when they are shown, after a check that the file holds what was drawn."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        begin = max(container.start_time or 0, 0) / av.time_base
    images = [frame.to_ndarray(format="rgb24") for frame in frames]
    assert [number_of(image) for image in images] == [n % 64 for n in range(drawn.cut, len(drawn.times))], drawn
    since = [float(time - drawn.times[drawn.cut]) for time in drawn.times[drawn.cut :]]
    if drawn.kind == "avi":
        return since, [_displayed(image, drawn) for image in images]
    seconds = [float(frame.pts * frame.time_base) - begin for frame in frames]
    assert abs(seconds[0] - float(drawn.late)) < 0.05, (drawn, seconds[:3])
    assert np.allclose(np.diff(seconds), np.diff(since), rtol=0, atol=TICK), drawn
    return seconds, [_displayed(image, drawn) for image in images]


def differences(path: Path, drawn: Drawn, random: Random) -> list[str]:
    """Return where the frames that are chosen, their seconds or their pixels are not those that a player shows."""
    seconds, images = look(path, drawn)
    try:
        timeline = probe(path)
    except VideoError as reason:
        return [f"refused: {reason}"]
    found = [timeline.seconds(frame) for frame in range(len(timeline))]
    if len(found) != len(seconds) or not np.allclose(found, seconds, rtol=0, atol=TICK):
        return [f"shown at {found[:4]}..., {len(found)} frames; expected {seconds[:4]}..., {len(seconds)}"]
    wrong = [n for n, image in decode(path, timeline, range(len(images))) if not _alike(image, images[n], drawn)]
    odd = [f"pixels of frames {wrong[:5]}"] if wrong else []
    for span in (None, _span(random, seconds, 0.2, 10), _span(random, seconds, 0.01, 0.1)):
        chosen, expected = _chosen(path, span), _expected(drawn, seconds, timeline.duration, span)
        if chosen != expected:
            odd.append(f"span {span}: frames {chosen}, expected {expected} of {seconds}")
    return odd


def _span(random: Random, seconds: list[float], shortest: float, longest: float) -> tuple[float, float]:
    """Draw a span none of whose moments is where a container's rounding decides."""
    while True:
        start = random.uniform(0, seconds[-1] + 1)
        end = start + random.uniform(shortest, longest)
        apart = min(abs(second - moment - round(second - moment)) for second in seconds for moment in (start, end))
        if apart > TICK:
            return start, end


def _chosen(path: Path, span: Span) -> list[int]:
    """Return the numbers, by their pixels, of the frames that are chosen; none where there are none."""
    try:
        pixels = sample_one(path, span, PICK, 64).pixels()
    except VideoError:
        return []
    return [number_of(frame.transpose(1, 2, 0)) for frame in pixels]


def _expected(drawn: Drawn, seconds: list[float], duration: float, span: Span) -> list[int]:
    """Return the numbers of the frames that the published rule counts, or that are shown every second."""
    start, end = span or (seconds[0], duration)
    inside = [number for number, second in enumerate(seconds) if start - 0.0005 <= second < end - 0.0005]
    if not inside:
        inside = [number for number, second in enumerate(seconds) if second < start and start < duration][-1:]
    if drawn.rate is not None and drawn.rate >= 1:
        taken = inside[:: int(drawn.rate)]
    else:
        begins = {number: seconds[number] if place else start for place, number in enumerate(inside)}
        moments = np.arange(start, min(end, duration) - 0.0005, 1.0) if inside else []
        taken = [max(number for number in inside if begins[number] <= moment + 0.0005) for moment in moments]
    return [(number + drawn.cut) % 64 for number in dict.fromkeys(taken)]


def _displayed(image: np.ndarray, drawn: Drawn) -> np.ndarray:
    """Return the picture as a player shows it: each pixel moves to x' = a x + c y, y' = b x + d y."""
    height, width, _ = image.shape
    wide = round(width * drawn.aspect)
    stretched = image if wide == width else np.asarray(Image.fromarray(image).resize((wide, height)))
    if drawn.turn is None:
        return stretched
    a, b, c, d = drawn.turn
    y, x = np.mgrid[:height, :wide]
    right, down = a * x + c * y, b * x + d * y
    right, down = right - right.min(), down - down.min()
    shown = np.zeros((down.max() + 1, right.max() + 1, 3), np.uint8)
    shown[down, right] = stretched
    return shown


def _alike(found: np.ndarray, expected: np.ndarray, drawn: Drawn) -> bool:
    """Return whether pictures are equal; stretched ones may differ by how they are interpolated."""
    if found.shape != expected.shape:
        return False
    apart = np.abs(found.astype(int) - expected)
    return bool(apart.mean() < 2 if drawn.aspect != 1 else not apart.any())
