"""Fit pictures to a model's size as CLIP does, and store them as JPEG. Light to import, as decoding processes do so."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from distill.errors import VideoError

JPEG_QUALITY = 95
LONGEST = 100  # times its shorter side, beyond which fitting a picture would take gigabytes
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # first bytes of JPEG and PNG
POSTER, POSTER_QUALITY = 192, 70  # pixels of the longer side at most


def encode_jpeg(picture: UInt8[np.ndarray, "height width 3"], size: int) -> bytes:
    """Fit an RGB frame to `size` and return it as JPEG of quality 95 without chroma subsampling.

    Its shorter side is resized to `size` (bicubic) and the centre cut out: CLIP's preprocessing before normalisation.
    Raises `VideoError` for a picture that is 100 times as long as wide.
    """
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if max(image.size) > LONGEST * min(image.size):
        raise VideoError(f"a picture of {image.width} x {image.height} pixels: expected at most {LONGEST} to 1")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    fitted = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    fitted.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def decode_jpeg(jpeg: bytes) -> UInt8[np.ndarray, "3 height width"]:
    """Return the RGB pixels of a stored frame."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB")).transpose(2, 0, 1)


def is_picture(content: bytes) -> bool:
    """Return whether a file is a JPEG or a PNG by its first bytes."""
    return content.startswith(MAGIC)


def decode_picture(content: bytes, most: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return the RGB pixels of a JPEG or PNG, turned as its camera says.

    Raises `VideoError` for a damaged file, and for one of more than `most` pixels, of which none is decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
            if image.width * image.height > most:
                raise VideoError(f"a picture of {image.width} x {image.height} pixels: expected at most {most:,}")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError:
        raise VideoError("a damaged picture") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise VideoError(f"a damaged picture ({error})") from None


def encode_poster(frame: UInt8[np.ndarray, "3 height width"]) -> bytes:
    """Return an RGB frame as a small JPEG, for people to look at."""
    image, buffer = Image.fromarray(frame.transpose(1, 2, 0)), io.BytesIO()
    image.thumbnail((POSTER, POSTER), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=POSTER_QUALITY)
    return buffer.getvalue()
