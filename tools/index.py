"""Encodes a frame set with a release into a gallery that tools/search.py can search.

    python tools/index.py runs/student/release frames/test --out gallery --videos videos

Every model stores a vector per video, by whose inner product with a query videos are found. A model of two stages
(EERCF, GLSCL) also stores tokens, in float16, from which the likeliest are ordered anew. What that takes per video is
printed.
"""

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from distill import log
from distill.data.frames import FrameSet
from distill.errors import door
from distill.release.release import load
from distill.retrieval.gallery import build_gallery
from distill.retrieval.tokens import FLOAT_BYTES


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, indexes, and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path, metavar="RELEASE", help="the release that encodes")
    parser.add_argument("frames", type=Path, metavar="FRAMES", help="a folder made by tools/pack_frames.py")
    parser.add_argument("--out", type=Path, required=True, metavar="GALLERY", help="the folder to make")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="folder of the video files, so that hits name them")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode frames (default 0)")
    args = parser.parse_args(argv)
    log.setup()
    release = load(args.release, "cuda" if torch.cuda.is_available() else "cpu")
    frames = FrameSet(args.frames)
    manifest = build_gallery(release, frames, args.out, videos=args.videos, workers=args.workers)
    size = sum(file.bytes for file in manifest.files.values()) / 2**20
    vectors, tokens = manifest.counts["dim"] * FLOAT_BYTES, manifest.counts.get("token_bytes", 0)
    stored = f"{vectors:,} bytes of vectors" + (f" and {tokens:,} of tokens" if tokens else "") + " a video"
    print(f"{args.out}: {manifest.counts['videos']} videos, {stored}, {size:.1f} MiB, gallery {manifest.id[:12]}")


if __name__ == "__main__":
    door(main)
