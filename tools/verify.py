"""Derives the numbers and hashes of a release again, and says of each claim whether it holds, differs, or why neither.

    python tools/verify.py runs/teachclip/release
    python tools/verify.py hf:me/teachclip@v1 --frames my/frames/test my/frames/val --labels my/labels/xclip

Hashes of files, the ids of frame sets and label sets, the teachers' ids and weights, the recipe's hash, metrics on the
validation and test frames, ranks, bytes a video, steps, and every number of the card. Frame sets and label sets are
known by their ids; without `--frames` and `--labels` they are looked for where the recipe had them. Times, energy, the
commit and the machine cannot be derived, and are listed so. Exit code 0 if nothing differs, else 2, with names.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from distill.errors import ArtefactError, door, first_few
from distill.remote import locate
from distill.terminal import Parser, show


def main(argv: list[str] | None = None) -> None:
    """Verify, and print a line for every claim."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=locate, metavar="RELEASE", help="a folder, or one of the Hub (hf:REPO)")
    parser.add_argument("--frames", type=locate, nargs="+", default=[], metavar="F", help="frame sets that it names")
    parser.add_argument("--labels", type=locate, nargs="+", default=[], metavar="L", help="label sets that it names")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)

    from distill import comm, log
    from distill.evaluation.report import aligned
    from distill.verification.claims import shown
    from distill.verification.verify import verify

    log.setup()
    claims = verify(args.release, args.frames, args.labels, comm.device())
    differ = [claim.name for claim in claims if claim.verdict == "differs"]
    if args.json:
        show(*json.dumps([asdict(claim) for claim in claims], indent=1, ensure_ascii=False).split("\n"))
    else:
        head = ["claim", "stated", "found", "verdict"]
        cells = [[one.name, shown(one.stated), shown(one.found), _verdict(one.verdict, one.why)] for one in claims]
        show(*aligned([head, *cells]).split("\n"))
    if differ:
        raise ArtefactError(
            f"{args.release}: {len(differ)} of {len(claims)} claims differ: {first_few(differ, 8, '; ')}; do not rely "
            f"on it, and ask who released it"
        )


def _verdict(verdict: str, why: str) -> str:
    return f"{verdict}: {why}" if why else verdict


if __name__ == "__main__":
    door(main)
