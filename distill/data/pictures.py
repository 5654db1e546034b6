"""Pictures: cut to a model's size as CLIP does it, and stored as JPEG. Light to import: processes that decode do."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

JPEG_QUALITY = 95


def fit(picture: np.ndarray, size: int) -> Image.Image:
    """CLIP's preprocessing up to normalisation: bicubic resize of the shorter side, centre crop."""
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
    """One frame as it is stored: fitted, quality 95, colours not subsampled."""
    buffer = io.BytesIO()
    fit(picture, size).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def decode_jpeg(jpeg: bytes) -> UInt8[np.ndarray, "3 height width"]:
    """One stored frame, RGB."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB")).transpose(2, 0, 1)
