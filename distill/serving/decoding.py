"""A process that decodes one clip of a client: its bytes come in, the frames that a model sees go out.

    python distill/serving/decoding.py \
        '{"sampler": ..., "size": 224, "whole": false, "fit": null, "most": 10000, "memory": 3221225472}' < CLIP > NPY

A process of its own can be ended at any moment, takes only so much memory, and takes nothing with it if a decoder
crashes. Exit code 2: the file cannot be used, and standard error says why in one line.
"""

import io
import json
import resource
import sys
from pathlib import Path
from typing import cast

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

import numpy as np
from pydantic import TypeAdapter

from distill.data.pictures import Fit
from distill.data.sampler import Sampler
from distill.data.sampling import sample_one
from distill.data.video import probe
from distill.errors import VideoError


def main(settings: str) -> None:
    """Read the clip from standard input; write its frames [frame, 3, height, width] to standard output as npy."""
    asked = json.loads(settings)
    resource.setrlimit(resource.RLIMIT_AS, (asked["memory"], asked["memory"]))
    clip = cast(io.BufferedReader, io.BufferedReader(io.BytesIO(sys.stdin.buffer.read())))  # typed by what it wraps
    frames, most = len(probe(clip)), asked["most"]
    if frames > most:
        raise VideoError(f"{frames:,} frames, of which at most {most:,} are read; cut out the part that counts")
    sampler: Sampler = TypeAdapter(Sampler).validate_python(asked["sampler"])
    fit = None if asked["fit"] is None else Fit(**asked["fit"])
    np.save(sys.stdout.buffer, sample_one(clip, None, sampler, asked["size"], asked["whole"]).pixels(fit))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (VideoError, MemoryError) as error:
        sys.stderr.write(str(error) or "too large to be decoded here")
        sys.exit(2)
