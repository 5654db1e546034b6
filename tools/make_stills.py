"""Draws captioned stills of all emoji as a frame set (one frame a video), to pretrain the demo's small CLIP on.

    tools/make_stills.py --out demo/stills/train --stills 60000 --seed 0
    tools/make_stills.py --out demo/stills/val --stills 563 --seed 1 --vocabulary recipes/demo/clip/vocabulary.json

It is how recipes/demo/clip/ was made (recipes/demo/clip.yaml says with what); the demo itself does not need it.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable, check_writable_file
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Draw and pack."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the frame set")
    parser.add_argument("--stills", type=int, required=True, help="how many pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=Path, help="also write the token table that spells the corpus here")
    args = parser.parse_args(argv)
    check_writable(args.out)
    if args.vocabulary is not None:
        check_writable_file(args.vocabulary)

    from distill import log
    from distill.demo.stills import corpus_vocabulary, pack_stills
    from distill.records import write_json

    log.setup()
    if args.vocabulary:
        write_json(args.vocabulary, corpus_vocabulary())
    manifest = pack_stills(args.out, args.stills, args.seed)
    show(f"{args.out}: {manifest.counts['videos']} stills")


if __name__ == "__main__":
    door(main)
