"""Files that clients search by: a picture, or a clip, decoded from memory; nothing of it touches a disk."""

import io
from typing import cast

import numpy as np
from jaxtyping import UInt8
from pydantic import TypeAdapter

from distill.data.pictures import decode_picture, is_picture
from distill.data.sampler import Sampler
from distill.data.sampling import sample_one
from distill.data.video import probe
from distill.errors import VideoError
from distill.model.features import VideoFeatures
from distill.retrieval.encoder import Encoder
from distill.serving import limits
from distill.serving.guard import Refused


def features(release: Encoder, content: bytes) -> VideoFeatures:
    """Return the features (one row) of a picture, as of a video of one frame, or of a clip, sampled as in training.

    Raises `Refused` for what is neither, or larger than the limits.
    """
    if not content:
        raise Refused(422, "the body is empty; send the bytes of a picture or of a clip")
    try:
        if is_picture(content):
            return release.encode_video(decode_picture(content, limits.PIXELS)[None])
        return release.encode_video(_sampled(release, content))
    except VideoError as error:
        raise Refused(422, f"the file cannot be searched by: {error}") from None


def _sampled(release: Encoder, content: bytes) -> UInt8[np.ndarray, "frame 3 height width"]:
    """Return the frames of a clip that the release sees."""
    clip = cast(io.BufferedReader, io.BufferedReader(io.BytesIO(content)))  # typed by what it wraps
    frames = len(probe(clip))
    if frames > limits.FRAMES:
        raise VideoError(
            f"{frames:,} frames, of which at most {limits.FRAMES:,} are read; cut out the part that counts"
        )
    sampler: Sampler = TypeAdapter(Sampler).validate_python(release.frames_config["sampler"])
    return sample_one(clip, None, sampler, release.frames_config["size"]).pixels()
