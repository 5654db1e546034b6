"""Fit pictures to a model's size as CLIP does, and store them as JPEG. Light to import, as decoding processes do so."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

JPEG_QUALITY = 95


def fit(picture: np.ndarray, size: int) -> Image.Image:
    """Resize the shorter side to `size` (bicubic) and crop the centre: CLIP's preprocessing before normalisation.

    `picture` is uint8 RGB [height, width, 3].
    """
    image = Image.fromarray(picture)
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        resized = (max(size, round(width * scale)), max(size, round(height * scale)))
        image = image.resize(resized, Image.Resampling.BICUBIC)
        left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return image


def encode_jpeg(picture: np.ndarray, size: int) -> bytes:
    """Fit a frame and return it as JPEG of quality 95 without chroma subsampling."""
    buffer = io.BytesIO()
    fit(picture, size).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def decode_jpeg(jpeg: bytes) -> UInt8[np.ndarray, "3 height width"]:
    """Return the RGB pixels of a stored frame."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB")).transpose(2, 0, 1)
