"""Fit pictures to what a tower takes, and store them as JPEG. Light to import, as decoding processes do so."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from distill.errors import VideoError

JPEG_QUALITY = 95
LONGEST = 100  # times its shorter side, beyond which fitting a picture would take gigabytes
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # first bytes of JPEG and PNG
POSTER, POSTER_QUALITY = 192, 70  # pixels of the longer side at most
Resize = Literal["shortest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class Fit:
    """How a tower wants pictures: `size` x `size` pixels of any shape, as torchvision's Resize and CenterCrop do it.

    shortest  the shorter side becomes `size`, and the centre is cut out (CLIP)
    squash    both sides become `size`, whatever they were (SigLIP, PE-Core)
    """

    size: int
    resize: Resize = "shortest"
    interpolation: Interpolation = "bicubic"

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a picture as the tower takes it."""
        size, how = self.size, Image.Resampling[self.interpolation.upper()]
        if self.resize == "squash":
            return image.resize((size, size), how)
        width, height = (size * side // min(image.size) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        return image.resize((width, height), how).crop((left, top, left + size, top + size))

    def __str__(self) -> str:
        way = "squashed to" if self.resize == "squash" else "cut to"
        return f"pictures {way} {self.size} x {self.size} pixels ({self.interpolation})"


def encode_jpeg(picture: UInt8[np.ndarray, "height width 3"], size: int, whole: bool = False) -> bytes:
    """Fit an RGB frame to `size` and return it as JPEG of quality 95 without chroma subsampling.

    Its shorter side is resized to `size` (bicubic) and the centre cut out: CLIP's preprocessing before normalisation.
    A `whole` frame keeps its shape, with a shorter side of `size` pixels, or fewer if it has no more. Raises
    `VideoError` for a picture that is 100 times as long as wide.
    """
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if max(image.size) > LONGEST * min(image.size):
        raise VideoError(f"a picture of {image.width} x {image.height} pixels: expected at most {LONGEST} to 1")
    size = min(size, *image.size) if whole else size
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    fitted = image.resize((width, height), Image.Resampling.BICUBIC)
    if not whole:
        left, top = (width - size) // 2, (height - size) // 2
        fitted = fitted.crop((left, top, left + size, top + size))
    fitted.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def decode_jpeg(jpeg: bytes, fit: Fit | None = None) -> UInt8[np.ndarray, "3 height width"]:
    """Return the RGB pixels of a stored frame, fitted to a tower if it was kept whole."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        if max(image.size) > LONGEST * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels, expected at most {LONGEST} to 1")
        picture = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(picture if fit is None else fit(picture)).transpose(2, 0, 1)


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
