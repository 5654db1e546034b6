"""Files that clients search by: a picture, or a clip, decoded from memory; nothing of it touches a disk."""

import asyncio
import io
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from distill.data.pictures import Fit, decode_picture, is_picture
from distill.errors import VideoError
from distill.serving import limits

log = logging.getLogger(__name__)
DECODER = Path(__file__).with_name("decoding.py")


@runtime_checkable
class Sampling(Protocol):
    """How a release samples and fits the frames of a video."""

    frames_config: dict[str, Any]
    fit: Fit | None


async def decoded(release: Sampling, content: bytes) -> UInt8[np.ndarray, "frame _ _ _"]:
    """Return the pixels of a picture, as of a video of one frame, or the frames of a clip that the release sees.

    Raises `VideoError` for what is neither, larger than the limits, or slow to decode. If it is cancelled, it stops.
    """
    if not content:
        raise VideoError("it is empty; send the bytes of a picture or of a clip")
    if is_picture(content):
        return (await asyncio.to_thread(decode_picture, content, limits.PIXELS))[None]
    return await _frames(release, content)


async def _frames(release: Sampling, content: bytes) -> UInt8[np.ndarray, "frame 3 height width"]:
    """Decode a clip in a process of its own, which ends with this call."""
    fit = None if release.fit is None else asdict(release.fit)
    settings = {"whole": False, **release.frames_config, "fit": fit}
    settings |= {"most": limits.FRAMES, "memory": limits.DECODER}
    command, pipe = (sys.executable, DECODER, json.dumps(settings)), asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(limits.DECODING):
            frames, said = await process.communicate(content)
    except TimeoutError:
        raise VideoError(
            f"decoding it takes more than {limits.DECODING:g} seconds; cut out the part that counts, or make it smaller"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()  # until its pipes are closed, too
    if process.returncode == 2:
        raise VideoError(said.decode(errors="replace").strip())
    if process.returncode:
        log.error("a decoder ended with %d: %s", process.returncode, said.decode(errors="replace").strip()[-500:])
        raise VideoError("its decoder failed; the server's log has the reason")
    return np.load(io.BytesIO(frames), allow_pickle=False)
