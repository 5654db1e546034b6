"""Writes the CLIP towers of a release as a folder that open_clip and the recipes' `model.clip.model` can read.

tools/export_clip.py runs/clip/release --out recipes/demo/clip
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable
from distill.remote import locate
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Export."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=locate, help="release folder, or one of the Hub (hf:REPO)")
    parser.add_argument("--out", type=Path, required=True, help="folder in open_clip's local-dir layout")
    args = parser.parse_args(argv)
    check_writable(args.out)

    from distill.release.export import export_clip
    from distill.release.release import load

    export_clip(load(args.release), args.out)
    show(str(args.out))


if __name__ == "__main__":
    door(main)
