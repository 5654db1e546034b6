"""Strips of a video's frames as small JPEGs inside the page."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from distill.data.frames import FrameSet
from distill.data.pictures import Fit
from distill.errors import ArtefactError

SIDE, QUALITY = 96, 60  # pixels of a picture, and of JPEG: 2 to 4 KB
LONGEST = 12  # pictures of a strip


def for_looking(frames: FrameSet) -> FrameSet:
    """Return a frame set with pictures of one shape: of whole ones a small square of the middle."""
    return frames.fitted(Fit(min(SIDE, frames.size)), str(frames.path)) if frames.whole else frames


def chosen(count: int, most: int = LONGEST) -> list[int]:
    """Return at most so many numbers of frames, at equal steps."""
    shown = min(count, most)
    return [place * count // shown for place in range(shown)]


def strip(frames: FrameSet, video: int, most: int = LONGEST) -> list[str]:
    """Return frames of a video as `data:` addresses; none where they cannot be decoded."""
    try:
        pixels = frames.pixels(video)
    except ArtefactError:
        return []
    return [_picture(pixels[number]) for number in chosen(len(pixels), most)]


def _picture(pixels: UInt8[np.ndarray, "3 height width"]) -> str:
    image, buffer = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), io.BytesIO()
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
