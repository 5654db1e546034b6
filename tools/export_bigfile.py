"""Writes the vectors of a gallery as a BigFile, which TeachCLIP's and many other retrieval tools read.

    python tools/export_bigfile.py gallery --out features/videos

Of a model of two stages (EERCF, GLSCL) these are the vectors that recall: a BigFile has no place for its tokens.
"""

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill import log
from distill.errors import door
from distill.retrieval.bigfile import export_gallery


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, exports, and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="a folder made by tools/index.py")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    args = parser.parse_args(argv)
    log.setup()
    videos, dim = export_gallery(args.gallery, args.out)
    print(f"{args.out}: {videos} vectors of {dim} floats, unit length")


if __name__ == "__main__":
    door(main)
